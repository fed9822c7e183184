//! The toolchain of the BPF objects: which releases are pinned, how an installed one is found, and how it is
//! run. The build scripts and `cargo xtask` share this file.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// The pinned releases of rustc and bpf-linker: the committed objects and docs/instructions.md are made with
/// them. Other releases of rustc build objects that work but differ in bytes and in instruction counts.
pub(crate) const PINNED: [&str; 2] = ["1.96.0", "0.13.0"];

/// Environment variable that names a toolchain and ends the search.
pub(crate) const VARIABLE: &str = "PORTMAP_BPF_TOOLCHAIN";

/// Name under which a distribution's own compiler is linked into rustup.
pub(crate) const LINKED: &str = "portmap-bpf";

/// Returns the rustup toolchain that builds `core` for BPF: one of the pinned release if possible, else any
/// that has the sources of `core`.
pub(crate) fn find() -> Option<String> {
    if let Ok(name) = env::var(VARIABLE) {
        return Some(name);
    }
    let [rustc, _] = PINNED;
    let usable: Vec<&str> =
        [LINKED, rustc, "nightly"].into_iter().filter(|name| has_core_sources(name)).collect();
    let pinned = usable.iter().find(|name| release(name).as_deref() == Some(rustc));
    pinned.or(usable.first()).map(|name| (*name).to_owned())
}

/// The release of a toolchain's rustc.
fn release(toolchain: &str) -> Option<String> {
    let output =
        without_outer(Command::new("rustup").args(["run", toolchain, "rustc", "--version"])).output();
    let text = String::from_utf8(output.ok()?.stdout).ok()?;
    text.split_whitespace().nth(1).map(str::to_owned)
}

/// Returns whether bpf-linker, the linker of the BPF target, runs.
pub(crate) fn linker_runs() -> bool {
    let version =
        Command::new("bpf-linker").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    version.is_ok_and(|status| status.success())
}

/// The host that an object is built for.
#[derive(Clone, Copy)]
pub(crate) struct Host<'a> {
    /// Its architecture by cargo's name.
    pub(crate) architecture: &'a str,
    /// Whether it is big-endian.
    pub(crate) is_big_endian: bool,
}

/// A build of the BPF binaries of a package.
pub(crate) struct Build<'a> {
    /// The rustup toolchain.
    pub(crate) toolchain: &'a str,
    /// The package.
    pub(crate) package: &'a str,
    /// Its feature; empty for none.
    pub(crate) feature: &'a str,
    /// The host that runs the programs.
    pub(crate) host: Host<'a>,
    /// Directory of the workspace.
    pub(crate) workspace: &'a Path,
    /// Cargo's target directory. All profiles share its subdirectory for BPF.
    pub(crate) target: &'a Path,
}

impl Build<'_> {
    /// Returns the command that builds.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new("rustup");
        command
            .args(["run", self.toolchain, "cargo", "build", "--release", "--package", self.package, "--bins"])
            .args(["--features", self.feature, "-Z", "build-std=core", "--target", self.triple()])
            .arg("--target-dir")
            .arg(self.directory())
            .current_dir(self.workspace)
            .env("CARGO_ENCODED_RUSTFLAGS", self.flags())
            // `-Z build-std` needs a nightly compiler; this variable makes any other one accept it.
            .env("RUSTC_BOOTSTRAP", "1");
        without_outer(&mut command);
        command
    }

    /// Returns the path of a built object.
    pub(crate) fn object(&self, name: &str) -> PathBuf {
        self.directory().join(self.triple()).join("release").join(name)
    }

    fn directory(&self) -> PathBuf {
        // Builds with and without a feature replace the same files.
        if self.feature.is_empty() {
            self.target.join("bpf")
        } else {
            self.target.join(format!("bpf-{}", self.feature))
        }
    }

    const fn triple(&self) -> &'static str {
        if self.host.is_big_endian { "bpfeb-unknown-none" } else { "bpfel-unknown-none" }
    }

    /// Returns the compiler's flags in the format of `CARGO_ENCODED_RUSTFLAGS`.
    fn flags(&self) -> String {
        let home = || Some(Path::new(&env::var_os("HOME")?).join(".cargo"));
        let cargo = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(home).unwrap_or_default();
        let sysroot = sysroot(self.toolchain).unwrap_or_default();
        let mut flags = vec![
            // BPF programs may read a traced process's registers, whose layout is the host's.
            format!("--cfg=bpf_target_arch=\"{}\"", self.host.architecture),
            // The linker generates the BTF of the maps from debug information.
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

/// Returns name and version of compiler and linker in one line.
pub(crate) fn compiler(toolchain: &str) -> String {
    let output = |command: &mut Command| {
        let output = without_outer(command).output();
        output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
    };
    // Name and version, without date and commit.
    let version = |text: &str| text.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
    let rustc = output(Command::new("rustup").args(["run", toolchain, "rustc", "--version", "--verbose"]));
    let llvm = rustc.lines().find_map(|line| line.strip_prefix("LLVM version: ")).unwrap_or("unknown");
    let linker = output(Command::new("bpf-linker").arg("--version"));
    format!("{} with LLVM {llvm}, {}", version(&rustc), version(&linker))
}

/// Returns whether the toolchain is installed together with the sources of `core`.
fn has_core_sources(toolchain: &str) -> bool {
    sysroot(toolchain).is_some_and(|sysroot| sysroot.join("lib/rustlib/src/rust/library/core").exists())
}

/// Returns the directory of an installed toolchain.
fn sysroot(toolchain: &str) -> Option<PathBuf> {
    let mut command = Command::new("rustup");
    command.args(["run", toolchain, "rustc", "--print", "sysroot"]).stderr(Stdio::null());
    let output = without_outer(&mut command).output().ok()?;
    let sysroot = String::from_utf8_lossy(&output.stdout);
    output.status.success().then(|| sysroot.trim().into())
}

/// Removes variables that a build script inherits from the outer build: they name its compiler or a wrapper
/// of it.
fn without_outer(command: &mut Command) -> &mut Command {
    for name in ["RUSTC", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTUP_TOOLCHAIN"] {
        command.env_remove(name);
    }
    command
}
