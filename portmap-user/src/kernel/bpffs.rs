//! bpffs, the file system of pinned maps, programs and links.

use std::{
    ffi::CString,
    fs,
    io::{self, ErrorKind},
    os::{
        fd::{FromRawFd as _, OwnedFd, RawFd},
        unix::{
            ffi::OsStrExt as _,
            fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown},
        },
    },
    path::Path,
};

use aya_obj::generated::bpf_cmd;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use crate::{
    failpoint,
    kernel::error::{Context as _, Error, Result},
    paths::Pins,
};

/// Creates the directories of pins, with mode 0700.
pub fn prepare(pins: &Pins) -> Result<()> {
    check_mounted(pins.bpffs())?;
    for directory in pins.directories() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .and_then(|()| failpoint::hit("made a directory for pins"))
            .context(|| format!("cannot create {}", directory.display()))?;
    }
    Ok(())
}

/// Lets the members of a group open the pinned maps for reading, or only root if `group` is `None`. The
/// kernel refuses writing with such a map, whatever `kernel.unprivileged_bpf_disabled` is.
pub fn permit(pins: &Pins, group: Option<u32>) -> Result<()> {
    let doing = |path: &Path| format!("cannot set the permissions of {}", path.display());
    let set = |path: &Path, mode: u32| -> io::Result<()> {
        let found = fs::symlink_metadata(path)?;
        let group = group.unwrap_or_default();
        if (found.gid(), found.mode() & 0o7777) != (group, mode) {
            chown(path, None, Some(group))?;
            fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        }
        Ok(())
    };
    let (directory_mode, map_mode) = if group.is_some() { (0o750, 0o640) } else { (0o700, 0o600) };
    let [maps, ..] = pins.directories();
    // --bpffs-dir may be shared with other programs, whose operator has chosen other permissions.
    let is_foreign = |directory: &Path| {
        directory == pins.bpffs()
            && fs::symlink_metadata(directory).is_ok_and(|found| {
                found.uid() != 0 || !matches!((found.mode() & 0o7777, found.gid()), (0o700, 0) | (0o750, _))
            })
    };
    for directory in [pins.bpffs().to_owned(), pins.root(), maps.clone()] {
        // --bpffs-dir may be a mount point, whose permissions the operator has chosen.
        let is_mount = statfs_device(&directory) != directory.parent().and_then(statfs_device);
        if !is_mount && !is_foreign(&directory) {
            failpoint::hit("set permissions of pins")
                .and_then(|()| set(&directory, directory_mode))
                .context(|| doing(&directory))?;
        }
    }
    for map in fs::read_dir(&maps).context(|| doing(&maps))? {
        let map = map.context(|| doing(&maps))?.path();
        set(&map, map_mode).context(|| doing(&map))?;
    }
    Ok(())
}

/// The device of a file.
fn statfs_device(path: impl AsRef<Path>) -> Option<u64> {
    fs::symlink_metadata(path).ok().map(|found| found.dev())
}

/// Fails unless `directory`, or the nearest directory above it that exists, is in a bpffs.
pub fn check_mounted(directory: &Path) -> Result<()> {
    let existing = directory.ancestors().find(|path| path.exists()).unwrap_or(directory);
    if statfs(existing).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC) {
        return Ok(());
    }
    Err(Error::failure(format!(
        "{} is not in a bpffs: mount one with `mount -t bpf bpf /sys/fs/bpf`, or pass another with --bpffs-dir",
        directory.display()
    )))
}

/// Removes a pin. Idempotent.
pub fn unpin(path: &Path) -> Result<()> {
    match failpoint::hit("unpin").and_then(|()| fs::remove_file(path)) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).context(|| format!("cannot remove the pin {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Opens a pinned object.
pub fn open(path: &Path) -> io::Result<OwnedFd> {
    /// `BPF_OBJ_GET` of `union bpf_attr`.
    #[repr(C)]
    struct Pin {
        path: u64,
        descriptor: u32,
        flags: u32,
    }
    let text = CString::new(path.as_os_str().as_bytes())?;
    let pin = Pin { path: text.as_ptr().expose_provenance() as u64, descriptor: 0, flags: 0 };
    // SAFETY: the attributes are those of the command and have its size; the kernel reads them and the path,
    // which ends with a zero and lives as long as the call.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, bpf_cmd::BPF_OBJ_GET as libc::c_long, &raw const pin, size_of::<Pin>())
    };
    let descriptor = RawFd::try_from(result).unwrap_or(-1);
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just opened the descriptor for this process, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Removes the empty directories of pins.
pub fn remove_directories(pins: &Pins) -> Result<()> {
    let mut directories = pins.directories().to_vec();
    // The directory of maps, which identifies a layout, last.
    directories.reverse();
    directories.extend([pins.root(), pins.bpffs().to_owned()]);
    for directory in directories {
        match failpoint::hit("remove a directory for pins").and_then(|()| fs::remove_dir(&directory)) {
            // Another layout, or another program's pin, may be beside ours.
            Err(error)
                if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty)
                // --bpffs-dir may be the root of the bpffs, which is a mount point.
                && error.kind() != ErrorKind::ResourceBusy =>
            {
                return Err(error).context(|| format!("cannot remove {}", directory.display()));
            }
            _ => {}
        }
    }
    Ok(())
}
