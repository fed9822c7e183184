//! Cargo commands that are built from crates.

use std::process::Command;

use anyhow::Result;

use super::{Report, installing};
use crate::process;

/// A program of this name, from the crate of this name.
pub(super) struct Crate {
    name: &'static str,
    /// A release that the workspace's Rust version can build.
    version: &'static str,
    /// How long that takes, for whoever waits.
    takes: &'static str,
}

/// Reads the licences of all dependencies and the advisories about them.
pub(super) const DENY: Crate = Crate { name: "cargo-deny", version: "0.20.2", takes: "about four minutes" };

/// Builds fuzz targets; this release does so with a stable toolchain.
pub(super) const FUZZ: Crate = Crate { name: "cargo-fuzz", version: "0.13.2", takes: "about a minute" };

/// Knows the ways to break a program.
pub(super) const MUTANTS: Crate =
    Crate { name: "cargo-mutants", version: "27.1.0", takes: "about three minutes" };

/// Sees to it that the program is there, in whichever release.
pub(super) fn ensure(program: &Crate, report: Report) -> Result<()> {
    let Crate { name, version, takes } = program;
    if process::find(name).is_some() {
        report.found(name);
        return Ok(());
    }
    installing(format_args!("{name} {version} (takes {takes})"));
    process::run_silently(Command::new("cargo").args(["install", name, "--locked", "--version", version]))
}
