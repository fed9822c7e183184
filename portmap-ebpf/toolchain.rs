//! Which Rust toolchain builds the BPF object: one rule, for the build script that uses it and for `cargo xtask`
//! that installs it.

use std::{
    env,
    path::Path,
    process::{Command, Stdio},
};

/// Environment variable that names a toolchain and ends the search.
pub(crate) const VARIABLE: &str = "PORTMAP_BPF_TOOLCHAIN";

/// Name under which a distribution's own compiler is linked into rustup.
pub(crate) const LINKED: &str = "portmap-bpf";

/// The rustup toolchain that can build `core` for BPF, if there is one.
pub(crate) fn find() -> Option<String> {
    if let Ok(name) = env::var(VARIABLE) {
        return Some(name);
    }
    ["nightly", LINKED].into_iter().find(|name| has_core_sources(name)).map(str::to_owned)
}

/// Whether the linker of the BPF target runs.
pub(crate) fn linker_runs() -> bool {
    let version =
        Command::new("bpf-linker").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    version.is_ok_and(|status| status.success())
}

/// Whether the toolchain is installed together with the sources of the standard library.
fn has_core_sources(toolchain: &str) -> bool {
    // Inside a build script these name the outer build's compiler, which rustup would then run.
    let output = Command::new("rustup")
        .args(["run", toolchain, "rustc", "--print", "sysroot"])
        .env_remove("RUSTC")
        .env_remove("RUSTUP_TOOLCHAIN")
        .stderr(Stdio::null())
        .output();
    let Ok(output) = output else { return false };
    let sysroot = String::from_utf8_lossy(&output.stdout);
    output.status.success() && Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core").exists()
}
