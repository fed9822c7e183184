//! Provides the BPF objects that the library embeds: the committed ones if they are up to date, else new ones.

use std::{env, fs};

use anyhow::{Context as _, Result, bail};

#[path = "../portmap-ebpf/build_bpf.rs"]
mod build_bpf;
#[path = "../portmap-ebpf/objects.rs"]
mod objects;

fn main() -> Result<()> {
    let variable = objects::VARIABLE;
    println!("cargo::rerun-if-env-changed={variable}");
    let must_build = match env::var(variable).as_deref() {
        Err(_) | Ok("" | "auto") => false,
        Ok(objects::SOURCE) => true,
        Ok(other) => bail!(
            "{variable} is {other:?}: expected \"auto\" (the committed objects if they are up to date) or \"source\""
        ),
    };
    // Cargo sets it for the feature. The committed objects are without.
    let logs = env::var_os("CARGO_FEATURE_DATAPATH_LOG").is_some();
    let committed = if must_build || logs { None } else { take_committed()? };
    let compiler = match committed {
        Some(compiler) => Some(compiler),
        None => build_bpf::build("portmap-ebpf", if logs { "datapath-log" } else { "" }, &objects::NAMES)?,
    };
    println!("cargo::rustc-check-cfg=cfg(bpf_stub)");
    if compiler.is_none() {
        println!("cargo::rustc-cfg=bpf_stub");
    }
    println!("cargo::rustc-env=PORTMAP_BPF_COMPILER={}", compiler.as_deref().unwrap_or("none"));
    Ok(())
}

/// Copies the committed objects to `OUT_DIR` if they are up to date and for this architecture. Returns their compiler.
fn take_committed() -> Result<Option<String>> {
    let workspace = build_bpf::workspace()?;
    for sources in ["portmap-ebpf", "portmap-common"] {
        println!("cargo::rerun-if-changed={}", workspace.join(sources).display());
    }
    let Some(record) = objects::Record::read(&workspace) else { return Ok(None) };
    let is_for_here = env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == objects::ARCHITECTURE);
    if !is_for_here
        || objects::digest(&workspace).context("cannot read the programs' sources")? != record.sources
    {
        return Ok(None);
    }
    let out = build_bpf::out()?;
    for object in objects::NAMES {
        let file = objects::file(&workspace, object);
        fs::copy(&file, out.join(object)).with_context(|| format!("cannot copy {}", file.display()))?;
    }
    Ok(Some(record.compiler))
}
