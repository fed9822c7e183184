//! What is pinned, held open: a pin that somebody removes can be made again as long as its object is there.

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
    fault,
    kernel::error::{Context as _, Error, Result},
    paths::Pins,
};

/// The part of `union bpf_attr` that names a pin.
#[repr(C)]
#[derive(Default)]
struct Object {
    path: u64,
    fd: u32,
    flags: u32,
}

/// The maps and programs of a daemon.
pub struct Held {
    pins: Pins,
    objects: Vec<(PathBuf, OwnedFd)>,
}

impl Held {
    /// Opens what is pinned.
    pub fn open(pins: &Pins) -> Result<Self> {
        let mut objects = Vec::new();
        for path in pins.lasting().into_iter().filter(|path| path.exists()) {
            let opened = fault::step("open a pin").and_then(|()| get(&path));
            let object = opened.context(|| format!("cannot open the pin {}", path.display()))?;
            objects.push((path, object));
        }
        Ok(Self { pins: pins.clone(), objects })
    }

    /// Pins that are gone.
    fn lost(&self) -> impl Iterator<Item = &(PathBuf, OwnedFd)> {
        self.objects.iter().filter(|(path, _)| !path.exists())
    }

    /// Pins again what is pinned no more. Returns whether anything was not.
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

    /// Fails if a pin is gone.
    pub fn check(&self) -> Result<()> {
        let Some((first, _)) = self.lost().next() else { return Ok(()) };
        // Says how to mount one, where there is none any more.
        bpffs::check_mounted(self.pins.bpffs())?;
        let number = self.lost().count();
        Err(Error::failure(format!("{number} pins are gone, {} for example", first.display())))
    }
}

/// Takes a link out of service, now, and removes its pin. It is no error if there is none. A link whose pin alone is removed
/// ends when the kernel comes to it.
pub fn end_link(path: &Path) -> Result<()> {
    match fault::step("detach a link").and_then(|()| get(path)) {
        Ok(link) => {
            let mut fd = link.as_raw_fd();
            // One whose interface or cgroup has gone is detached already, and kernels before 5.9 cannot do it.
            let _ = command(bpf_cmd::BPF_LINK_DETACH, &mut fd);
        }
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            return Err(error).context(|| format!("cannot open the pinned link {}", path.display()));
        }
    }
    bpffs::unpin(path)
}

/// Everything that has been pinned below the directories of a daemon, links first.
pub fn links(pins: &Pins) -> Vec<PathBuf> {
    let links = fs::read_dir(pins.links()).into_iter().flatten().flatten();
    links.map(|link| link.path()).collect()
}

fn get(path: &Path) -> io::Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut object = Object { path: name.as_ptr().expose_provenance() as u64, ..Object::default() };
    let fd = command(bpf_cmd::BPF_OBJ_GET, &mut object)?;
    // SAFETY: the kernel has just opened it for this process, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn pin(object: &OwnedFd, path: &Path) -> io::Result<()> {
    fault::step("pin")?;
    let name = CString::new(path.as_os_str().as_bytes())?;
    let fd = object.as_raw_fd().cast_unsigned();
    let mut object = Object { path: name.as_ptr().expose_provenance() as u64, fd, ..Object::default() };
    command(bpf_cmd::BPF_OBJ_PIN, &mut object).map(drop)
}

fn command<T>(command: bpf_cmd, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: the attributes are those of the command, or their beginning, and have the size that is said. What they point to
    // is a string that lives as long as the caller's borrow; the kernel keeps nothing of it.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command as libc::c_long, std::ptr::from_mut(attributes), size_of::<T>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(i32::try_from(result).unwrap_or(-1)) }
}
