//! Debian packages that are unpacked into the user's cache instead of installed, because an installation would
//! start a service, or replace a kernel.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::{Report, apt, installing};
use crate::process;

/// A package with programs that the tests run. `portmap_tests::cache` finds them by its name.
const PROMETHEUS: &str = "prometheus";
/// Its programs.
const PROGRAMS: [&str; 2] = ["prometheus", "promtool"];

/// Ensures that Prometheus and its tool are installed or unpacked.
pub(super) fn ensure_prometheus(report: Report) -> Result<()> {
    let root = cache("tools")?.join(PROMETHEUS);
    let find = |program| {
        process::find(program)
            .or_else(|| Some(root.join("usr/bin").join(program)).filter(|file| file.is_file()))
    };
    let found: Vec<PathBuf> = PROGRAMS.iter().filter_map(|program| find(program)).collect();
    if found.len() == PROGRAMS.len() {
        for file in &found {
            report.found(file.display());
        }
        return Ok(());
    }
    if process::find("apt-get").is_none() {
        bail!(
            "missing for the tests of metrics: {}; expected them on the search path",
            PROGRAMS.join(" and ")
        );
    }
    installing(format_args!("{} in {}", PROGRAMS.join(" and "), root.display()));
    unpack(PROMETHEUS, &root, |_tree| Ok(()))
}

/// Container engines of Debian 12 with what they need, which few machines have installed. Tests see them as installed.
const ENGINES: [&str; 8] = [
    "conmon",
    "containerd",
    "golang-github-containers-common",
    "golang-github-containers-image",
    "libgpgme11",
    "libsubid4",
    "podman",
    "runc",
];

/// Ensures that container engines are unpacked. They are not installed, because their packages start services.
pub(super) fn ensure_engines(report: Report) -> Result<()> {
    let root = cache("tools")?.join("engines");
    if root.is_dir() {
        report.found(root.display());
        return Ok(());
    }
    if process::find("apt-get").is_none() {
        bail!("missing for the tests of container engines: apt-get, which downloads {}", ENGINES.join(", "));
    }
    installing(format_args!("{} in {}", ENGINES.join(", "), root.display()));
    unpack_all(&ENGINES, &root, |_tree| Ok(()))
}

/// A directory of the user's cache.
pub(crate) fn cache(kind: &str) -> Result<PathBuf> {
    let base = match env::var_os("XDG_CACHE_HOME") {
        Some(directory) if Path::new(&directory).is_absolute() => PathBuf::from(directory),
        _ => PathBuf::from(
            env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME says where the user's cache is")?,
        )
        .join(".cache"),
    };
    Ok(base.join("portmap").join(kind))
}

/// Downloads a package (`name`, or `name=version`) and unpacks it next to its final directory, completes it by
/// `prepare`, then renames it.
pub(crate) fn unpack(package: &str, root: &Path, prepare: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    unpack_all(&[package], root, prepare)
}

/// The same for several packages in one directory.
fn unpack_all(packages: &[&str], root: &Path, prepare: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let cache = root.parent().context("the root of a package is in a directory of the cache")?;
    fs::create_dir_all(cache).with_context(|| format!("cannot make {}", cache.display()))?;
    let work = tempfile::Builder::new().prefix(".unfinished-").tempdir_in(cache)?;
    let mut fetch = Command::new("apt-get");
    fetch.arg("download").args(packages).current_dir(work.path());
    if process::run_silently(&mut fetch).is_err() {
        // The archive removes a version when a newer one is released.
        apt::update()?;
        process::run_silently(&mut fetch)?;
    }
    let entries = fs::read_dir(work.path())?.filter_map(|entry| Some(entry.ok()?.path()));
    let is_archive = |file: &PathBuf| file.extension().is_some_and(|extension| extension == "deb");
    let archives: Vec<PathBuf> = entries.filter(is_archive).collect();
    let (names, tree) = (packages.join(" "), work.path().join("tree"));
    if archives.len() != packages.len() {
        let (count, work) = (archives.len(), work.path().display());
        bail!("`apt-get download {names}` left {count} packages in {work}: expected {}", packages.len());
    }
    for archive in &archives {
        process::run_silently(Command::new("dpkg").arg("--extract").args([archive, &tree]))?;
    }
    prepare(&tree)?;
    match fs::rename(&tree, root) {
        // A concurrent run was faster.
        Err(_) if root.exists() => Ok(()),
        result => result.with_context(|| format!("cannot move {names} to {}", root.display())),
    }
}
