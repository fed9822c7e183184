//! Everything that must hold before a test is run: format, wording, structure, lints, documentation,
//! dependencies.

use std::{
    env,
    io::{self, Write as _},
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    fuzz, graph, objects, process,
    setup::{self, Group, Report},
    toolchain, workspace,
};

mod citations;
mod columns;
mod files;
mod hits;
mod manifests;
mod wording;
mod words;

/// Which checks to run.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Names of checks, or parts of names such as `words` or `lints`; all checks by default.
    names: Vec<String>,
}

/// How a check ended, unless it failed.
enum Outcome {
    Passed,
    /// The machine lacks something that the check needs; the text says what.
    NotChecked(String),
}

/// The name of a check, and its function.
type Check = (&'static str, fn() -> Result<Outcome>);

const CHECKS: [Check; 14] = [
    ("format", format),
    ("retired words", || wording::check().map(passed)),
    ("line lengths", || columns::check().map(passed)),
    ("citations", || citations::check().map(passed)),
    ("module graph", || graph::check().map(passed)),
    ("workspace lints in every manifest", || manifests::check().map(passed)),
    ("unused dependencies", unused_dependencies),
    ("lints, host", host_lints),
    ("lints, BPF", bpf_lints),
    ("lints, fuzz targets", fuzz_lints),
    ("committed BPF objects", committed_objects),
    ("documentation", documentation),
    ("licences and sources", licences),
    ("advisories", advisories),
];

/// Runs the checks, also after a failure, and lists the failures at the end.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let names = &arguments.names;
    let is_chosen = |check: &&Check| names.is_empty() || names.iter().any(|name| check.0.contains(&**name));
    let chosen: Vec<&Check> = CHECKS.iter().filter(is_chosen).collect();
    if chosen.is_empty() {
        let known = CHECKS.map(|(name, _)| name).join(", ");
        bail!("no check is named {}: expected a part of {known}", names.join(" or "));
    }
    let mut failures = Vec::new();
    for (name, check) in &chosen {
        print!("check {name}: ");
        io::stdout().flush()?;
        let start = Instant::now();
        let outcome = check();
        let seconds = start.elapsed().as_secs_f64();
        match outcome {
            Ok(Outcome::Passed) => println!("ok ({seconds:.1} s)"),
            Ok(Outcome::NotChecked(why)) => println!("not checked: {why} ({seconds:.1} s)"),
            Err(error) => {
                println!("FAILED ({seconds:.1} s)");
                failures.push((*name, error));
            }
        }
    }
    for (name, error) in &failures {
        println!("\nfailed: {name}\n{error:#}");
    }
    if failures.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let names: Vec<_> = failures.iter().map(|(name, _)| *name).collect();
    println!("\n{} of {} checks failed: {}", failures.len(), chosen.len(), names.join("; "));
    Ok(ExitCode::FAILURE)
}

fn format() -> Result<Outcome> {
    process::run_silently(workspace::cargo().args(["fmt", "--all", "--check"]))?;
    // The fuzz targets are a workspace of their own.
    pass(workspace::cargo().args(["fmt", "--check", "--manifest-path"]).arg(fuzz::manifest()))
}

/// Dependencies that a manifest declares and no source file of its package uses.
fn unused_dependencies() -> Result<Outcome> {
    setup::ensure(&[Group::Dependencies], Report::Changes)?;
    process::run_silently(workspace::cargo().args(["shear", "--offline"]))?;
    let fuzz = fuzz::manifest();
    let directory = fuzz.parent().context("a manifest is in a directory")?;
    pass(workspace::cargo().args(["shear", "--offline"]).arg(directory))
}

fn host_lints() -> Result<Outcome> {
    setup::ensure(&[Group::Build], Report::Changes)?;
    let lint = |features: &str| {
        let mut command = workspace::cargo();
        command.args(["clippy", "--quiet", "--workspace", "--all-targets", "--features", features]);
        process::run_silently(command.args(["--", "--deny", "warnings"]))
    };
    lint("")?;
    // Packages that depend on this one are linted with it.
    lint("portmap-tests/datapath-log").map(passed)
}

