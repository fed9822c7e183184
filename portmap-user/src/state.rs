//! Desired state, which survives the daemon: one file for the host and one per container, each replaced
//! atomically.
//!
//! The kernel has the actual state. A record is written before the first change that it describes, and
//! removed after the last one is undone, so every change that a killed daemon leaves behind is on record.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::Path,
};

use nix::fcntl::Flock;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::{
    error::{Context as _, Error, Result},
    failpoint,
    kernel::{clock, file_lock},
    locks::{Rank, Ranked},
    model::{ContainerRecord, HostRecord, Phase, ephemeral::Quarantined},
    paths::StateDir,
    records::Recorded,
};

/// Prefix of temporary files. No container's name starts with a dot.
const TEMPORARY: &str = ".unfinished-";

/// Extension of the file of a container that is being deleted, where the phase could not be written into it.
const DELETING: &str = "deleting";

/// Version of the files.
const VERSION: u32 = 9;
/// The earliest supported version; fields that it lacks have defaults.
const EARLIEST: u32 = 3;

/// The part that all versions have in common.
#[derive(Deserialize)]
struct Head {
    version: u32,
}

/// A file's contents.
#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    version: u32,
    record: T,
}

/// A state directory, locked against other daemons as long as this value exists.
#[derive(Debug)]
pub struct Store {
    directory: StateDir,
    lock: Ranked<Flock<File>>,
}

impl Store {
    /// Creates the directory if necessary, and locks it. A conflict if another daemon holds the lock.
    pub fn lock(directory: &StateDir) -> Result<Self> {
        make(directory)?;
        let lock = Ranked::new(Rank::LockFile, take_lock(directory)?);
        let store = Self { directory: directory.clone(), lock };
        store.remove_temporary()?;
        store.discard_earlier_boot()?;
        Ok(store)
    }

