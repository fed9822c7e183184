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

/// The programs that users get.
const PROGRAMS: [&str; 2] = ["portmapd", "portmap"];

/// Arguments that are handed on as they are.
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

/// Builds everything the demonstration needs and becomes it.
pub(crate) fn demo(forwarded: &Forwarded) -> Result<Infallible> {
    require_root("demo")?;
    ensure_objects()?;
    setup::ensure(&[Group::Run], Report::Changes)?;
    let file = built("portmap-demo")?;
    become_file(Command::new(file).args(&forwarded.arguments))
}

/// Fails, in one line, unless this process may make network namespaces.
pub(crate) fn require_root(task: &str) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("cargo xtask {task} needs root, to make network namespaces and load BPF programs");
    }
    Ok(())
}

/// Sees to it that there are BPF objects to embed: the committed ones will do as long as they are of these sources.
fn ensure_objects() -> Result<()> {
    if objects::must_be_built() { setup::ensure(&[Group::Build], Report::Changes) } else { Ok(()) }
}

/// Builds a program of the tests, and everything that it runs, with a compiler for BPF, and returns where it is.
pub(crate) fn with(task: &str, program: &str) -> Result<PathBuf> {
    require_root(task)?;
    setup::ensure(&[Group::Build, Group::Run], Report::Changes)?;
    built(program)
}

/// Builds a program of the tests, and everything that it runs, and returns where it is.
fn built(program: &str) -> Result<PathBuf> {
    build(&[program])?;
    Ok(workspace::metadata()?.target_directory.join("release").join(program))
}

/// Goes on as another program.
pub(crate) fn become_file(command: &mut Command) -> Result<Infallible> {
    Err(command.exec()).with_context(|| format!("cannot run `{}`", process::shown(command)))
}

/// Builds the programs that users get, and others besides, in one go: cargo then chooses the same features for all
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