/// Lints of the BPF programs for their own target, because the host never compiles the code behind its `cfg`.
fn bpf_lints() -> Result<Outcome> {
    setup::ensure(&[Group::Build, Group::BpfLints], Report::Changes)?;
    let name = toolchain::find().context("no BPF toolchain: run `cargo xtask setup build`")?;
    let target = if cfg!(target_endian = "little") { "bpfel-unknown-none" } else { "bpfeb-unknown-none" };
    let directory = workspace::metadata()?.target_directory.join("bpf-lints");
    let mut command = process::in_toolchain(&name);
    command
        .current_dir(workspace::root())
        .args([
            "cargo",
            "clippy",
            "--quiet",
            "--package",
            "portmap-ebpf",
            "--package",
            "portmap-tests-ebpf",
            "--lib",
            "--bins",
            // It only adds code.
            "--features",
            "portmap-ebpf/datapath-log",
            "--target",
            target,
        ])
        .args(["-Z", "build-std=core", "--target-dir"])
        .arg(directory)
        .args(["--", "--deny", "warnings"])
        // `-Z` needs a nightly compiler; this variable makes any other one accept it.
        .env("RUSTC_BOOTSTRAP", "1")
        // BPF programs may read a traced process's registers, whose layout is the host's.
        .env("CARGO_ENCODED_RUSTFLAGS", format!("--cfg=bpf_target_arch=\"{}\"", env::consts::ARCH));
    pass(&mut command)
}

/// The objects that users without a BPF toolchain get.
fn committed_objects() -> Result<Outcome> {
    setup::ensure(&[Group::Build], Report::Changes)?;
    Ok(objects::check()?.map_or(Outcome::Passed, Outcome::NotChecked))
}

/// Lints of the fuzz targets, which no other check compiles. Nothing is linked, so libFuzzer and its compiler
/// are not needed.
fn fuzz_lints() -> Result<Outcome> {
    let mut command = workspace::cargo();
    command
        .args(["clippy", "--quiet", "--all-targets", "--manifest-path"])
        .arg(fuzz::manifest())
        .arg("--target-dir")
        .arg(fuzz::target_directory()?)
        .args(["--", "--deny", "warnings"])
        .env("CUSTOM_LIBFUZZER_PATH", "/not/linked/libfuzzer.a");
    pass(&mut command)
}

fn documentation() -> Result<Outcome> {
    setup::ensure(&[Group::Build], Report::Changes)?;
    pass(
        workspace::cargo()
            .args(["doc", "--quiet", "--workspace", "--no-deps", "--document-private-items"])
            .env("RUSTDOCFLAGS", "--deny=warnings"),
    )
}

fn licences() -> Result<Outcome> {
    setup::ensure(&[Group::Dependencies], Report::Changes)?;
    each_workspace(&["--hide-inclusion-graph", "bans", "licenses", "sources"])
}

/// Runs cargo-deny on the dependencies of this workspace, and on those of the fuzz targets.
fn each_workspace(checks: &[&str]) -> Result<Outcome> {
    let root = workspace::root();
    for manifest in [root.join("Cargo.toml"), fuzz::manifest()] {
        let mut command = workspace::cargo();
        command.args(["deny", "--manifest-path"]).arg(manifest).arg("--config");
        process::run_silently(command.arg(root.join("deny.toml")).arg("check").args(checks))?;
    }
    Ok(Outcome::Passed)
}

fn advisories() -> Result<Outcome> {
    setup::ensure(&[Group::Dependencies], Report::Changes)?;
    // The database is a remote repository. A machine that cannot reach it can still check everything else.
    if let Err(error) = process::run_silently(workspace::cargo().args(["deny", "fetch", "db"])) {
        let text = format!("{error:#}");
        let reason = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no reason given");
        return Ok(Outcome::NotChecked(format!(
            "the advisory database cannot be fetched: {}",
            reason.trim()
        )));
    }
    each_workspace(&["--disable-fetch", "advisories"])
}

fn pass(command: &mut Command) -> Result<Outcome> {
    process::run_silently(command).map(passed)
}

const fn passed((): ()) -> Outcome {
    Outcome::Passed
}
