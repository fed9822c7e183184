//! cargo-deny, which reads the licences of all dependencies and the advisories about them.

use std::process::Command;

use anyhow::Result;

use super::{Report, installing};
use crate::process;

/// A release that the workspace's Rust version can build.
const VERSION: &str = "0.20.2";

/// Sees to it that cargo-deny is there, in whichever release.
pub(super) fn ensure(report: Report) -> Result<()> {
    if let Ok(version) = process::read(Command::new("cargo-deny").arg("--version")) {
        report.found(version.trim());
        return Ok(());
    }
    installing(format_args!("cargo-deny {VERSION} (takes about four minutes)"));
    process::run_silently(Command::new("cargo").args([
        "install",
        "cargo-deny",
        "--locked",
        "--version",
        VERSION,
    ]))
}
