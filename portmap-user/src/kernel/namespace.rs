//! Network namespaces: opening, making and entering them.

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    thread,
};

use nix::{
    errno::Errno,
    libc::ESRCH,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::statfs::{NSFS_MAGIC, fstatfs, statfs},
};
use serde::{Deserialize, Serialize};

use crate::{
    error::{Context as _, Error, Kind, Result},
    fault,
};

/// Where `ip netns` looks for namespaces by name.
pub const DIRECTORY: &str = "/run/netns";

/// What tells one namespace from every other that exists at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceId {
    /// Device of the namespace file system.
    pub device: u64,
    /// Inode in it.
    pub inode: u64,
}

/// An open network namespace; it exists at least as long as this value.
#[derive(Debug)]
pub struct Namespace {
    file: File,
    path: PathBuf,
}

impl Namespace {
    /// The namespace that the file at `path` stands for.
    pub fn open(path: &Path) -> Result<Self> {
        let file = fault::step("open a namespace").and_then(|()| File::open(path)).map_err(|error| {
            match error.kind() {
                std::io::ErrorKind::NotFound => {
                    Error::usage(format!("{} does not exist: expected a network namespace", path.display()))
                }
                _ if error.raw_os_error() == Some(ESRCH) => {
                    Error::usage(format!("the process of {} has ended", path.display()))
                }
                _ => Error::failure(format!("cannot open the network namespace {}: {error}", path.display())),
            }
        })?;
        let is_namespace = fstatfs(&file).is_ok_and(|fs| fs.filesystem_type() == NSFS_MAGIC);
        if !is_namespace {
            return Err(Error::usage(format!(
                "{} is no network namespace: expected a file such as {DIRECTORY}/NAME or /proc/PID/ns/net",
                path.display()
            )));
        }
        Ok(Self { file, path: path.to_owned() })
    }

    /// The namespace of the calling thread.
    pub fn current() -> Result<Self> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// Makes a namespace that `ip netns` knows as `name`. A conflict if there is one already.
    pub fn create(name: &str) -> Result<Self> {
        share_directory()?;
        let path = path_of(name);
        fault::step("create a namespace's file").and_then(|()| File::create_new(&path).map(drop)).map_err(
            |error| match error.kind() {
                std::io::ErrorKind::AlreadyExists => Error::conflict(format!(
                    "the network namespace {} exists already: choose another name, or pass it as --netns",
                    path.display()
                )),
                _ => Error::failure(format!("cannot create {}: {error}", path.display())),
            },
        )?;
        let mount_new = || -> Result<()> {
            fault::step("make a namespace").context(|| "cannot make a network namespace".to_owned())?;
            unshare(CloneFlags::CLONE_NEWNET).context(|| "cannot make a network namespace".to_owned())?;
            fault::step("mount a namespace").context(|| "cannot mount a network namespace".to_owned())?;
            let own = "/proc/thread-self/ns/net";
            mount(Some(own), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .context(|| format!("cannot mount the network namespace on {}", path.display()))
        };
        let made = on_own_thread(mount_new).and_then(|()| Self::open(&path));
        if made.is_err() {
            remove(name)?;
        }
        made
    }

    /// Does `work` in a new namespace, which ends with it.
    pub fn scratch<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        on_own_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).context(|| "cannot make a network namespace".to_owned())?;
            work()
        })
    }

    /// The file that stands for the namespace.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// What tells this namespace from others.
    pub fn id(&self) -> Result<NamespaceId> {
        let metadata = self.file.metadata().context(|| format!("cannot look at {}", self.path.display()))?;
        Ok(NamespaceId { device: metadata.dev(), inode: metadata.ino() })
    }

    /// Moves the calling thread into the namespace.
    pub fn enter(&self) -> Result<()> {
        setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(|errno| match errno {
            Errno::EINVAL => Error::usage(format!("{} is not a network namespace", self.path.display())),
            Errno::EPERM => Error::new(
                Kind::NotPermitted,
                format!("entering the network namespace {} takes root", self.path.display()),
            ),
            _ => {
                Error::failure(format!("cannot enter the network namespace {}: {errno}", self.path.display()))
            }
        })
    }

    /// Does `work` inside the namespace.
    ///
    /// It runs on a thread of its own, which ends with it, so that no thread that does anything else is ever in
    /// the wrong namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        on_own_thread(|| {
            self.enter()?;
            work()
        })
    }
}

/// The file that stands for the namespace that `ip netns` knows as `name`.
pub fn path_of(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

/// Removes a name that [`Namespace::create`] made; the namespace itself ends with its last process. It is no
/// error if there is none.
pub fn remove(name: &str) -> Result<()> {
    let path = path_of(name);
    fault::step("unmount a namespace").context(|| format!("cannot unmount {}", path.display()))?;
    match umount2(&path, MntFlags::MNT_DETACH) {
        // EINVAL: the file is there, but nothing is mounted on it.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(errno) => return Err(Error::failure(format!("cannot unmount {}: {errno}", path.display()))),
    }
    match fault::step("remove a namespace's file").and_then(|()| fs::remove_file(&path)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::failure(format!("cannot remove {}: {error}", path.display())))
        }
        _ => Ok(()),
    }
}

/// Removes what is left of a name whose namespace is not mounted any more. It is no error if there is nothing, or somebody
/// else's has the name.
pub fn remove_rest(name: &str) -> Result<()> {
    let path = path_of(name);
    let is_rest = statfs(&path).is_ok_and(|fs| fs.filesystem_type() != NSFS_MAGIC)
        && fs::metadata(&path).is_ok_and(|file| file.is_file() && file.len() == 0);
    if is_rest { remove(name) } else { Ok(()) }
}

/// Makes the directory of names a shared mount, as `ip netns add` does: an unmount then reaches every copy of the
/// directory, and no other mount namespace keeps a deleted network namespace alive.
fn share_directory() -> Result<()> {
    let doing = || format!("cannot make {DIRECTORY} a shared mount");
    fs::create_dir_all(DIRECTORY).context(doing)?;
    let share =
        || mount(None::<&str>, DIRECTORY, None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>);
    match share() {
        Err(Errno::EINVAL) => {
            mount(Some(DIRECTORY), DIRECTORY, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
                .context(doing)?;
            share().context(doing)
        }
        other => other.context(doing),
    }
}

/// Runs `work` on a thread of its own and waits for it.
fn on_own_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let work = fault::carried(work);
    thread::scope(|scope| {
        let worker = thread::Builder::new().name("portmap-netns".to_owned()).spawn_scoped(scope, work);
        match worker.context(|| "cannot start a thread".to_owned())?.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
