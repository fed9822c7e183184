//! Builds BPF objects for a package that embeds them: its build script includes this file.
//!
//! This is what the crate aya-build does, apart from three things: cargo's output is shown only when the build fails, all
//! profiles share one build, and paths of the building machine stay out of the objects.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

#[path = "toolchain.rs"]
mod toolchain;

/// Builds binaries of a package for BPF and leaves them in the build script's `OUT_DIR`: empty ones if no toolchain can build
/// them. Returns name and version of the compiler and the linker, if there are any.
pub(crate) fn build(package: &str, objects: &[&str]) -> Result<Option<String>> {
    let out = out()?;
    let workspace = workspace()?;
    println!("cargo::rerun-if-env-changed={}", toolchain::VARIABLE);
    println!("cargo::rerun-if-env-changed=PATH");
    for sources in ["portmap-ebpf", "portmap-common", "Cargo.toml"] {
        println!("cargo::rerun-if-changed={}", workspace.join(sources).display());
    }
    if let Some(name) = toolchain::find().filter(|_| toolchain::linker_runs()) {
        build_with(&name, package, objects, &out)?;
        return Ok(Some(toolchain::compiler(&name)));
    }
    // Nothing that cargo watches changes when the tools are installed; a file that does not exist counts as changed.
    println!("cargo::rerun-if-changed={}", out.join("no-such-file").display());
    for object in objects {
        fs::write(out.join(object), []).with_context(|| format!("cannot write the stub {object}"))?;
    }
    Ok(None)
}

/// Builds the objects with a toolchain of rustup, and copies them to where the package expects them.
fn build_with(toolchain: &str, package: &str, objects: &[&str], out: &Path) -> Result<()> {
    let host = toolchain::Host {
        architecture: &variable("CARGO_CFG_TARGET_ARCH")?,
        is_big_endian: variable("CARGO_CFG_TARGET_ENDIAN")? == "big",
    };
    let built = toolchain::Build {
        toolchain,
        package,
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

/// Cargo's target directory, which it does not tell: it marks it as one that need not be kept in a backup.
fn target_directory(out: &Path) -> Result<&Path> {
    let is_marked = |directory: &&Path| directory.join("CACHEDIR.TAG").exists();
    out.ancestors().find(is_marked).context("cargo marks its target directory by a CACHEDIR.TAG")
}

/// The build script's own directory.
pub(crate) fn out() -> Result<PathBuf> {
    Ok(variable("OUT_DIR")?.into())
}

/// Both packages that embed objects are directories of it.
pub(crate) fn workspace() -> Result<PathBuf> {
    let workspace = Path::new(&variable("CARGO_MANIFEST_DIR")?).join("..");
    workspace.canonicalize().context("the workspace has a directory")
}

fn variable(name: &str) -> Result<String> {
    env::var(name).with_context(|| format!("cargo sets {name}"))
}
