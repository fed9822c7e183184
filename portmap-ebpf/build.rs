//! Linker options of the BPF object.

use std::env;

/// Architectures whose kernels accept misaligned loads from packets (`CONFIG_HAVE_EFFICIENT_UNALIGNED_ACCESS`).
const MISALIGNED: [&str; 2] = ["x86_64", "aarch64"];

fn main() {
    // Without it every address in a header is put together from single bytes.
    if env::var("CARGO_CFG_BPF_TARGET_ARCH").is_ok_and(|arch| MISALIGNED.contains(&arch.as_str())) {
        println!("cargo::rustc-link-arg-bins=--cpu-features=+allows-misaligned-mem-access");
    }
    println!("cargo::rerun-if-changed=build.rs");
}
