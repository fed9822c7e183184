//! Tells the benchmarks where the BPF objects are.

use std::env;

fn main() {
    // From the build script of portmap-user.
    let directory = env::var("DEP_PORTMAP_BPF_OBJECTS_DIRECTORY").unwrap_or_default();
    println!("cargo::rustc-env=BPF_OBJECTS={directory}");
    println!("cargo::rerun-if-changed=build.rs");
}
