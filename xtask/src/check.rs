//! What must hold before any test is run: format, lints, documentation, licences, advisories.

use std::{
    env, fs,
    io::{self, Write as _},
    path::PathBuf,
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    fuzz, objects, process,
    setup::{self, Group, Report},
    toolchain, workspace,
};

/// How a check ended, unless it failed.
enum Outcome {
    Passed,
    /// It could not be carried out, through no fault of the code.
    NotChecked(String),
}

/// A name for people, and what it does.
type Check = (&'static str, fn() -> Result<Outcome>);

const CHECKS: [Check; 9] = [
    ("format", format),
    ("workspace lints in every manifest", manifests),
    ("lints, host", host_lints),
    ("lints, BPF", bpf_lints),
    ("lints, fuzz targets", fuzz_lints),
    ("committed BPF objects", committed_objects),
    ("documentation", documentation),
    ("licences and sources", licences),
    ("advisories", advisories),
];

/// Runs every check, even after a failure, and lists the failures at the end.
pub(crate) fn run() -> Result<ExitCode> {
    setup::ensure(&[Group::Build], Report::Changes)?;
    let mut failures = Vec::new();
    for (name, check) in CHECKS {
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
                failures.push((name, error));
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
    println!("\n{} of {} checks failed: {}", failures.len(), CHECKS.len(), names.join("; "));
    Ok(ExitCode::FAILURE)
}

fn format() -> Result<Outcome> {
    process::run_silently(workspace::cargo().args(["fmt", "--all", "--check"]))?;
    // Which is in a workspace of its own.
    pass(workspace::cargo().args(["fmt", "--check", "--manifest-path"]).arg(fuzz::manifest()))
}

/// A member without the opt-in would be linted by nobody's rules.
fn manifests() -> Result<Outcome> {
    let mut without = Vec::new();
    for package in workspace::metadata()?.packages {
        let text = fs::read_to_string(&package.manifest_path)
            .with_context(|| format!("cannot read {}", package.manifest_path.display()))?;
        if !opts_in(&text) {
            without.push(package.manifest_path.display().to_string());
        }
    }
    if !without.is_empty() {
        bail!("expected `[lints]` with `workspace = true` in {}", without.join(", "));
    }
    let (here, there) = (workspace::root().join("Cargo.toml"), fuzz::manifest());
    let read =
        |file: &PathBuf| fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()));
    if !opts_in(&read(&there)?) {
        bail!("expected `[lints]` with `workspace = true` in {}", there.display());
    }
    if lints(&read(&here)?) != lints(&read(&there)?) {
        bail!("expected the lints of {} in {}, word for word", here.display(), there.display());
    }
    Ok(Outcome::Passed)
}

/// The lints that a workspace sets.
fn lints(manifest: &str) -> Vec<&str> {
    let mut is_inside = false;
    manifest
        .lines()
        .filter(|line| {
            if let Some(section) = line.strip_prefix('[') {
                is_inside = section.starts_with("workspace.lints.");
                return false;
            }
            is_inside && !line.starts_with('#') && !line.trim().is_empty()
        })
        .collect()
}

/// Whether a manifest takes its lints from the workspace.
fn opts_in(manifest: &str) -> bool {
    let mut section = "";
    manifest.lines().map(str::trim).any(|line| {
        if line.starts_with('[') {
            section = line;
        }
        let setting: String = line.split_whitespace().collect();
        match section {
            "[lints]" => setting == "workspace=true",
            "" => setting == "lints.workspace=true",
            _ => false,
        }
    })
}

fn host_lints() -> Result<Outcome> {
    pass(workspace::cargo().args([
        "clippy",
        "--quiet",
        "--workspace",
        "--all-targets",
        "--",
        "--deny",
        "warnings",
    ]))
}

/// The BPF programs again, for their own target: the host never compiles what is behind its `cfg`.
fn bpf_lints() -> Result<Outcome> {
    setup::ensure(&[Group::BpfLints], Report::Changes)?;
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
            "--target",
            target,
        ])
        .args(["-Z", "build-std=core", "--target-dir"])
        .arg(directory)
        .args(["--", "--deny", "warnings"])
        // `-Z` is for nightly compilers; this lets any other one do the same.
        .env("RUSTC_BOOTSTRAP", "1")
        // The layout of a traced process's registers, which BPF programs may ask for, is the host's.
        .env("CARGO_ENCODED_RUSTFLAGS", format!("--cfg=bpf_target_arch=\"{}\"", env::consts::ARCH));
    pass(&mut command)
}

/// What users without a BPF toolchain get.
fn committed_objects() -> Result<Outcome> {
    Ok(objects::check()?.map_or(Outcome::Passed, Outcome::NotChecked))
}

/// The fuzz targets, which no other check sees. Nothing is linked, so libFuzzer is not needed, nor its compiler.
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

/// Has cargo-deny look at the dependencies of this workspace, and at those of the fuzz targets.
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
    // The database is a repository elsewhere. A machine that cannot reach it can still check everything else.
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
    process::run_silently(command).map(|()| Outcome::Passed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_opt_in_is_found_in_both_spellings() {
        assert!(opts_in("[package]\nname = \"a\"\n\n[lints]\nworkspace = true\n"));
        assert!(opts_in("lints.workspace = true\n[package]\n"));
    }

    #[test]
    fn lints_are_the_same_wherever_they_are_listed() {
        let here =
            "[workspace.lints.rust]\na = 1\n# why\n\n[workspace.lints.clippy]\nb = 2\n[profile.dev]\nc = 3\n";
        assert_eq!(lints(here), ["a = 1", "b = 2"]);
    }

    #[test]
    fn other_sections_are_no_opt_in() {
        assert!(!opts_in("[dependencies]\nworkspace = true\n"));
        assert!(!opts_in("[lints]\n[lints.rust]\nworkspace = true\n"));
        assert!(!opts_in("[package]\nname = \"a\"\n"));
    }
}
