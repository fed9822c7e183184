//! Cargo's metadata of this workspace.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::process;

/// The parts of `cargo metadata` that are used here.
#[derive(Deserialize)]
pub(crate) struct Metadata {
    /// The members of the workspace.
    pub packages: Vec<Package>,
    /// Cargo's target directory.
    pub target_directory: PathBuf,
}

/// A member of the workspace.
#[derive(Deserialize)]
pub(crate) struct Package {
    /// Its name.
    pub name: String,
    /// Its `Cargo.toml`.
    pub manifest_path: PathBuf,
    /// Its libraries, binaries and tests.
    pub targets: Vec<Target>,
}

/// A target of a package.
#[derive(Deserialize)]
pub(crate) struct Target {
    /// Its name.
    pub name: String,
    /// Its kinds, such as `lib`, `bin` or `test`.
    pub kind: Vec<String>,
    /// The file with its root module.
    pub src_path: PathBuf,
}

/// A message of `cargo build --message-format=json`.
#[derive(Deserialize)]
struct Message {
    target: Option<Target>,
    manifest_path: Option<PathBuf>,
    executable: Option<PathBuf>,
}

/// Returns the workspace's directory.
pub(crate) fn root() -> PathBuf {
    // The variable at run time is right even if the tree was moved after the build.
    let member =
        env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    member.parent().map_or(member.clone(), Path::to_path_buf)
}

/// Returns a cargo command in the workspace's directory.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(root());
    command
}

/// Reads the workspace's metadata.
pub(crate) fn metadata() -> Result<Metadata> {
    let text = process::read(cargo().args(["metadata", "--format-version", "1", "--no-deps"]))?;
    serde_json::from_str(&text).context("cannot parse the output of `cargo metadata`")
}

/// Builds the integration tests of a member like `cargo test --workspace`, and returns their programs.
pub(crate) fn integration_tests(package: &Package) -> Result<Vec<PathBuf>> {
    let mut command = cargo();
    command.args(["test", "--workspace", "--no-run", "--quiet", "--message-format=json"]);
    let text = process::read(&mut command)?;
    let mut binaries = Vec::new();
    for line in text.lines().filter(|line| line.starts_with('{')) {
        let message: Message = serde_json::from_str(line)
            .with_context(|| format!("cannot parse this line of `cargo test --no-run`: {line}"))?;
        let Message { target: Some(target), manifest_path: Some(manifest), executable: Some(file) } = message
        else {
            continue;
        };
        if manifest == package.manifest_path && target.kind.iter().any(|kind| kind == "test") {
            binaries.push(file);
        }
    }
    if binaries.is_empty() {
        bail!("package {} has no integration tests: expected files in its `tests` directory", package.name);
    }
    Ok(binaries)
}
