//! Debian packages.

use std::{process::Command, sync::OnceLock};

use anyhow::{Result, bail};

use super::installing;
use crate::process;

/// The outcome of the update of the package lists, which happens at most once in a run of this program.
static UPDATE: OnceLock<Result<(), String>> = OnceLock::new();

/// Returns whether this process can install packages.
pub(super) fn usable() -> bool {
    nix::unistd::geteuid().is_root() && process::find("apt-get").is_some()
}

/// Updates the package lists, once.
pub(super) fn update() -> Result<()> {
    let outcome = UPDATE
        .get_or_init(|| process::run_silently(apt_get().arg("update")).map_err(|error| format!("{error:#}")));
    outcome.clone().map_err(anyhow::Error::msg)
}

/// Installs missing packages; error messages name the purpose.
pub(super) fn install(packages: &[String], purpose: &str) -> Result<()> {
    let missing: Vec<_> = packages.iter().filter(|package| !installed(package)).cloned().collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !usable() {
        bail!("missing for {purpose}: run, as root, `apt-get install {}`", missing.join(" "));
    }
    installing(format_args!("Debian packages {}", missing.join(" ")));
    update()?;
    process::run_silently(apt_get().args(["install", "--yes", "--no-install-recommends"]).args(&missing))
}

fn installed(package: &str) -> bool {
    process::read(Command::new("dpkg-query").args(["--show", "--showformat=${db:Status-Status}", package]))
        .is_ok_and(|status| status == "installed")
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    // Another process may be installing packages right now.
    command.args(["-o", "DPkg::Lock::Timeout=300"]).env("DEBIAN_FRONTEND", "noninteractive");
    command
}
