//! Builds the BPF object that the library embeds, or leaves an empty stub where no toolchain can build it.

use std::{env, fs, path::PathBuf};

use anyhow::{Context as _, Result};
use aya_build::{Package, Toolchain};

#[path = "../portmap-ebpf/toolchain.rs"]
mod toolchain;

/// Binaries of the BPF package.
const OBJECTS: [&str; 2] = ["portmap-ebpf", "portmap-bench"];

fn main() -> Result<()> {
    let out = PathBuf::from(env::var("OUT_DIR").context("cargo sets OUT_DIR")?);
    println!("cargo::rustc-check-cfg=cfg(bpf_stub)");
    println!("cargo::rerun-if-env-changed={}", toolchain::VARIABLE);
    println!("cargo::rerun-if-env-changed=PATH");
    println!("cargo::rerun-if-changed=../portmap-ebpf");
    println!("cargo::rerun-if-changed=../portmap-common");
    println!("cargo::metadata=directory={}", out.display());
    if let Some(name) = toolchain::find().filter(|_| toolchain::linker_runs()) {
        // `-Z build-std` is for nightly compilers; this lets any other one do the same.
        // SAFETY: the build script has a single thread.
        unsafe { env::set_var("RUSTC_BOOTSTRAP", "1") };
        let package = Package { name: "portmap-ebpf", root_dir: "../portmap-ebpf", ..Package::default() };
        return aya_build::build_ebpf([package], Toolchain::Custom(&name));
    }
    println!("cargo::rustc-cfg=bpf_stub");
    // Nothing that cargo watches changes when the tools are installed; a file that does not exist counts as changed.
    println!("cargo::rerun-if-changed={}", out.join("no-such-file").display());
    for object in OBJECTS {
        fs::write(out.join(object), []).with_context(|| format!("cannot write the stub {object}"))?;
    }
    Ok(())
}
