//! Builds the BPF object that the library embeds, or leaves an empty stub where no toolchain can build it.

use std::{env, fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};
use aya_build::{Package, Toolchain};

#[path = "../portmap-ebpf/toolchain.rs"]
mod toolchain;

/// Binaries of the BPF package.
const OBJECTS: [&str; 4] = ["portmap-ebpf", "portmap-guard", "portmap-bench", "portmap-hostile"];

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
        println!("cargo::rustc-env=PORTMAP_BPF_COMPILER={}", compiler(&name));
        let package = Package { name: "portmap-ebpf", root_dir: "../portmap-ebpf", ..Package::default() };
        return aya_build::build_ebpf([package], Toolchain::Custom(&name));
    }
    println!("cargo::rustc-cfg=bpf_stub");
    println!("cargo::rustc-env=PORTMAP_BPF_COMPILER=none");
    // Nothing that cargo watches changes when the tools are installed; a file that does not exist counts as changed.
    println!("cargo::rerun-if-changed={}", out.join("no-such-file").display());
    for object in OBJECTS {
        fs::write(out.join(object), []).with_context(|| format!("cannot write the stub {object}"))?;
    }
    Ok(())
}

/// What compiles the object, in one line.
fn compiler(toolchain: &str) -> String {
    let version = |command: &mut Command| {
        let output = command.env_remove("RUSTC").env_remove("RUSTUP_TOOLCHAIN").output();
        let output = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        let text = output.unwrap_or_default();
        // Name and version; what follows is when and where from.
        text.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
    };
    let rustc = version(Command::new("rustup").args(["run", toolchain, "rustc", "--version"]));
    let linker = version(Command::new("bpf-linker").arg("--version"));
    format!("{rustc}, {linker}")
}
