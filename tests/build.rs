//! Builds the BPF objects of the tests and benchmarks, and passes their directory to the compiler.

use std::env;

use anyhow::{Context as _, Result};

#[path = "../portmap-ebpf/build_bpf.rs"]
mod build_bpf;

fn main() -> Result<()> {
    println!("cargo::rerun-if-changed=ebpf");
    build_bpf::build("portmap-tests-ebpf", "", &["packet-source", "hostile"])?;
    println!("cargo::rustc-env=BPF_OBJECTS={}", env::var("OUT_DIR").context("cargo sets OUT_DIR")?);
    Ok(())
}
