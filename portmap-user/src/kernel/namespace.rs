//! Network namespaces: opening, creating, naming and entering them.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::AsRawFd as _,
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    sync::OnceLock,
    thread,
};

use nix::{
    errno::Errno,
    libc,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::statfs::{NSFS_MAGIC, fstatfs},
};

use super::session::NetSession;
use crate::{
    failpoint,
    kernel::error::{Context as _, Error, Failure, NamespaceError, Result},
    model::NetnsId,
};

/// Directory of named namespaces, that of `ip netns`.
pub const DIRECTORY: &str = "/run/netns";

/// ioctl that returns a namespace's type (`linux/nsfs.h`, Linux 4.11).
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;

/// Mode of our mount points. The sticky bit has no meaning for a file, so it tells them from those of other
/// tools: `ip netns add` may be about to mount its namespace on an empty file with the name of a container
/// that has ended.
const MODE: u32 = 0o1000;

/// An open network namespace, which exists at least as long as this value.
#[derive(Debug)]
pub struct Namespace {
    file: File,
    path: PathBuf,
    /// Its cookie, once a thread has been inside: the file stands for one namespace as long as it is open.
    cookie: OnceLock<u64>,
}

impl Namespace {
    /// Opens the namespace at `path`.
    pub fn open(path: &Path) -> Result<Self, NamespaceError> {
        let failed = |error: io::Error| match Errno::from_raw(error.raw_os_error().unwrap_or_default()) {
            Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP => NamespaceError::Missing(path.to_owned()),
            Errno::ESRCH => NamespaceError::ProcessEnded(path.to_owned()),
            _ => NamespaceError::Io(Failure::caused_by(
                format!("cannot open the network namespace {}", path.display()),
                error,
            )),
        };
        failpoint::hit("open a namespace").map_err(failed)?;
        // O_PATH first, because opening a pipe blocks, and opening a device may have side effects.
        let mut options = OpenOptions::new();
        let name = options.read(true).custom_flags(libc::O_PATH).open(path).map_err(failed)?;
        if !fstatfs(&name).is_ok_and(|fs| fs.filesystem_type() == NSFS_MAGIC) {
            return Err(NamespaceError::NotANetns(path.to_owned()));
        }
        let file = File::open(format!("/proc/self/fd/{}", name.as_raw_fd())).map_err(failed)?;
        // SAFETY: the file is open and is a namespace; the call reads no memory of this process.
        let kind = unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) };
        if kind != libc::CLONE_NEWNET {
            return Err(NamespaceError::NotANetns(path.to_owned()));
        }
        Ok(Self { file, path: path.to_owned(), cookie: OnceLock::new() })
    }

    /// Opens the namespace at `path`; `None` if the file is missing or not a network namespace, or its
    /// process has ended.
    pub fn try_open(path: &Path) -> Result<Option<Self>, Failure> {
        match Self::open(path) {
            Ok(namespace) => Ok(Some(namespace)),
            Err(NamespaceError::Io(failure)) => Err(failure),
            Err(_not_a_namespace) => Ok(None),
        }
    }

    /// Opens the calling thread's namespace.
    pub fn current() -> Result<Self> {
        Ok(Self::open(Path::new("/proc/thread-self/ns/net"))?)
    }

    /// Creates a namespace without a name, and runs `work` inside it. The namespace ends with this value unless it
    /// is given a name.
    pub fn create<T: Send, E: From<Error> + Send>(
        work: impl FnOnce(&NetSession) -> Result<T, E> + Send,
    ) -> Result<(Self, T), E> {
        Self::scratch(|session| {
            let own = Self::current()?;
            let _ = own.cookie.set(session.cookie()?);
            let path = PathBuf::from(format!("/proc/self/fd/{}", own.file.as_raw_fd()));
            Ok((Self { path, ..own }, work(session)?))
        })
    }

    /// Gives the namespace a name, as `ip netns add` does. After a failure, [`remove_mount_point`] cleans up.
    ///
    /// # Errors
    ///
    /// [`NamespaceError::NameTaken`] if another namespace has the name.
    pub fn give_name(self, name: &str) -> Result<Self> {
        share_directory()?;
        let path = path_of(name);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(MODE);
        failpoint::hit("create a namespace's file").and_then(|()| options.open(&path).map(drop)).map_err(
            |error| match error.kind() {
                io::ErrorKind::AlreadyExists => NamespaceError::NameTaken(path.clone()),
                _ => {
                    NamespaceError::Io(Failure::caused_by(format!("cannot create {}", path.display()), error))
                }
            },
        )?;
        let doing = || format!("cannot mount the network namespace on {}", path.display());
        failpoint::hit("mount a namespace").context(doing)?;
        mount(Some(&self.path), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>).context(doing)?;
        Ok(Self { path, ..self })
    }

    /// Runs `work` in a new namespace, which ends with it.
    pub fn scratch<T: Send, E: From<Error> + Send>(
        work: impl FnOnce(&NetSession) -> Result<T, E> + Send,
    ) -> Result<T, E> {
        let doing = || "cannot create a network namespace";
        on_own_thread(|| {
            failpoint::hit("make a namespace").context(doing)?;
            unshare(CloneFlags::CLONE_NEWNET).context(doing)?;
            work(&NetSession::open()?)
        })
    }

    /// The path at which it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Returns its identity.
    pub fn id(&self) -> Result<NetnsId> {
        Ok(NetnsId { cookie: Some(self.cookie()?), ..self.file_id()? })
    }

    /// Whether this is the recorded namespace.
    pub fn is(&self, recorded: NetnsId) -> Result<bool> {
        // The inode, which is cheaper to read than the cookie, usually differs already.
        Ok(self.file_id()?.is_same(recorded) && self.id()?.is_same(recorded))
    }

    /// Its identity without the cookie.
    pub(super) fn file_id(&self) -> Result<NetnsId> {
        let metadata = self.file.metadata().context(|| format!("cannot stat {}", self.path.display()))?;
        Ok(NetnsId { device: metadata.dev(), inode: metadata.ino(), cookie: None })
    }

    /// Returns its cookie, which is unique until the next boot.
    pub fn cookie(&self) -> Result<u64> {
        if let Some(cookie) = self.cookie.get() {
            return Ok(*cookie);
        }
        let cookie = self.run(NetSession::cookie)?;
        Ok(*self.cookie.get_or_init(|| cookie))
    }

    /// Moves the calling thread into the namespace.
    pub fn enter(&self) -> Result<()> {
        setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(|errno| match errno {
            Errno::EINVAL => NamespaceError::NotANetns(self.path.clone()).into(),
            Errno::EPERM => NamespaceError::NotPermitted(self.path.clone()).into(),
            _ => Error::from(Failure::caused_by(
                format!("cannot enter the network namespace {}", self.path.display()),
                errno,
            )),
        })
    }

    /// Runs `work` inside the namespace, with a session there.
    ///
    /// It runs on a thread of its own, which ends with it, so no other work can ever run in the wrong
    /// namespace.
    pub fn run<T: Send, E: From<Error> + Send>(
        &self,
        work: impl FnOnce(&NetSession) -> Result<T, E> + Send,
    ) -> Result<T, E> {
        on_own_thread(|| {
            self.enter()?;
            let session = NetSession::open()?;
            // A visit that only reads the cookie is saved later. A failure here is repeated by that visit.
            if self.cookie.get().is_none()
                && let Ok(cookie) = session.peek_cookie()
            {
                let _ = self.cookie.set(cookie);
            }
            work(&session)
        })
    }

    /// Runs `work` inside the namespace if it is the `recorded` one, which the same visit finds out. `None`
    /// if it is another.
    pub fn run_if<T: Send, E: From<Error> + Send>(
        &self,
        recorded: NetnsId,
        work: impl FnOnce(&NetSession) -> Result<T, E> + Send,
    ) -> Result<Option<T>, E> {
        // Most other namespaces are other files, which costs less to see.
        if !self.file_id()?.is_same(recorded) {
            return Ok(None);
        }
        self.run(|session| {
            let cookie = self.cookie.get().copied().map_or_else(|| session.cookie(), Ok)?;
            let id = NetnsId { cookie: Some(cookie), ..self.file_id()? };
            if id.is_same(recorded) { work(session).map(Some) } else { Ok(None) }
        })
    }
}

