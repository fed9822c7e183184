//! Ownership of a network namespace and of a directory of pins: one daemon at a time, even if daemons have
//! different state directories.

use std::{
    fs::{self, DirBuilder, File},
    io::{Seek as _, Write as _},
    os::unix::{fs::DirBuilderExt as _, net::UnixListener},
    path::{Path, PathBuf},
    process,
};

use nix::fcntl::Flock;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::{
    error::{Context as _, Error, Result},
    failpoint,
    kernel::{
        clock, file_lock,
        netns_lock::{self, Attempt},
        pin_migration,
    },
    model::{HostRecord, NetnsId},
    paths::{Pins, StateDir},
    records,
};

/// Directory with a file per network namespace that a daemon owns, accessible to root only. It is outside all
/// state directories, because a second daemon may have another one.
const DIRECTORY: &str = "/run/portmap-places";

/// The daemon that owns a network namespace.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Owner {
    pid: u32,
    state_dir: PathBuf,
    /// A copy of its record of the host, for the case that the state directory is lost.
    #[serde(default, with = "records::optional")]
    host: Option<HostRecord>,
}

/// The claim on a network namespace and on pins. No other daemon or teardown can use them while this value
/// exists.
#[derive(Debug)]
pub(in crate::daemon) struct Ownership {
    path: PathBuf,
    file: Flock<File>,
    /// The claim against daemons with another `/run`. `None` if an unprivileged process has taken the name.
    _socket: Option<UnixListener>,
    /// The locked directories of pins.
    pins: Vec<(PathBuf, Flock<File>)>,
    owner: Owner,
}

impl Ownership {
    /// Claims a network namespace.
    ///
    /// # Errors
    ///
    /// A conflict if another daemon runs in it, or if it belongs to the state in another directory.
    pub(in crate::daemon) fn take(namespace: NetnsId, state_dir: &StateDir) -> Result<Self> {
        let doing = || format!("cannot create {DIRECTORY}");
        failpoint::hit("take a network namespace").context(doing)?;
        DirBuilder::new().recursive(true).mode(0o700).create(DIRECTORY).context(doing)?;
        let cookie = namespace.cookie.unwrap_or_default();
        let path = Path::new(DIRECTORY).join(format!("{}-{cookie}", namespace.inode));
        let lock = file_lock::file(&path, || false).context(|| format!("cannot lock {}", path.display()))?;
        let found = read(&path);
        let Some(file) = lock else {
            let who = found.map_or_else(String::new, |owner| {
                format!(", pid {} with the state in {},", owner.pid, owner.state_dir.display())
            });
            return Err(Error::conflict(format!(
                "another portmapd{who} runs in this network namespace: stop it, or start this one in another \
                 namespace"
            )));
        };
        let socket = match netns_lock::take()? {
            Attempt::Taken(socket) => Some(socket),
            Attempt::Foreign => {
                warn!(
                    "an unprivileged process has the abstract socket @portmap: a second portmapd with \
                     another /run would not detect this one"
                );
                None
            }
            Attempt::Held(pid) => {
                let who = pid.map_or_else(String::new, |pid| format!(", pid {pid},"));
                return Err(Error::conflict(format!(
                    "another portmapd{who} with another /run runs in this network namespace: stop it, or \
                     start this one in another namespace"
                )));
            }
        };
        let own = state_dir.path();
        if let Some(other) =
            found.as_ref().filter(|owner| owner.state_dir != own && is_kept(owner, namespace))
        {
            let other = other.state_dir.display();
            return Err(Error::conflict(format!(
                "this network namespace belongs to the state in {other}: name that as --state-dir, or run \
                 `portmap teardown --state-dir {other}` first"
            )));
        }
        let host = found.and_then(|owner| owner.host).filter(|host| {
            host.namespace.is_same(namespace) && host.boot.is_some() && host.boot == clock::boot().ok()
        });
        let owner = Owner { pid: process::id(), state_dir: own.to_owned(), host };
        let mut ownership = Self { path, file, _socket: socket, pins: Vec::new(), owner };
        ownership.write()?;
        Ok(ownership)
    }

