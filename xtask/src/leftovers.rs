//! Leftovers of the tests on the machine: files, mounts, processes and BPF programs.
//!
//! Another portmap may run on the machine, so the search covers resources of the tests only. A run has a
//! directory of its own, whose path is in the environment of every process that it starts. Interfaces and
//! namespaces live in sandboxes and end with their processes.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::ffi::OsStrExt as _,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde::Deserialize;
use tempfile::TempDir;

use crate::process;

/// Environment variable with the path of the run's directory.
const VARIABLE: &str = "PORTMAP_TEST_RUN";

/// The file in the directory to which sandboxes append the ids of BPF programs that their daemons pin.
const PROGRAMS: &str = "programs";

/// The kernel frees programs some time after their last reference is dropped.
const PATIENCE: Duration = Duration::from_mins(2);

/// Identifies the resources of one run of the tests.
pub(crate) struct Mark {
    directory: TempDir,
}

impl Mark {
    /// Creates the mark of a new run.
    pub(crate) fn new() -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("portmap-test-").tempdir();
        Ok(Self { directory: directory.context("cannot make a directory for the tests")? })
    }

    /// Marks a command and its descendants, and makes them keep temporary files in the run's directory.
    pub(crate) fn on<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env(VARIABLE, self.directory.path()).env("TMPDIR", self.directory.path())
    }

    /// Returns the leftovers of the run after its end, one line each.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let start = Instant::now();
        loop {
            let mut left = self.files();
            left.extend(self.mounts());
            left.extend(self.processes());
            left.extend(self.programs());
            if left.is_empty() || start.elapsed() > PATIENCE {
                return left;
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.directory.path()).into_iter().flatten().flatten();
        let entries = entries.filter(|entry| entry.file_name() != PROGRAMS);
        entries.map(|entry| format!("file {}", entry.path().display())).collect()
    }

    fn mounts(&self) -> Vec<String> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let directory = format!(" {}/", self.directory.path().display());
        mounts
            .lines()
            .filter(|mount| mount.contains(&directory))
            .map(|mount| format!("mount {mount}"))
            .collect()
    }

    fn processes(&self) -> Vec<String> {
        let mut word = format!("{VARIABLE}=").into_bytes();
        word.extend(self.directory.path().as_os_str().as_bytes());
        let bears_it = |environment: &[u8]| environment.split(|byte| *byte == 0).any(|entry| entry == word);
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let bearing = entries.filter_map(|entry| {
            let environment = fs::read(entry.path().join("environ")).ok()?;
            let name = fs::read_to_string(entry.path().join("comm")).ok()?;
            let number = entry.file_name();
            bears_it(&environment).then(|| format!("process {} {}", number.to_string_lossy(), name.trim()))
        });
        bearing.collect()
    }

    /// BPF programs of the run that still exist because they are attached or pinned. The kernel reuses an id
    /// only after all others.
    fn programs(&self) -> Vec<String> {
        let recorded = fs::read_to_string(self.directory.path().join(PROGRAMS)).unwrap_or_default();
        let recorded: BTreeSet<u32> = recorded.lines().filter_map(|line| line.parse().ok()).collect();
        if recorded.is_empty() {
            return Vec::new();
        }
        let listing = process::read(Command::new("bpftool").args(["--json", "prog", "show"]));
        let programs: Vec<Program> = serde_json::from_str(&listing.unwrap_or_default()).unwrap_or_default();
        let left = programs.into_iter().filter(|program| recorded.contains(&program.id));
        left.map(|program| format!("BPF program {} {}", program.id, program.name)).collect()
    }
}

#[derive(Deserialize)]
struct Program {
    id: u32,
    #[serde(default)]
    name: String,
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;

    #[test]
    fn leftovers_are_found_by_their_mark_only() {
        let (mark, other) = (Mark::new().unwrap(), Mark::new().unwrap());
        let mut command = Command::new("cat");
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        let mut process = mark.on(&mut command).spawn().unwrap();
        let found = mark.processes();
        assert!(matches!(&found[..], [one] if one.contains(&process.id().to_string())), "{found:?}");
        assert!(other.processes().is_empty());
        drop(process.stdin.take());
        process.wait().unwrap();
        assert!(mark.leftovers().is_empty());
        let file = mark.directory.path().join("forgotten");
        fs::write(&file, "").unwrap();
        assert_eq!(mark.files(), [format!("file {}", file.display())]);
        assert!(other.files().is_empty());
    }
}