    /// Removes temporary files of a daemon that was killed while writing.
    fn remove_temporary(&self) -> Result<()> {
        for directory in [self.directory.path(), &self.directory.containers()] {
            let doing = || format!("cannot read {}", directory.display());
            for entry in fs::read_dir(directory).context(doing)? {
                let entry = entry.context(doing)?;
                if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
                    remove(&entry.path())?;
                }
            }
        }
        Ok(())
    }

    /// Discards state of an earlier boot, where the directory survives a reboot: none of its objects exists,
    /// and their numbers may be those of other objects now.
    fn discard_earlier_boot(&self) -> Result<()> {
        let Some(boot) = self.host()?.and_then(|host| host.boot) else { return Ok(()) };
        if boot == clock::boot()? {
            return Ok(());
        }
        warn!("discarding the state in {}, which is from an earlier boot", self.directory.path().display());
        for record in self.containers()? {
            self.remove_container(&record.name)?;
        }
        remove(&self.directory.quarantine())?;
        self.remove_host()
    }

    /// Recreates the directory and its lock file if another process has removed them. Returns true if the
    /// host's record is missing.
    pub fn restore(&self) -> Result<bool> {
        make(&self.directory)?;
        let mut lock = self.lock.lock();
        if !file_lock::is_at(&lock, &self.directory.lock()) {
            *lock = take_lock(&self.directory)?;
        }
        Ok(!self.directory.host().exists())
    }

    /// Whether there is a record of a container.
    pub fn has_container(&self, name: &str) -> bool {
        let file = self.directory.container(name);
        file.exists() || file.with_extension(DELETING).exists()
    }

    /// The directory.
    pub fn directory(&self) -> &StateDir {
        &self.directory
    }

    /// Reads the host's record, if there is one.
    pub fn host(&self) -> Result<Option<HostRecord>> {
        match read(&self.directory.host())? {
            Found::Record(record) => Ok(Some(record)),
            Found::Damaged(why) => Err(Error::failure(format!("{why}: move it away and retry"))),
            Found::Nothing => Ok(None),
        }
    }

    /// Writes the host's record.
    pub fn set_host(&self, record: &HostRecord) -> Result<()> {
        write(&self.directory.host(), record)
    }

    /// Removes the host's record.
    pub fn remove_host(&self) -> Result<()> {
        remove(&self.directory.host())
    }

    /// Reads the quarantine of ephemeral ports; empty if the file is damaged.
    pub fn quarantine(&self) -> Result<Vec<Quarantined>> {
        match read(&self.directory.quarantine())? {
            Found::Record(quarantined) => Ok(quarantined),
            Found::Damaged(why) => {
                warn!("{why}: discarding the ephemeral-port quarantine");
                Ok(Vec::new())
            }
            Found::Nothing => Ok(Vec::new()),
        }
    }

    /// Writes the quarantine of ephemeral ports.
    pub fn set_quarantine(&self, quarantined: &[Quarantined]) -> Result<()> {
        let file = self.directory.quarantine();
        if quarantined.is_empty() && !file.exists() {
            return Ok(());
        }
        write(&file, &quarantined.to_vec())
    }

    /// Removes the store's files, and the directory if it is empty then.
    pub fn remove(&self) -> Result<()> {
        self.remove_files(false)
    }

    /// Removes the store's files, and unless `keep_directory` the directory if it is empty then.
    pub fn remove_files(&self, keep_directory: bool) -> Result<()> {
        // The lock file while its lock is held: the next process creates a new one.
        for file in [
            self.directory.quarantine(),
            self.directory.readonly_socket(),
            self.directory.socket(),
            self.directory.lock(),
        ] {
            remove(&file)?;
        }
        let own = (!keep_directory).then(|| self.directory.path().to_owned());
        for path in [self.directory.containers()].into_iter().chain(own) {
            match fs::remove_dir(&path) {
                Err(error)
                    if !matches!(
                        error.kind(),
                        // Busy: a mount point, which stays.
                        ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty | ErrorKind::ResourceBusy
                    ) =>
                {
                    return Err(error).context(|| format!("cannot remove {}", path.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Reads the records of all containers, by slot. Damaged files are moved aside for inspection.
    pub fn containers(&self) -> Result<Vec<ContainerRecord>> {
        let directory = self.directory.containers();
        let doing = || format!("cannot read {}", directory.display());
        let mut records = Vec::new();
        for entry in fs::read_dir(&directory).context(doing)? {
            let path = entry.context(doing)?.path();
            let is_marked = path.extension().is_some_and(|extension| extension == DELETING);
            if is_marked || path.extension().is_some_and(|extension| extension == "json") {
                match read::<ContainerRecord>(&path)? {
                    Found::Record(record) if is_marked => {
                        records.push(ContainerRecord { phase: Phase::Deleting, ..record });
                    }
                    Found::Record(record) => records.push(record),
                    Found::Damaged(why) => {
                        let aside = path.with_extension("json.damaged");
                        warn!("{why}: moving it to {}, and removing its container", aside.display());
                        fs::rename(&path, &aside)
                            .context(|| format!("cannot move {} to {}", path.display(), aside.display()))?;
                    }
                    Found::Nothing => {}
                }
            }
        }
        records.sort_by_key(|record| record.slot);
        Ok(records)
    }

    /// Writes a container's record.
    pub fn set_container(&self, record: &ContainerRecord) -> Result<()> {
        write(&self.directory.container(&record.name), record)
    }

    /// Records that a container is being deleted: by its file's name if the disk is full.
    pub fn mark_deleting(&self, record: &ContainerRecord) -> Result<()> {
        let file = self.directory.container(&record.name);
        if file.with_extension(DELETING).exists() {
            return Ok(());
        }
        let Err(error) = self.set_container(record) else { return Ok(()) };
        let marked = failpoint::hit("mark a state file")
            .and_then(|()| fs::rename(&file, file.with_extension(DELETING)));
        marked.map_err(|_either| error)
    }

    /// Removes a container's record. Idempotent.
    pub fn remove_container(&self, name: &str) -> Result<()> {
        let file = self.directory.container(name);
        remove(&file.with_extension(DELETING))?;
        remove(&file)
    }
}

fn take_lock(directory: &StateDir) -> Result<Flock<File>> {
    let (path, socket) = (directory.lock(), directory.socket());
    let lock = file_lock::file(&path, || file_lock::is_served(&socket));
    lock.context(|| format!("cannot lock {}", path.display()))?.ok_or_else(|| {
        Error::conflict(format!(
            "another portmapd, or a teardown, is running in {}: stop it, or pass another --state-dir",
            directory.path().display()
        ))
    })
}

fn make(directory: &StateDir) -> Result<()> {
    for path in [directory.path(), &directory.containers()] {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(path)
            .context(|| format!("cannot create the state directory {}", path.display()))?;
    }
    Ok(())
}

/// Result of reading a file.
enum Found<T> {
    Record(T),
    /// The file is not a valid record.
    Damaged(Error),
    /// There is no such file.
    Nothing,
}

fn read<T: Recorded>(path: &Path) -> Result<Found<T>> {
    let text = match failpoint::hit("read a state file").and_then(|()| fs::read(path)) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(error).context(|| format!("cannot read {}", path.display())),
    };
    let damaged = || format!("the state file {} is damaged", path.display());
    let head: Head = match serde_json::from_slice(&text).context(damaged) {
        Ok(head) => head,
        Err(error) => return Ok(Found::Damaged(error)),
    };
    if !(EARLIEST..=VERSION).contains(&head.version) {
        return Err(Error::conflict(format!(
            "the state file {} has version {}, expected {EARLIEST} to {VERSION}: run the portmapd that wrote it, \
             or its `portmap teardown`",
            path.display(),
            head.version
        )));
    }
    let versioned: Result<Versioned<T::Form>> = serde_json::from_slice(&text).context(damaged);
    let record = versioned.and_then(|versioned| T::from_form(versioned.record).context(damaged));
    Ok(record.map_or_else(Found::Damaged, Found::Record))
}

/// Replaces a file atomically: readers see either the old or the new contents, also after a crash.
fn write(path: &Path, record: &impl Recorded) -> Result<()> {
    let doing = || format!("cannot write {}", path.display());
    let directory = path.parent().ok_or_else(|| Error::failure(doing()))?;
    failpoint::hit("write a state file").context(doing)?;
    let mut file = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(directory).context(doing)?;
    let text = serde_json::to_vec_pretty(&Versioned { version: VERSION, record: record.to_form() })
        .context(doing)?;
    file.write_all(&text).context(doing)?;
    failpoint::hit("replace a state file").context(doing)?;
    file.persist(path).context(doing)?;
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    match failpoint::hit("remove a state file").and_then(|()| fs::remove_file(path)) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::{
        error::Kind,
        model::{InterfaceName, Labels, Limit, NetnsId, PortRange, TrafficSpec},
    };

    fn record(name: &str, slot: u16) -> ContainerRecord {
        ContainerRecord {
            name: name.to_owned(),
            slot,
            netns: PathBuf::from("/run/netns").join(name),
            namespace: Some(NetnsId { device: 4, inode: 4_026_531_840, cookie: Some(1) }),
            owns_netns: true,
            pid: None,
            owner: None,
            interface: InterfaceName::default(),
            ports: "31000-31009".parse().expect("ports"),
            automatic_ports: Vec::new(),
            ephemeral_ports: PortRange::new(32768, 33791).expect("a range"),
            draining: Vec::new(),
            ipv6: true,
            traffic: TrafficSpec { egress_rate: Some(0), ..TrafficSpec::default() },
            labels: Labels::default(),
            egress: None,
            ingress: Some(Limit { rate: 1, ceil: 2, burst: 3, leaf: "bfifo".to_owned() }),
            inherit_sysctls: false,
            before: None,
            phase: Phase::Ready,
        }
    }

    #[test]
    fn state_records_are_read_back() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::lock(&StateDir::new(directory.path())).expect("a store");
        let (a, b) = (record("a", 2), record("b", 1));
        store.set_container(&a).expect("written");
        store.set_container(&b).expect("written");
        assert_eq!(store.containers(), Ok(vec![b.clone(), a]));
        store.remove_container("a").expect("removed");
        store.remove_container("a").expect("removing nothing is no error");
        assert_eq!(store.containers(), Ok(vec![b]));
        assert_eq!(store.host(), Ok(None));
    }

    #[test]
    fn state_directory_is_locked() {
        let directory = tempfile::tempdir().expect("a directory");
        let state = StateDir::new(directory.path());
        let first = Store::lock(&state).expect("a store");
        assert_eq!(Store::lock(&state).expect_err("it is held").kind, Kind::Conflict);
        drop(first);
        Store::lock(&state).expect("it is free again");
    }

    #[test]
    fn state_file_damaged_is_moved_aside_and_foreign_rejected() {
        let directory = tempfile::tempdir().expect("a directory");
        let state = StateDir::new(directory.path());
        let store = Store::lock(&state).expect("a store");
        let (file, aside) = (state.container("x"), state.containers().join("x.json.damaged"));
        for text in ["", "{\"version\":3}"] {
            fs::write(&file, text).expect("written");
            assert_eq!(store.containers(), Ok(Vec::new()));
            assert!(!file.exists());
            assert_eq!(fs::read_to_string(&aside).expect("it is set aside"), text);
        }
        fs::write(&file, "{\"version\":99}").expect("written");
        let error = store.containers().expect_err("it is of another version");
        assert!(error.message.contains("version 99") && error.message.contains("x.json"), "{error}");
        assert!(file.exists());
    }
}
