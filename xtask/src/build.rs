//! Release builds, and the programs that need one.

use std::{convert::Infallible, ffi::OsString, os::unix::process::CommandExt as _, process::Command};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    process,
    setup::{self, Group, Report},
    workspace,
};

/// Arguments that are handed on as they are.
#[derive(Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Forwarded {
    /// Arguments of the program; `--help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Builds the daemon and the command-line tools.
pub(crate) fn release() -> Result<()> {
    setup::ensure(&[Group::Build], Report::Changes)?;
    build("portmap-user", &["--bins"])?;
    let directory = workspace::metadata()?.target_directory.join("release");
    println!("built {}/portmapd, portmap and portmap-bpf", directory.display());
    Ok(())
}

/// Builds everything the demonstration needs and becomes it.
pub(crate) fn demo(forwarded: &Forwarded) -> Result<Infallible> {
    become_program("demo", "portmap-demo", forwarded)
}

/// Builds everything the benchmarks need and becomes them.
pub(crate) fn bench(forwarded: &Forwarded) -> Result<Infallible> {
    become_program("bench", "portmap-bench", forwarded)
}

/// Fails, in one line, unless this process may make network namespaces.
pub(crate) fn require_root(task: &str) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("cargo xtask {task} needs root, to make network namespaces and load BPF programs");
    }
    Ok(())
}

fn become_program(task: &str, program: &str, forwarded: &Forwarded) -> Result<Infallible> {
    require_root(task)?;
    setup::ensure(&[Group::Build, Group::Run], Report::Changes)?;
    build("portmap-user", &["--bins"])?;
    build("portmap-tests", &["--bin", program])?;
    let file = workspace::metadata()?.target_directory.join("release").join(program);
    let error = Command::new(&file).args(&forwarded.arguments).exec();
    Err(error).with_context(|| format!("cannot run {}", file.display()))
}

fn build(package: &str, what: &[&str]) -> Result<()> {
    process::run(workspace::cargo().args(["build", "--release", "--package", package]).args(what))
}
