//! Cargo commands that are built from crates.

use std::process::Command;

use anyhow::Result;

use super::{Report, installing};
use crate::process;

/// A cargo command, from the crate of the same name.
pub(super) struct Crate {
    /// Its name without `cargo-`.
    command: &'static str,
    /// A release that the workspace's Rust version can build.
    version: &'static str,
    /// How long building it takes.
    takes: &'static str,
}

/// Reads the licences of all dependencies and the advisories about them.
pub(super) const DENY: Crate = Crate { command: "deny", version: "0.20.2", takes: "about four minutes" };

/// Finds unused dependencies. Later releases need Rust 1.98.
pub(super) const SHEAR: Crate = Crate { command: "shear", version: "1.13.0", takes: "about two minutes" };

/// Builds fuzz targets; this release does so with a stable toolchain.
pub(super) const FUZZ: Crate = Crate { command: "fuzz", version: "0.13.2", takes: "about a minute" };

/// Lists mutations of source code and applies them.
pub(super) const MUTANTS: Crate =
    Crate { command: "mutants", version: "27.1.0", takes: "about three minutes" };

/// Installs the program unless this release of it is there.
pub(super) fn ensure(program: &Crate, report: Report) -> Result<()> {
    let Crate { command, version, takes } = program;
    let name = format!("cargo-{command}");
    if installed(&name).as_deref() == Some(version) {
        report.found(format_args!("{name} {version}"));
        return Ok(());
    }
    installing(format_args!("{name} {version} (takes {takes})"));
    // A release that has another number is replaced.
    process::run_silently(Command::new("cargo").args([
        "install",
        &name,
        "--locked",
        "--force",
        "--version",
        version,
    ]))
}

/// The release of a crate that cargo has installed, if it has.
fn installed(name: &str) -> Option<String> {
    // Not every program of this kind knows its own release.
    let list = process::read(Command::new("cargo").args(["install", "--list"])).ok()?;
    Some(release(&list, name)?.to_owned())
}

/// The release of a crate in the output of `cargo install --list`.
fn release<'a>(list: &'a str, name: &str) -> Option<&'a str> {
    list.lines().find_map(|line| {
        let (found, version) = line.strip_suffix(':')?.split_once(" v")?;
        (found == name).then_some(version)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn release_is_read_from_the_list_of_installed_crates() {
        let list = "cargo-deny v0.20.2:\n    cargo-deny\ncargo-shear v1.13.0:\n    cargo-shear\n";
        assert_eq!(release(list, "cargo-shear"), Some("1.13.0"));
        assert_eq!(release(list, "shear"), None);
    }
}
