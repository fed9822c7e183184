//! The Unix socket. If another process removes its path, no client can connect, so the daemon recreates it.

use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    net::{UnixListener, UnixSocket},
    time,
};
use tracing::warn;

use crate::error::{Context as _, Result};

/// Interval of the checks that the socket still has its path.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// Who may connect to a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Access {
    /// Permission bits of its file.
    pub(super) mode: u32,
    /// Id of the group of its file.
    pub(super) group: u32,
}

/// A Unix socket with its path.
#[derive(Debug)]
pub(super) struct Socket {
    path: PathBuf,
    access: Access,
    /// Device and inode.
    id: (u64, u64),
}

impl Socket {
    /// Removes a file that a killed daemon has left. No other daemon has it, because that would hold the lock of
    /// the state directory.
    pub(super) fn remove_stale(path: &Path) -> Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).context(|| format!("cannot remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Binds the socket, in place of one that a killed daemon has left.
    pub(super) fn bind(path: PathBuf, access: Access) -> Result<(Self, UnixListener)> {
        Self::remove_stale(&path)?;
        let binding = || format!("cannot listen on {}", path.display());
        let socket = UnixSocket::new_stream().context(binding)?;
        socket.bind(&path).context(binding)?;
        // The daemon's umask may have left more than this, and the group may be that of the directory. No client
        // can connect before the socket listens.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).context(binding)?;
        chown(&path, None, Some(access.group)).context(binding)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(access.mode)).context(binding)?;
        let listener = socket.listen(BACKLOG).context(binding)?;
        let id = id(&path).context(binding)?;
        Ok((Self { path, access, id }, listener))
    }

    /// Waits until the socket has lost its path, and binds another one.
    pub(super) async fn rebind(&mut self) -> UnixListener {
        let mut is_logged = false;
        loop {
            time::sleep(CHECK_INTERVAL).await;
            match id(&self.path) {
                Ok(id) if id == self.id => {}
                _ => match Self::bind(self.path.clone(), self.access) {
                    Ok((socket, listener)) => {
                        warn!("{} was missing: recreated", self.path.display());
                        *self = socket;
                        return listener;
                    }
                    // The directory may be missing, too, until the daemon restores its state files.
                    Err(error) if !is_logged => {
                        is_logged = true;
                        warn!("commands cannot reach this daemon: {error}; retrying");
                    }
                    Err(_) => {}
                },
            }
        }
    }

    /// Removes the file, unless another one has replaced it.
    pub(super) fn remove(self) {
        if id(&self.path).is_ok_and(|id| id == self.id) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn id(path: &Path) -> std::io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}
