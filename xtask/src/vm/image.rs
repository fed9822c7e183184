//! Kernels from Debian packages, which are unpacked into the user's cache.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::Kernel;
use crate::{
    process,
    setup::{self, unpacked},
};

/// An unpacked kernel package.
pub(crate) struct Image {
    /// Directory with the package's `boot` and `lib/modules`.
    pub root: PathBuf,
    /// The kernel's release (`uname -r`).
    pub release: String,
}

/// A package in the archive.
struct Package {
    name: String,
    version: String,
}

impl Image {
    /// Returns the newest kernel of the series, from the cache or else from the archive.
    pub(crate) fn find(kernel: Kernel) -> Result<Self> {
        if env::consts::ARCH != "x86_64" {
            bail!("virtual machines need an x86_64 machine, this one is {}", env::consts::ARCH);
        }
        let cache = unpacked::cache("kernels")?;
        match resolve(kernel) {
            Ok(package) => {
                let root = cache.join(format!("{}_{}", package.name, package.version));
                if !root.exists() {
                    download(&package, &root)?;
                }
                Self::read(root)
            }
            // Without package lists, fall back to a cached kernel.
            Err(error) => newest_cached(kernel, &cache).ok_or(error),
        }
    }

    /// Returns the path of the kernel.
    pub(super) fn kernel(&self) -> PathBuf {
        self.root.join("boot").join(format!("vmlinuz-{}", self.release))
    }

    fn read(root: PathBuf) -> Result<Self> {
        for entry in fs::read_dir(root.join("boot")).with_context(|| broken(&root))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if let Some(release) = name.strip_prefix("vmlinuz-") {
                return Ok(Self { root, release: release.to_owned() });
            }
        }
        bail!("{}", broken(&root))
    }
}

fn broken(root: &Path) -> String {
    format!("{} has no kernel in its directory `boot`: remove it, and it is downloaded again", root.display())
}

/// Returns the package on which the series' metapackage depends.
fn resolve(kernel: Kernel) -> Result<Package> {
    let metapackage = kernel.metapackage();
    if process::find("apt-cache").is_none() {
        bail!("kernels come from Debian packages: expected `apt-cache` to look up {metapackage}");
    }
    if let Ok(package) = look_up(metapackage) {
        return Ok(package);
    }
    // Package lists are missing, or too old to contain the metapackage.
    setup::update_package_lists()?;
    look_up(metapackage)
}

fn look_up(metapackage: &str) -> Result<Package> {
    let depends = process::read(Command::new("apt-cache").args(["depends", "--important", metapackage]))?;
    let name = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: linux-image-"))
        .map(|rest| format!("linux-image-{rest}"))
        .with_context(|| format!("package {metapackage} depends on no kernel, but on: {depends}"))?;
    let shown = process::read(Command::new("apt-cache").args(["show", "--no-all-versions", &name]))?;
    let version = shown
        .lines()
        .find_map(|line| line.strip_prefix("Version: "))
        .with_context(|| format!("package {name} has no version"))?
        .to_owned();
    Ok(Package { name, version })
}

/// Downloads and unpacks a kernel, with the index of its modules.
fn download(package: &Package, root: &Path) -> Result<()> {
    let Package { name, version } = package;
    println!("downloading kernel {name} {version}");
    unpacked::unpack(&format!("{name}={version}"), root, |tree| {
        let release = Image::read(tree.to_owned())?.release;
        process::run_silently(process::command("depmod").arg("--basedir").arg(tree).arg(release))
    })
}

/// Returns the most recently downloaded kernel of the series.
fn newest_cached(kernel: Kernel, cache: &Path) -> Option<Image> {
    let prefix = format!("linux-image-{}.", kernel.line());
    fs::read_dir(cache)
        .ok()?
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .max_by_key(|entry| entry.metadata().and_then(|metadata| metadata.modified()).ok())
        .and_then(|entry| Image::read(entry.path()).ok())
}
