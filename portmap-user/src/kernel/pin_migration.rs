//! Pins of other versions of portmap: those of an earlier layout are migrated, those of a later one rejected.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use aya::maps::MapData;
use portmap_common::{LAYOUT_VERSION, names};
use tracing::{info, warn};

use super::{bpffs, programs};
use crate::{
    error::{self, Failures},
    failpoint,
    kernel::error::{Context as _, Error, Result},
    object,
    paths::Pins,
};

/// Prefix of the names of our maps and programs.
const PREFIX: &str = "pm_";

/// Returns the layouts with pins below `--bpffs-dir`, in ascending order.
fn layouts(bpffs: &Path) -> Result<Vec<u32>> {
    let doing = || format!("cannot read {}", bpffs.display());
    let entries = match fs::read_dir(bpffs) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.context(doing)?,
    };
    let mut versions = Vec::new();
    for entry in entries {
        let name = entry.context(doing)?.file_name();
        if let Some(version) = name.to_str().and_then(|name| name.strip_prefix('v')?.parse::<u32>().ok())
            && is_portmap(&Pins::of_layout(bpffs, version))?
        {
            versions.push(version);
        }
    }
    versions.sort_unstable();
    Ok(versions)
}

/// Whether a directory with the name of a layout is one: it has a directory of maps, and the names of all
/// maps and programs have our prefix. An empty one is the remains of a layout.
fn is_portmap(pins: &Pins) -> Result<bool> {
    let [maps, programs, _links] = pins.directories();
    let is_ours =
        |pin: &PathBuf| pin.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
    if pins_in(&pins.root())?.is_empty() {
        return Ok(true);
    }
    Ok(maps.is_dir() && pins_in(&maps)?.iter().chain(&pins_in(&programs)?).all(is_ours))
}

/// Returns the layouts of earlier versions.
pub fn earlier(bpffs: &Path) -> Result<Vec<Pins>> {
    let versions = layouts(bpffs)?.into_iter().filter(|version| *version < LAYOUT_VERSION);
    Ok(versions.map(|version| Pins::of_layout(bpffs, version)).collect())
}

/// Fails if there is a layout of a later version.
///
/// # Errors
///
/// [`Error::LaterLayout`]
pub fn refuse_later(bpffs: &Path) -> Result<()> {
    match layouts(bpffs)?.last() {
        Some(version) if *version > LAYOUT_VERSION => Err(Error::LaterLayout {
            root: Pins::of_layout(bpffs, *version).root(),
            supported: LAYOUT_VERSION,
        }),
        _ => Ok(()),
    }
}

/// Migrates the pins of earlier layouts: maps whose specification is unchanged, with their contents, and
/// links, whose programs stay in effect until each is replaced. Other maps are recreated empty; the caller
/// must fill them before it replaces any program.
pub fn migrate(pins: &Pins) -> Result<()> {
    for old in earlier(pins.bpffs())? {
        info!("migrating pins from {}", old.root().display());
        bpffs::prepare(pins)?;
        // Without the map of tail calls, because programs must not call those of another version.
        for spec in programs::specs(object::bytes())?.iter().filter(|spec| spec.name != names::MAP_TAIL_CALLS)
        {
            let (from, to) = (old.map(&spec.name), pins.map(&spec.name));
            if to.exists() || !from.exists() {
                continue;
            }
            if programs::spec_of_pin(&spec.name, &from)? != *spec {
                warn!(
                    "map {}: incompatible layout in {}, recreating it empty",
                    spec.name,
                    old.root().display()
                );
                continue;
            }
            let doing = || format!("cannot migrate the map {}", from.display());
            let map = MapData::from_pin(&from).context(doing)?;
            failpoint::hit("take a map over").context(doing)?;
            map.pin(&to).context(doing)?;
        }
        for from in pins_in(&old.links())? {
            let doing = || format!("cannot migrate the link {}", from.display());
            let Some(name) = from.file_name() else { continue };
            failpoint::hit("take a link over").context(doing)?;
            fs::rename(&from, pins.links().join(name)).context(doing)?;
        }
    }
    Ok(())
}

/// Removes the remains of earlier layouts.
pub fn remove_earlier(bpffs: &Path) -> error::Result<()> {
    let mut failures = Failures::default();
    for old in earlier(bpffs)? {
        for directory in old.directories() {
            for pin in pins_in(&directory)? {
                failures.note(bpffs::unpin(&pin));
            }
        }
        failures.note(bpffs::remove_directories(&old));
    }
    failures.into_result()
}

/// Lists the pins in a directory, which need not exist.
fn pins_in(directory: &Path) -> Result<Vec<PathBuf>> {
    let doing = || format!("cannot read {}", directory.display());
    match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries.context(doing)?.map(|entry| Ok(entry.context(doing)?.path())).collect(),
    }
}
