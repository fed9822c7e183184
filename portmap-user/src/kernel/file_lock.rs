//! Locks on files and directories that only root can open. The kernel releases a lock when its process ends.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::{
        fs::{MetadataExt as _, OpenOptionsExt as _},
        net::UnixStream,
    },
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    unistd::geteuid,
};

/// Mode bits by which users other than the owner may open a file.
const OTHERS: u32 = 0o077;

/// Locks a file, and creates it if necessary; `None` if another process holds the lock. `is_served` returns
/// whether a daemon is running, which may hold the lock of a file that other users could open.
pub fn file(path: &Path, is_served: impl Fn() -> bool) -> io::Result<Option<Flock<File>>> {
    loop {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(path)?;
        let found = file.metadata()?;
        let is_private = found.mode() & OTHERS == 0 && found.uid() == geteuid().as_raw();
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            // Any user could hold, or wait for, the lock of a file that earlier versions created with a wider
            // mode.
            Ok(_) if !is_private => replace(path)?,
            Err((_, Errno::EWOULDBLOCK)) if !is_private && !is_served() => replace(path)?,
            Ok(lock) if is_at(&lock, path) => return Ok(Some(lock)),
            // The former holder has removed the file meanwhile.
            Ok(_) => {}
            Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
            Err((_, errno)) => return Err(errno.into()),
        }
    }
}

/// Locks an existing directory that only root can open; `None` if another process holds the lock.
pub fn directory(path: &Path) -> io::Result<Option<Flock<File>>> {
    match Flock::lock(File::open(path)?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno.into()),
    }
}

/// Whether an open file is the one at `path`.
pub fn is_at(file: &File, path: &Path) -> bool {
    let id = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    fs::symlink_metadata(path).ok().map(id) == file.metadata().ok().map(id)
}

/// Whether a process accepts connections at a socket.
pub fn is_served(socket: &Path) -> bool {
    UnixStream::connect(socket).is_ok()
}

fn replace(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn lock_file_of_wider_mode_is_replaced() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("lock");
        let lock = file(&path, || false).expect("a file").expect("it is free");
        assert!(file(&path, || false).expect("a file").is_none(), "it is held");
        drop(lock);
        let others = fs::Permissions::from_mode(0o644);
        fs::set_permissions(&path, others).expect("changed");
        let held =
            Flock::lock(File::open(&path).expect("a file"), FlockArg::LockExclusive).expect("it is free");
        assert!(file(&path, || true).expect("a file").is_none(), "a daemon of an earlier version");
        let lock = file(&path, || false).expect("a file").expect("another one");
        assert_eq!(lock.metadata().expect("a file").mode() & OTHERS, 0);
        assert!(!is_at(&held, &path));
        assert!(file(&path, || false).expect("a file").is_none(), "it is held");
    }
}
