//! What tests leave behind on the machine: nothing, or it is named.

use std::{
    collections::BTreeSet,
    fs,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use serde::Deserialize;

use crate::process;

/// Programs that the tests start.
const PROGRAMS: [&str; 5] = ["portmapd", "portmap", "unshare", "nsenter", "portmap-demo"];

/// The kernel frees programs and interfaces a little after their last user has gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// Everything of the machine that tests could leave behind, one line each.
pub(crate) struct Snapshot(BTreeSet<String>);

impl Snapshot {
    /// What there is now.
    pub(crate) fn take() -> Self {
        let mut lines = BTreeSet::new();
        for (kind, directory) in [("interface", "/sys/class/net"), ("namespace", "/run/netns")] {
            let entries = fs::read_dir(directory).into_iter().flatten().flatten();
            lines.extend(entries.map(|entry| format!("{kind} {}", entry.file_name().to_string_lossy())));
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        lines.extend(mounts.lines().map(|mount| format!("mount {mount}")));
        lines.extend(processes());
        lines.extend(programs());
        Self(lines)
    }

    /// What there is now and was not then.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let start = Instant::now();
        loop {
            let left: Vec<_> = Self::take().0.difference(&self.0).cloned().collect();
            if left.is_empty() || start.elapsed() > PATIENCE {
                return left;
            }
            thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Running programs that the tests may have started.
fn processes() -> impl Iterator<Item = String> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| {
        let name = fs::read_to_string(entry.path().join("comm")).ok()?;
        let name = name.trim();
        PROGRAMS.contains(&name).then(|| format!("process {} {name}", entry.file_name().to_string_lossy()))
    })
}

#[derive(Deserialize)]
struct Program {
    id: u32,
    #[serde(default)]
    name: String,
}

/// BPF programs of portmap in the kernel: as long as one is attached or pinned anywhere, it is there.
fn programs() -> impl Iterator<Item = String> {
    let listing = process::read(Command::new("bpftool").args(["--json", "prog", "show"])).unwrap_or_default();
    let programs: Vec<Program> = serde_json::from_str(&listing).unwrap_or_default();
    programs
        .into_iter()
        .filter(|program| program.name.starts_with("pm_"))
        .map(|program| format!("BPF program {} {}", program.id, program.name))
}
