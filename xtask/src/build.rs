//! Release builds, and the programs that need one.

use std::{
    convert::Infallible, ffi::OsString, os::unix::process::CommandExt as _, path::PathBuf, process::Command,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    objects, process,
    setup::{self, Group, Report},
    workspace,
};

/// The programs of a release.
const PROGRAMS: [&str; 2] = ["portmapd", "portmap"];

/// Arguments that are passed on unchanged.
#[derive(Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Forwarded {
    /// Arguments of the program; `--help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) arguments: Vec<OsString>,
}

/// Builds the daemon and the command-line tools.
pub(crate) fn release() -> Result<()> {
    ensure_objects()?;
    build(&[])?;
    let directory = workspace::metadata()?.target_directory.join("release");
    println!("built {}", PROGRAMS.map(|program| directory.join(program).display().to_string()).join(" and "));
    Ok(())
}

/// Builds the demonstration with everything that it needs, and executes it in place of this process.
pub(crate) fn demo(forwarded: &Forwarded) -> Result<Infallible> {
    require_root("demo")?;
    ensure_objects()?;
    setup::ensure(&[Group::Run], Report::Changes)?;
    let file = built("portmap-demo")?;
    become_file(Command::new(file).args(&forwarded.arguments))
}

/// Fails unless this process can create network namespaces.
pub(crate) fn require_root(task: &str) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("cargo xtask {task} needs root to create network namespaces and to load BPF programs");
    }
    Ok(())
}

/// Ensures that there are BPF objects to embed: the committed ones if they are up to date, else a toolchain
/// for BPF.
fn ensure_objects() -> Result<()> {
    if objects::must_be_built() { setup::ensure(&[Group::Build], Report::Changes) } else { Ok(()) }
}

/// Ensures a toolchain for BPF, builds a program of the tests with everything that it runs, and returns its
/// path.
pub(crate) fn with(task: &str, program: &str) -> Result<PathBuf> {
    require_root(task)?;
    setup::ensure(&[Group::Build, Group::Run], Report::Changes)?;
    built(program)
}

/// Builds a program of the tests with everything that it runs, and returns its path.
fn built(program: &str) -> Result<PathBuf> {
    build(&[program])?;
    Ok(workspace::metadata()?.target_directory.join("release").join(program))
}

/// Executes another program in place of this process.
pub(crate) fn become_file(command: &mut Command) -> Result<Infallible> {
    Err(command.exec()).with_context(|| format!("cannot run `{}`", process::shown(command)))
}

/// Builds the programs of a release and others with one command: cargo then selects the same features for all
/// and builds no dependency twice.
fn build(others: &[&str]) -> Result<()> {
    let mut command = workspace::cargo();
    command.args(["build", "--release", "--package", "portmap-user"]);
    if !others.is_empty() {
        command.args(["--package", "portmap-tests"]);
    }
    for program in PROGRAMS.iter().chain(others) {
        command.args(["--bin", program]);
    }
    process::run(&mut command)
}
