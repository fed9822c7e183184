//! The Unix socket's name, which somebody may remove under a running daemon; nobody would find it any more.

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

/// How often it is looked for.
const PERIOD: Duration = Duration::from_secs(5);

/// A socket, by the name that it was given.
#[derive(Debug)]
pub(super) struct Socket {
    path: PathBuf,
    /// Device and inode.
    id: (u64, u64),
}

impl Socket {
    /// Makes it, in the place of what a daemon has left that was killed: the lock says that none is there.
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

    /// Waits until it has lost its name, and makes another one.
    pub(super) async fn bind_again(&mut self) -> UnixListener {
        let mut is_told = false;
        loop {
            time::sleep(PERIOD).await;
            match id(&self.path) {
                Ok(id) if id == self.id => {}
                _ => match Self::bind(self.path.clone()) {
                    Ok((socket, listener)) => {
                        warn!("made {} again, which was gone", self.path.display());
                        *self = socket;
                        return listener;
                    }
                    // The directory may come back first.
                    Err(error) if !is_told => {
                        is_told = true;
                        warn!("no command finds this daemon: {error}: trying again");
                    }
                    Err(_) => {}
                },
            }
        }
    }

    /// Removes it, if it is still this one.
    pub(super) fn remove(self) {
        if id(&self.path).is_ok_and(|id| id == self.id) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn id(path: &Path) -> std::io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()))
}
