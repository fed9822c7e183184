//! Pinned objects, held open, so that a pin that another process removes can be restored.

use std::{
    ffi::CString,
    fs,
    io::{self, ErrorKind},
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
};

use aya_obj::generated::bpf_cmd;

use super::bpffs;
use crate::{
    failpoint,
    kernel::error::{Context as _, Error, Result},
    paths::Pins,
};

/// `BPF_OBJ_PIN` and `BPF_OBJ_GET` of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct Object {
    path: u64,
    fd: u32,
    flags: u32,
}

/// The open maps and programs of a daemon.
pub struct OpenPins {
    pins: Pins,
    objects: Vec<(PathBuf, OwnedFd)>,
}

impl OpenPins {
    /// Opens all pinned maps and programs.
    pub fn open(pins: &Pins) -> Result<Self> {
        let mut objects = Vec::new();
        for path in pins.lasting().into_iter().filter(|path| path.exists()) {
            let opened = failpoint::hit("open a pin").and_then(|()| get(&path));
            let object = opened.context(|| format!("cannot open the pin {}", path.display()))?;
            objects.push((path, object));
        }
        Ok(Self { pins: pins.clone(), objects })
    }

    /// The missing pins.
    fn lost(&self) -> impl Iterator<Item = &(PathBuf, OwnedFd)> {
        self.objects.iter().filter(|(path, _)| !path.exists())
    }

    /// Restores missing pins. Returns true if there were any.
    pub fn restore(&self) -> Result<bool> {
        let is_lacking = self.lost().next().is_some();
        if is_lacking {
            bpffs::prepare(&self.pins)?;
        }
        for (path, object) in self.lost() {
            pin(object, path).context(|| format!("cannot pin {}", path.display()))?;
        }
        Ok(is_lacking)
    }

    /// Fails if a pin is missing.
    pub fn check(&self) -> Result<()> {
        let Some((first, _)) = self.lost().next() else { return Ok(()) };
        // Its error explains how to mount a bpffs, if that is missing.
        bpffs::check_mounted(self.pins.bpffs())?;
        let number = self.lost().count();
        Err(Error::failure(format!("{number} pins are missing, {} for example", first.display())))
    }
}

/// Detaches a link synchronously, and removes its pin. Idempotent. If only the pin were removed, the kernel
/// would detach the link later.
pub fn detach_link(path: &Path) -> Result<()> {
    match failpoint::hit("detach a link").and_then(|()| get(path)) {
        Ok(link) => {
            let mut fd = link.as_raw_fd();
            // Errors are ignored: a link whose interface or cgroup was deleted is detached already.
            // SAFETY: the attributes are a prefix of those of the command, and point to nothing.
            let _ = unsafe { command(bpf_cmd::BPF_LINK_DETACH, &mut fd) };
        }
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            return Err(error).context(|| format!("cannot open the pinned link {}", path.display()));
        }
    }
    bpffs::unpin(path)
}

/// Renames the pin of a link, which stays attached. Idempotent, also if there is no such pin.
pub fn rename_link(from: &Path, to: &Path) -> Result<()> {
    if !from.exists() {
        return Ok(());
    }
    failpoint::hit("move a pin")
        .and_then(|()| fs::rename(from, to))
        .context(|| format!("cannot move {} to {}", from.display(), to.display()))
}

/// Lists the pinned links of a daemon.
pub fn links(pins: &Pins) -> Vec<PathBuf> {
    let links = fs::read_dir(pins.links()).into_iter().flatten().flatten();
    links.map(|link| link.path()).collect()
}

fn get(path: &Path) -> io::Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut object = Object { path: name.as_ptr().expose_provenance() as u64, ..Object::default() };
    // SAFETY: the attributes are those of the command, and the name lives until the end of this function.
    let fd = unsafe { command(bpf_cmd::BPF_OBJ_GET, &mut object) }?;
    // SAFETY: the kernel has just opened the descriptor for this process, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn pin(object: &OwnedFd, path: &Path) -> io::Result<()> {
    failpoint::hit("pin")?;
    let name = CString::new(path.as_os_str().as_bytes())?;
    let fd = object.as_raw_fd().cast_unsigned();
    let mut object = Object { path: name.as_ptr().expose_provenance() as u64, fd, ..Object::default() };
    // SAFETY: the attributes are those of the command, and the name lives until the end of this function.
    unsafe { command(bpf_cmd::BPF_OBJ_PIN, &mut object) }.map(drop)
}

/// Executes a command of the system call `bpf`.
///
/// # Safety
///
/// The attributes must be those of the command, or a prefix of them. What they point to must live until this
/// returns, with room for everything that the kernel writes there.
pub(super) unsafe fn command<T>(command: bpf_cmd, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: the attributes are passed with their size; the caller answers for what they contain.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command as libc::c_long, std::ptr::from_mut(attributes), size_of::<T>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(i32::try_from(result).unwrap_or(-1)) }
}
