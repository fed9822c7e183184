//! The Unix socket. If another process removes its path, no client can connect, so the daemon recreates it.

use std::{
    fs,
    io::ErrorKind,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{net::UnixListener, time};
use tracing::warn;

use crate::error::{Context as _, Result};

/// Interval of the checks that the socket still has its path.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// A Unix socket with its path.
#[derive(Debug)]
pub(super) struct Socket {
    path: PathBuf,
    /// Device and inode.
    id: (u64, u64),
}

impl Socket {
    /// Binds the socket. A file at its path was left by a killed daemon, because no other one holds the lock
    /// of the state directory; it is replaced.
    pub(super) fn bind(path: PathBuf) -> Result<(Self, UnixListener)> {
        let binding = || format!("cannot listen on {}", path.display());
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).context(binding),
            _ => {}
        }
        let listener = UnixListener::bind(&path).context(binding)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o660)).context(binding)?;
        let id = id(&path).context(binding)?;
        Ok((Self { path, id }, listener))
    }

    /// Waits until the socket has lost its path, and binds another one.
    pub(super) async fn rebind(&mut self) -> UnixListener {
        let mut is_logged = false;
        loop {
            time::sleep(CHECK_INTERVAL).await;
            match id(&self.path) {
                Ok(id) if id == self.id => {}
                _ => match Self::bind(self.path.clone()) {
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
