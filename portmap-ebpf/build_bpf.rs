//! Builds BPF objects for a package that embeds them. The package's build script includes this file.
//!
//! It replaces the crate aya-build, with three differences: cargo's output is printed only if the build
//! fails, all profiles share one build, and the objects contain no paths of the building machine.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

#[path = "toolchain.rs"]
mod toolchain;

/// Builds the binaries of a package for BPF, with a feature unless that is empty, and copies them to the build
/// script's `OUT_DIR`. Without a BPF toolchain it writes empty files and returns `None`; otherwise it returns
/// name and version of the compiler and the linker.
pub(crate) fn build(package: &str, feature: &str, objects: &[&str]) -> Result<Option<String>> {
    let out = out()?;
    let workspace = workspace()?;
    println!("cargo::rerun-if-env-changed={}", toolchain::VARIABLE);
    println!("cargo::rerun-if-env-changed=PATH");
    for sources in ["portmap-ebpf", "portmap-common", "Cargo.toml"] {
        println!("cargo::rerun-if-changed={}", workspace.join(sources).display());
    }
    if let Some(name) = toolchain::find().filter(|_| toolchain::linker_runs()) {
        build_with(&name, package, feature, objects, &out)?;
        return Ok(Some(toolchain::compiler(&name)));
    }
    // Cargo cannot notice that the tools are installed. A file that does not exist makes it run this script
    // each time.
    println!("cargo::rerun-if-changed={}", out.join("no-such-file").display());
    for object in objects {
        fs::write(out.join(object), []).with_context(|| format!("cannot write the stub {object}"))?;
    }
    Ok(None)
}

/// Builds the objects with a rustup toolchain and copies them to `OUT_DIR`.
fn build_with(toolchain: &str, package: &str, feature: &str, objects: &[&str], out: &Path) -> Result<()> {
    let host = toolchain::Host {
        architecture: &variable("CARGO_CFG_TARGET_ARCH")?,
        is_big_endian: variable("CARGO_CFG_TARGET_ENDIAN")? == "big",
    };
    let built = toolchain::Build {
        toolchain,
        package,
        feature,
        host,
        workspace: &workspace()?,
        target: target_directory(out)?,
    };
    let mut command = built.command();
    let output = command.output().context("cannot run rustup")?;
    if !output.status.success() {
        bail!("{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    for object in objects {
        let built = built.object(object);
        fs::copy(&built, out.join(object)).with_context(|| format!("cannot copy {}", built.display()))?;
    }
    Ok(())
}

/// Returns cargo's target directory. Cargo does not pass its path to build scripts, but marks it with a
/// `CACHEDIR.TAG`.
fn target_directory(out: &Path) -> Result<&Path> {
    let is_marked = |directory: &&Path| directory.join("CACHEDIR.TAG").exists();
    out.ancestors().find(is_marked).context("cargo marks its target directory by a CACHEDIR.TAG")
}

/// Returns the build script's `OUT_DIR`.
pub(crate) fn out() -> Result<PathBuf> {
    Ok(variable("OUT_DIR")?.into())
}

/// Returns the workspace's directory. The packages that embed objects are direct subdirectories of it.
pub(crate) fn workspace() -> Result<PathBuf> {
    let workspace = Path::new(&variable("CARGO_MANIFEST_DIR")?).join("..");
    workspace.canonicalize().context("the workspace has a directory")
}

fn variable(name: &str) -> Result<String> {
    env::var(name).with_context(|| format!("cargo sets {name}"))
}
