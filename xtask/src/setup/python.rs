//! Programs from the Python package index, each in a virtual environment in the user's cache.

use std::process::Command;

use anyhow::Result;

use super::{Report, apt, installing, unpacked};
use crate::process;

/// Sends requests that an `OpenAPI` description allows and forbids, and compares the responses with it. With a
/// later hypothesis, the library for JSON schemas that this release uses fails.
const SCHEMATHESIS: [&str; 2] = ["schemathesis==4.4.4", "hypothesis==6.131.0"];

/// Ensures that schemathesis is installed, where `tests/tests/api.rs` looks for it.
pub(super) fn ensure(report: Report) -> Result<()> {
    let directory = unpacked::cache("schemathesis")?;
    let python = directory.join("bin/python");
    let pinned = "import importlib.metadata as m, sys; \
        sys.exit(any(m.version(p) != v for p, v in (a.split('==') for a in sys.argv[1:])))";
    let is_there = python.exists()
        && process::run_silently(Command::new(&python).args(["-c", pinned]).args(SCHEMATHESIS)).is_ok();
    if is_there {
        report.found(directory.display());
        return Ok(());
    }
    installing(format_args!("{} in {}", SCHEMATHESIS[0], directory.display()));
    // Debian's Python cannot create virtual environments without this package.
    if process::run_silently(Command::new("python3").args(["-c", "import ensurepip"])).is_err() {
        apt::install(&["python3-venv".to_owned()], "creating virtual environments of Python")?;
    }
    process::run_silently(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&directory))?;
    process::run_silently(Command::new(&python).args(["-m", "pip", "install", "-q"]).args(SCHEMATHESIS))
}
