//! Release builds, and the programs that need one.

use std::{
    convert::Infallible, ffi::OsString, fs, os::unix::process::CommandExt as _, path::PathBuf,
    process::Command,
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
/// The CNI plugin. It is linked statically: runtimes start it for each container, and may do so in another file system.
const PLUGIN: &str = "portmap-bpf";

/// Arguments that are passed on unchanged.
#[derive(Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Forwarded {
    /// Arguments of the program; `--help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) arguments: Vec<OsString>,
}

/// The feature with which programs log verdicts.
pub(crate) const DATAPATH_LOG: &str = "datapath-log";

/// Options of a release build.
#[derive(Args)]
pub(crate) struct Options {
    /// A feature that is off by default: `datapath-log` (docs/datapath-log.md).
    #[arg(long, value_name = "FEATURE", value_parser = [DATAPATH_LOG])]
    features: Option<String>,
}

/// Builds the daemon and the command-line tools.
pub(crate) fn release(options: &Options) -> Result<()> {
    if options.features.is_some() {
        // The committed objects are without.
        setup::ensure(&[Group::Build], Report::Changes)?;
    } else {
        ensure_objects()?;
    }
    build(&PROGRAMS, &[], options.features.as_deref())?;
    let mut plugin = workspace::cargo();
    plugin.args(["rustc", "--release", "--package", "portmap-cni", "--bin", PLUGIN]);
    process::run(plugin.args(["--", "-C", "target-feature=+crt-static"]))?;
    let directory = workspace::metadata()?.target_directory.join("release");
    let all = PROGRAMS.iter().chain([&PLUGIN]).map(|program| directory.join(program).display().to_string());
    println!("built {}", all.collect::<Vec<_>>().join(", "));
    Ok(())
}

/// Builds the demonstration with everything that it needs, and executes it in place of this process.
pub(crate) fn demo(forwarded: &Forwarded) -> Result<Infallible> {
    require_root("demo")?;
    ensure_objects()?;
    setup::ensure(&[Group::Run], Report::Changes)?;
    let file = built(&PROGRAMS, "portmap-demo", None)?;
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
    built(&PROGRAMS, program, None)
}

/// Builds a program of the tests, which runs no others, with a feature. (A daemon with the feature must not stay
/// in place of the usual one.)
pub(crate) fn with_feature(task: &str, program: &str, feature: &str) -> Result<PathBuf> {
    require_root(task)?;
    setup::ensure(&[Group::Build, Group::Run], Report::Changes)?;
    built(&[], program, Some(feature))
}

/// Builds a program of the tests with the programs that it runs, and returns its path.
fn built(programs: &[&str], program: &str, feature: Option<&str>) -> Result<PathBuf> {
    build(programs, &[program], feature)?;
    Ok(workspace::metadata()?.target_directory.join("release").join(program))
}

/// Builds the daemon with [`DATAPATH_LOG`] for the tests, in the target directory's `debug/datapath-log`. The
/// usual programs must be built afterwards, because this replaces the daemon.
pub(crate) fn logging_daemon() -> Result<()> {
    let feature = format!("portmap-user/{DATAPATH_LOG}");
    // All packages, so that their dependencies have the features of the next build, and are built once.
    let arguments = ["build", "--workspace", "--bin", "portmapd", "--features", &feature];
    process::run(workspace::cargo().args(arguments))?;
    let debug = workspace::metadata()?.target_directory.join("debug");
    let directory = debug.join(DATAPATH_LOG);
    let (from, new) = (debug.join("portmapd"), directory.join("new"));
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    fs::copy(&from, &new).with_context(|| format!("cannot copy {}", from.display()))?;
    // A test may be running the earlier one.
    fs::rename(&new, directory.join("portmapd")).with_context(|| format!("cannot move {}", new.display()))
}

/// Executes another program in place of this process.
pub(crate) fn become_file(command: &mut Command) -> Result<Infallible> {
    Err(command.exec()).with_context(|| format!("cannot run `{}`", process::shown(command)))
}

/// Builds programs of a release and of the tests with one command: cargo then selects the same features for all
/// and builds no dependency twice.
fn build(programs: &[&str], others: &[&str], feature: Option<&str>) -> Result<()> {
    let mut command = workspace::cargo();
    command.args(["build", "--release", "--package", "portmap-user"]);
    if !others.is_empty() {
        command.args(["--package", "portmap-tests"]);
    }
    for program in programs.iter().chain(others) {
        command.args(["--bin", program]);
    }
    if let Some(feature) = feature {
        command.args(["--features", feature]);
    }
    process::run(&mut command)
}
