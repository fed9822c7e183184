//! The soak test, which runs for minutes in parallel with the other tests.

use std::{
    env,
    path::Path,
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, Result};

use crate::{leftovers::Mark, process, summary::Counts};

/// The test program.
pub(crate) const PROGRAM: &str = "soak";

/// Its only test.
pub(crate) const TEST: &str = "soak_random_operations_keep_desired_state";

/// Its default duration: about that of the other tests.
const SECONDS: &str = "180";
const VARIABLE: &str = "PORTMAP_SOAK_SECONDS";

/// The soak test of a run.
pub(crate) struct Soak<'a> {
    /// Its program.
    pub program: &'a Path,
    /// Where `cargo test` would run it.
    pub directory: &'a Path,
    /// The mark of the run.
    pub mark: &'a Mark,
}

impl Soak<'_> {
    /// Runs it.
    pub(crate) fn run(&self) -> Result<Output> {
        let mut command = Command::new(self.program);
        command.current_dir(self.directory).env("CARGO_MANIFEST_DIR", self.directory).stdin(Stdio::null());
        if env::var_os(VARIABLE).is_none() {
            command.env(VARIABLE, SECONDS);
        }
        self.mark
            .on(&mut command)
            .output()
            .with_context(|| format!("cannot run `{}`", process::shown(&command)))
    }
}

/// Prints the output of the soak test, and returns its numbers and a failure apart from its test.
pub(crate) fn report(output: &Output) -> (Counts, Option<String>) {
    println!("the soak test, in parallel with the other tests:");
    let mut counts = Counts::default();
    for text in [&output.stdout, &output.stderr] {
        for line in String::from_utf8_lossy(text).lines() {
            println!("{line}");
            counts.read_line(line);
        }
    }
    let is_explained = counts.failed > 0 || (output.status.success() && counts.passed > 0);
    let trouble = (!is_explained).then(|| format!("the soak test ended without a result: {}", output.status));
    (counts, trouble)
}