/// The path of the namespace with this name.
pub fn path_of(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

/// Removes a name given by [`Namespace::give_name`]. The namespace itself ends with its last process.
/// Idempotent.
pub fn remove(name: &str) -> Result<()> {
    let path = path_of(name);
    failpoint::hit("unmount a namespace").context(|| format!("cannot unmount {}", path.display()))?;
    match umount2(&path, MntFlags::MNT_DETACH) {
        // EINVAL: the file is there, but nothing is mounted on it.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(errno) => return Err(errno).context(|| format!("cannot unmount {}", path.display())),
    }
    remove_file(&path)
}

/// Removes the mount point of a name whose namespace is not mounted, or not yet. Leaves files of other tools
/// alone. Idempotent.
pub fn remove_mount_point(name: &str) -> Result<()> {
    let path = path_of(name);
    let is_own = fs::symlink_metadata(&path).is_ok_and(|file| file.is_file() && file.mode() & 0o7777 == MODE);
    if is_own { remove_file(&path) } else { Ok(()) }
}

fn remove_file(path: &Path) -> Result<()> {
    match failpoint::hit("remove a namespace's file").and_then(|()| fs::remove_file(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Makes the directory of names a shared mount, as `ip netns add` does, so that an unmount propagates to all
/// mount namespaces, and none of them keeps a deleted network namespace alive.
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

/// Runs `work` on a thread of its own, and waits for it.
fn on_own_thread<T: Send, E: From<Error> + Send>(work: impl FnOnce() -> Result<T, E> + Send) -> Result<T, E> {
    let work = failpoint::inherit_suppression(work);
    thread::scope(|scope| {
        let worker = thread::Builder::new().name("portmap-netns".to_owned()).spawn_scoped(scope, work);
        match worker.context(|| "cannot start a thread")?.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
