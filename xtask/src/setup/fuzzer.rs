//! cargo-fuzz, and the compiler that libFuzzer is built with.

use std::process::Command;

use anyhow::Result;

use super::{Report, installing, tools};
use crate::process;

/// A release that works with a stable toolchain.
const VERSION: &str = "0.13.2";

/// Sees to it that cargo-fuzz is there, in whichever release, and a compiler for C++.
pub(super) fn ensure(report: Report) -> Result<()> {
    tools::ensure(&tools::FUZZ, report)?;
    if let Ok(version) = process::read(Command::new("cargo-fuzz").arg("--version")) {
        report.found(version.trim());
        return Ok(());
    }
    installing(format_args!("cargo-fuzz {VERSION} (takes about a minute)"));
    process::run_silently(Command::new("cargo").args([
        "install",
        "cargo-fuzz",
        "--locked",
        "--version",
        VERSION,
    ]))
}
