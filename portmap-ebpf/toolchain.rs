//! Which Rust toolchain builds the BPF object: one rule, for the build script that uses it and for `cargo xtask`
//! that installs it.

use std::{
    env,
    path::{Path, PathBuf},
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

/// The kind of machine that an object is for.
#[derive(Clone, Copy)]
pub(crate) struct Host<'a> {
    /// Its architecture, as cargo names it.
    pub(crate) architecture: &'a str,
    /// Whether its numbers begin with their most significant byte.
    pub(crate) is_big_endian: bool,
}

/// A build of the BPF binaries of a package.
pub(crate) struct Build<'a> {
    /// The rustup toolchain.
    pub(crate) toolchain: &'a str,
    /// The package.
    pub(crate) package: &'a str,
    /// What it is for.
    pub(crate) host: Host<'a>,
    /// Directory of the workspace.
    pub(crate) workspace: &'a Path,
    /// Cargo's target directory, below which all profiles share one for BPF.
    pub(crate) target: &'a Path,
}

impl Build<'_> {
    /// The command that builds.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new("rustup");
        command
            .args(["run", self.toolchain, "cargo", "build", "--release", "--package", self.package, "--bins"])
            .args(["-Z", "build-std=core", "--target", self.triple(), "--target-dir"])
            .arg(self.directory())
            .current_dir(self.workspace)
            .env("CARGO_ENCODED_RUSTFLAGS", self.flags())
            // `-Z build-std` is for nightly compilers; this lets any other one do the same.
            .env("RUSTC_BOOTSTRAP", "1");
        without_outer(&mut command);
        command
    }

    /// Where it leaves an object.
    pub(crate) fn object(&self, name: &str) -> PathBuf {
        self.directory().join(self.triple()).join("release").join(name)
    }

    fn directory(&self) -> PathBuf {
        self.target.join("bpf")
    }

    const fn triple(&self) -> &'static str {
        if self.host.is_big_endian { "bpfeb-unknown-none" } else { "bpfel-unknown-none" }
    }

    /// The compiler's flags, as `CARGO_ENCODED_RUSTFLAGS` has them.
    fn flags(&self) -> String {
        let home = || Some(Path::new(&env::var_os("HOME")?).join(".cargo"));
        let cargo = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(home).unwrap_or_default();
        let sysroot = sysroot(self.toolchain).unwrap_or_default();
        let mut flags = vec![
            // The layout of a traced process's registers, which BPF programs may ask for, is the host's.
            format!("--cfg=bpf_target_arch=\"{}\"", self.host.architecture),
            // The linker makes the BTF of the maps from debug information.
            "-Cdebuginfo=2".to_owned(),
            "-Clink-arg=--btf".to_owned(),
        ];
        for (path, name) in [
            (self.workspace, "portmap"),
            (&cargo.join("registry/src"), "registry"),
            (&sysroot.join("lib/rustlib/src/rust"), "rust"),
        ] {
            flags.push(format!("--remap-path-prefix={}={name}", path.display()));
        }
        flags.join("\x1f")
    }
}

/// Compiler and linker, with versions, in one line.
pub(crate) fn compiler(toolchain: &str) -> String {
    let output = |command: &mut Command| {
        let output = without_outer(command).output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
    };
    // Name and version; what follows is when and where from.
    let version = |text: &str| text.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
    let rustc = output(Command::new("rustup").args(["run", toolchain, "rustc", "--version", "--verbose"]));
    let llvm = rustc.lines().find_map(|line| line.strip_prefix("LLVM version: ")).unwrap_or("unknown");
    let linker = output(Command::new("bpf-linker").arg("--version"));
    format!("{} with LLVM {llvm}, {}", version(&rustc), version(&linker))
}

/// Whether the toolchain is installed together with the sources of the standard library.
fn has_core_sources(toolchain: &str) -> bool {
    sysroot(toolchain).is_some_and(|sysroot| sysroot.join("lib/rustlib/src/rust/library/core").exists())
}

/// Where the toolchain is, if it is.
fn sysroot(toolchain: &str) -> Option<PathBuf> {
    let mut command = Command::new("rustup");
    command.args(["run", toolchain, "rustc", "--print", "sysroot"]).stderr(Stdio::null());
    let output = without_outer(&mut command).output().ok()?;
    let sysroot = String::from_utf8_lossy(&output.stdout);
    output.status.success().then(|| sysroot.trim().into())
}

/// The command without what in a build script names the outer build's compiler, or what is to run in place of it.
fn without_outer(command: &mut Command) -> &mut Command {
    for name in ["RUSTC", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTUP_TOOLCHAIN"] {
        command.env_remove(name);
    }
    command
}
