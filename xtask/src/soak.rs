//! The soak, which goes on for minutes beside the other tests.

use std::{
    env,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, Result};

use crate::{process, summary::Counts};

/// The test program.
pub(crate) const PROGRAM: &str = "soak";

/// Its only test.
pub(crate) const TEST: &str = "whatever_happens_everything_is_as_it_is_meant_to_be";

/// How long it takes, where nobody says otherwise: as long as most of the tests beside it.
const SECONDS: &str = "180";
const VARIABLE: &str = "PORTMAP_SOAK_SECONDS";

/// How the soak is run.
pub(crate) struct Soak {
    /// Its program.
    pub program: PathBuf,
    /// Where `cargo test` would run it.
    pub directory: PathBuf,
}

impl Soak {
    /// Runs it to its end.
    pub(crate) fn run(&self) -> Result<Output> {
        let mut command = Command::new(&self.program);
        command.current_dir(&self.directory).env("CARGO_MANIFEST_DIR", &self.directory).stdin(Stdio::null());
        if env::var_os(VARIABLE).is_none() {
            command.env(VARIABLE, SECONDS);
        }
        command.output().with_context(|| format!("cannot run `{}`", process::shown(&command)))
    }
}

/// Prints what the soak has printed, counts its result, and says what went wrong apart from its test.
pub(crate) fn report(output: &Output, counts: &mut Counts) -> Option<String> {
    println!("the soak beside the other tests:");
    for text in [&output.stdout, &output.stderr] {
        for line in String::from_utf8_lossy(text).lines() {
            println!("{line}");
            counts.read_line(line);
        }
    }
    let is_explained = output.status.success() || counts.failed > 0;
    (!is_explained).then(|| format!("the soak failed: {}", output.status))
}
