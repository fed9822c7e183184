//! The compiler and the linker for BPF.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::{Report, apt, installing};
use crate::{process, toolchain};

/// Debian's recent compiler (packaged for browsers), cargo, and the sources of `core`.
const COMPILER_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

/// Ensures that a toolchain can build the BPF programs.
pub(super) fn ensure_compiler(report: Report) -> Result<()> {
    if let Some(name) = toolchain::find()
        && toolchain::linker_runs()
    {
        let version = version_line(&name, "rustc").with_context(|| {
            format!(
                "toolchain {name}, named by {}, does not run: expected one that `rustup toolchain list` shows",
                toolchain::VARIABLE
            )
        })?;
        report.found(format_args!("BPF toolchain {name}: {version}, with bpf-linker"));
        return Ok(());
    }
    let name = match toolchain::find() {
        Some(name) => name,
        None => link_distribution_compiler()?.to_owned(),
    };
    if !toolchain::linker_runs() {
        install_linker(&name)?;
    }
    if !toolchain::linker_runs() {
        bail!(
            "bpf-linker was installed but does not run: expected cargo's directory of binaries in PATH, such as \
             ~/.cargo/bin"
        );
    }
    report.found(format_args!("BPF toolchain {name}, with bpf-linker"));
    Ok(())
}

/// Ensures that the toolchain of the BPF programs has clippy.
pub(super) fn ensure_lints(report: Report) -> Result<()> {
    let name = toolchain::find().context("no BPF toolchain: run `cargo xtask setup build`")?;
    if let Ok(version) = version_line(&name, "cargo-clippy") {
        report.found(format_args!("lints of toolchain {name}: {version}"));
        return Ok(());
    }
    if name != toolchain::LINKED {
        bail!("toolchain {name} has no clippy: run `rustup component add clippy --toolchain {name}`");
    }
    apt::install(&["rust-web-clippy".to_owned()], "lints of the BPF programs")
}

/// Links the distribution's compiler as a rustup toolchain and returns its name.
fn link_distribution_compiler() -> Result<&'static str> {
    let [rustc, _] = toolchain::PINNED;
    if !apt::usable() {
        bail!(
            "no toolchain can build the BPF programs: run `rustup toolchain install {rustc} --component rust-src`, \
             or this command as root on Debian"
        );
    }
    apt::install(&COMPILER_PACKAGES.map(str::to_owned), "the BPF compiler")?;
    let name = toolchain::LINKED;
    installing(format_args!("rustup toolchain {name}, a link to /usr"));
    process::run_silently(Command::new("rustup").args(["toolchain", "link", name, "/usr"]))?;
    if toolchain::find().as_deref() != Some(name) {
        bail!(
            "toolchain {name} has no sources of `core`: expected them in /usr/lib/rustlib/src/rust, from package \
             rust-web-src"
        );
    }
    Ok(name)
}

/// Builds the linker with the LLVM release of the toolchain's compiler, because it must read its bitcode.
fn install_linker(name: &str) -> Result<()> {
    let llvm = llvm_release(name)?;
    let [_, linker] = toolchain::PINNED;
    let packages = [
        "g++".to_owned(),
        format!("llvm-{llvm}-dev"),
        format!("libclang-common-{llvm}-dev"),
        format!("libpolly-{llvm}-dev"),
        "zlib1g-dev".to_owned(),
        "libzstd-dev".to_owned(),
        "libxml2-dev".to_owned(),
    ];
    if !apt::usable() {
        bail!(
            "bpf-linker is missing: install LLVM {llvm} with its headers, then run `cargo install bpf-linker \
             --version {linker} --no-default-features --features llvm-{llvm}`"
        );
    }
    apt::install(&packages, "building bpf-linker")?;
    installing(format_args!("bpf-linker {linker} with LLVM {llvm} (takes about a minute)"));
    process::run_silently(
        Command::new("cargo")
            .args(["install", "bpf-linker", "--locked", "--version", linker])
            .args(["--no-default-features", "--features", &format!("llvm-{llvm}")])
            .env("LLVM_PREFIX", format!("/usr/lib/llvm-{llvm}")),
    )
}

/// Returns the major release of the LLVM in the toolchain's compiler.
fn llvm_release(name: &str) -> Result<String> {
    let text = process::read(process::in_toolchain(name).args(["rustc", "--version", "--verbose"]))?;
    text.lines()
        .find_map(|line| line.strip_prefix("LLVM version: ")?.split('.').next())
        .map(str::to_owned)
        .with_context(|| {
            format!("rustc of toolchain {name} does not name its LLVM version, but prints: {text}")
        })
}

fn version_line(name: &str, program: &str) -> Result<String> {
    Ok(process::read(process::in_toolchain(name).args([program, "--version"]))?.trim().to_owned())
}