    /// Claims the pins below a directory. Claims directories again that have been recreated since the last
    /// call.
    ///
    /// # Errors
    ///
    /// A conflict if another daemon uses them.
    pub(in crate::daemon) fn take_pins(&mut self, bpffs: &Path) -> Result<()> {
        let mut directories: Vec<PathBuf> = pin_migration::earlier(bpffs)?.iter().map(Pins::root).collect();
        directories.push(Pins::new(bpffs).root());
        self.pins.retain(|(path, lock)| file_lock::is_at(lock, path));
        for path in directories.into_iter().filter(|path| path.exists()) {
            if self.pins.iter().any(|(held, _)| *held == path) {
                continue;
            }
            let lock = file_lock::directory(&path).context(|| format!("cannot lock {}", path.display()))?;
            let lock = lock.ok_or_else(|| {
                Error::conflict(format!(
                    "another portmapd or a teardown uses the pins in {}: stop it, or name another \
                     --bpffs-dir",
                    bpffs.display()
                ))
            })?;
            self.pins.push((path, lock));
        }
        Ok(())
    }

    /// Copies the record of the host to the ownership file. A failure is only logged, because the state
    /// directory has the record.
    pub(in crate::daemon) fn note(&mut self, host: &HostRecord) {
        if self.owner.host.as_ref() != Some(host) {
            self.owner.host = Some(host.clone());
            if let Err(error) = self.write() {
                warn!("{error}: if the state is lost, a teardown cannot restore the host");
            }
        }
    }

    /// The copy of the record of the host.
    pub(in crate::daemon) fn host(&self) -> Option<&HostRecord> {
        self.owner.host.as_ref()
    }

    /// Claims the network namespace again if the ownership file has been removed. Returns true if it had
    /// been.
    pub(in crate::daemon) fn restore(&mut self) -> Result<bool> {
        if file_lock::is_at(&self.file, &self.path) {
            return Ok(false);
        }
        let doing = || format!("cannot recreate {}", self.path.display());
        DirBuilder::new().recursive(true).mode(0o700).create(DIRECTORY).context(doing)?;
        let lock = file_lock::file(&self.path, || false).context(doing)?;
        self.file = lock.ok_or_else(|| {
            Error::conflict(format!("another daemon or a teardown has claimed {}", self.path.display()))
        })?;
        self.write()?;
        Ok(true)
    }

    /// Releases the network namespace.
    pub(in crate::daemon) fn remove(&self) -> Result<()> {
        let doing = || format!("cannot remove {}", self.path.display());
        failpoint::hit("give a network namespace up").context(doing)?;
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).context(doing),
            _ => {}
        }
        // This fails if the directory contains files of other network namespaces, and then it stays.
        let _ = fs::remove_dir(DIRECTORY);
        Ok(())
    }

    /// Writes in place, because a new file would not be locked.
    fn write(&mut self) -> Result<()> {
        let doing = || format!("cannot write {}", self.path.display());
        let text = serde_json::to_vec(&self.owner).context(doing)?;
        failpoint::hit("write an ownership file").context(doing)?;
        self.file.rewind().context(doing)?;
        self.file.write_all(&text).context(doing)?;
        self.file.set_len(text.len() as u64).context(doing)
    }
}

fn read(path: &Path) -> Option<Owner> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Whether the state of another daemon exists and belongs to this network namespace.
fn is_kept(owner: &Owner, namespace: NetnsId) -> bool {
    /// The part of the file that all versions share.
    #[derive(Deserialize)]
    struct Kept {
        record: Record,
    }
    #[derive(Deserialize)]
    struct Record {
        namespace: records::NetnsId,
    }
    let text = fs::read(StateDir::new(&owner.state_dir).host()).unwrap_or_default();
    serde_json::from_slice::<Kept>(&text)
        .is_ok_and(|kept| NetnsId::from(kept.record.namespace).is_same(namespace))
}
