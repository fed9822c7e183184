//! What survives the daemon: one file on the host, one for each container, each replaced as a whole.
//!
//! The kernel's objects are the truth about what is; these files are the truth about what is meant to be. A
//! record is written before the first change that it stands for and removed after the last one is undone, so
//! whatever a killed daemon leaves behind is named here.

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
    fault,
    kernel::{clock, locked},
    locks::{Rank, Ranked},
    model::{ContainerRecord, HostRecord, Phase, ephemeral::Quarantined},
    paths::StateDir,
    records::Recorded,
};

/// How names of files begin that are not complete yet. No container's name begins with a dot.
const UNFINISHED: &str = ".unfinished-";

/// How the name of a container's file ends when it is being deleted and that could not be written into it.
const MARKED: &str = "deleting";

/// Version of the files' form.
const VERSION: u32 = 6;
/// The earliest version that is understood: what it lacks has a default.
const EARLIEST: u32 = 3;

/// The part of a file that every version has.
#[derive(Deserialize)]
struct Head {
    version: u32,
}

/// A record as it is written.
#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    version: u32,
    record: T,
}

/// A state directory that nobody else works in as long as this value exists.
#[derive(Debug)]
pub struct Store {
    directory: StateDir,
    lock: Ranked<Flock<File>>,
}

impl Store {
    /// Makes the directory if need be and locks it. A conflict if a daemon holds it.
    pub fn lock(directory: &StateDir) -> Result<Self> {
        make(directory)?;
        let lock = Ranked::new(Rank::LockFile, take_lock(directory)?);
        let store = Self { directory: directory.clone(), lock };
        store.remove_unfinished()?;
        store.forget_earlier_boot()?;
        Ok(store)
    }

    /// Removes files that a daemon was writing when it was killed.
    fn remove_unfinished(&self) -> Result<()> {
        for directory in [self.directory.path(), &self.directory.containers()] {
            let doing = || format!("cannot read {}", directory.display());
            for entry in fs::read_dir(directory).context(doing)? {
                let entry = entry.context(doing)?;
                if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                    remove(&entry.path())?;
                }
            }
        }
        Ok(())
    }

    /// Removes everything if it is from before a reboot, where the directory outlives one: nothing of it is left, and whatever
    /// has the same numbers now is somebody else's.
    fn forget_earlier_boot(&self) -> Result<()> {
        let Some(boot) = self.host()?.and_then(|host| host.boot) else { return Ok(()) };
        if boot == clock::boot()? {
            return Ok(());
        }
        warn!(
            "forgetting the state in {}, from before the machine was started",
            self.directory.path().display()
        );
        for record in self.containers()? {
            self.remove_container(&record.name)?;
        }
        remove(&self.directory.resting())?;
        self.remove_host()
    }

    /// Makes the directory and its lock again if somebody has removed them. Returns whether what has been done to the host is
    /// not written down any more.
    pub fn restore(&self) -> Result<bool> {
        make(&self.directory)?;
        let mut lock = self.lock.lock();
        if !locked::is_at(&lock, &self.directory.lock()) {
            *lock = take_lock(&self.directory)?;
        }
        Ok(!self.directory.host().exists())
    }

    /// Whether there is a record of a container.
    pub fn has_container(&self, name: &str) -> bool {
        let file = self.directory.container(name);
        file.exists() || file.with_extension(MARKED).exists()
    }

    /// The directory.
    pub fn directory(&self) -> &StateDir {
        &self.directory
    }

    /// What the daemon has done to the host, if it has.
    pub fn host(&self) -> Result<Option<HostRecord>> {
        match read(&self.directory.host())? {
            Found::Record(record) => Ok(Some(record)),
            // What has been done to the host is not known then.
            Found::Damaged(why) => Err(Error::failure(format!("{why}: move it away and try again"))),
            Found::Nothing => Ok(None),
        }
    }

    /// Writes down what the daemon has done to the host.
    pub fn set_host(&self, record: &HostRecord) -> Result<()> {
        write(&self.directory.host(), record)
    }

    /// Forgets what the daemon has done to the host.
    pub fn remove_host(&self) -> Result<()> {
        remove(&self.directory.host())
    }

    /// The ports that rest. What makes no sense is nothing.
    pub fn resting(&self) -> Result<Vec<Quarantined>> {
        match read(&self.directory.resting())? {
            Found::Record(resting) => Ok(resting),
            Found::Damaged(why) => {
                warn!("{why}: ports of deleted containers do not rest any more");
                Ok(Vec::new())
            }
            Found::Nothing => Ok(Vec::new()),
        }
    }

    /// Writes down which ports rest.
    pub fn set_resting(&self, resting: &[Quarantined]) -> Result<()> {
        let file = self.directory.resting();
        if resting.is_empty() && !file.exists() {
            return Ok(());
        }
        write(&file, &resting.to_vec())
    }

    /// Removes the directory as far as there is nothing in it but what a store makes.
    pub fn remove(&self) -> Result<()> {
        self.remove_but(false)
    }

    /// The same, but the directory itself may stay.
    pub fn remove_but(&self, keep_directory: bool) -> Result<()> {
        // The lock's file while it is held: whoever comes now makes a new one.
        for file in [self.directory.resting(), self.directory.socket(), self.directory.lock()] {
            remove(&file)?;
        }
        let own = (!keep_directory).then(|| self.directory.path().to_owned());
        for path in [self.directory.containers()].into_iter().chain(own) {
            match fs::remove_dir(&path) {
                Err(error)
                    if !matches!(
                        error.kind(),
                        // It may be a mount point, which stays.
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

    /// All containers, by slot. A file that makes no sense is set aside, so that somebody can look at it.
    pub fn containers(&self) -> Result<Vec<ContainerRecord>> {
        let directory = self.directory.containers();
        let doing = || format!("cannot read {}", directory.display());
        let mut records = Vec::new();
        for entry in fs::read_dir(&directory).context(doing)? {
            let path = entry.context(doing)?.path();
            let is_marked = path.extension().is_some_and(|extension| extension == MARKED);
            if is_marked || path.extension().is_some_and(|extension| extension == "json") {
                match read::<ContainerRecord>(&path)? {
                    Found::Record(record) if is_marked => {
                        records.push(ContainerRecord { phase: Phase::Deleting, ..record });
                    }
                    Found::Record(record) => records.push(record),
                    Found::Damaged(why) => {
                        let aside = path.with_extension("json.damaged");
                        warn!("{why}: it is set aside as {}, and its container is removed", aside.display());
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

    /// Writes down a container.
    pub fn set_container(&self, record: &ContainerRecord) -> Result<()> {
        write(&self.directory.container(&record.name), record)
    }

    /// Writes down that a container is being deleted, by the name of its file where there is no room to write.
    pub fn mark_deleting(&self, record: &ContainerRecord) -> Result<()> {
        let file = self.directory.container(&record.name);
        if file.with_extension(MARKED).exists() {
            return Ok(());
        }
        let Err(error) = self.set_container(record) else { return Ok(()) };
        let marked =
            fault::step("mark a state file").and_then(|()| fs::rename(&file, file.with_extension(MARKED)));
        marked.map_err(|_either| error)
    }

    /// Forgets a container.
    pub fn remove_container(&self, name: &str) -> Result<()> {
        let file = self.directory.container(name);
        remove(&file.with_extension(MARKED))?;
        remove(&file)
    }
}

fn take_lock(directory: &StateDir) -> Result<Flock<File>> {
    let (path, socket) = (directory.lock(), directory.socket());
    let lock = locked::file(&path, || locked::is_served(&socket));
    lock.context(|| format!("cannot lock {}", path.display()))?.ok_or_else(|| {
        Error::conflict(format!(
            "another portmapd, or a teardown, is at work in {}: stop it, or name another --state-dir",
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
            .context(|| format!("cannot make the state directory {}", path.display()))?;
    }
    Ok(())
}

/// What is in a file.
enum Found<T> {
    Record(T),
    /// Something else, described by the error.
    Damaged(Error),
    /// There is no such file.
    Nothing,
}

fn read<T: Recorded>(path: &Path) -> Result<Found<T>> {
    let text = match fault::step("read a state file").and_then(|()| fs::read(path)) {
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
            "the state file {} has version {}, expected {EARLIEST} to {VERSION}: run the portmapd that wrote it, or `portmap \
             teardown` with it",
            path.display(),
            head.version
        )));
    }
    let versioned: Result<Versioned<T::Form>> = serde_json::from_slice(&text).context(damaged);
    let record = versioned.and_then(|versioned| T::from_form(versioned.record).context(damaged));
    Ok(record.map_or_else(Found::Damaged, Found::Record))
}

/// Replaces a file in one step: whoever reads it sees all of the old or all of the new one, also after a crash.
fn write(path: &Path, record: &impl Recorded) -> Result<()> {
    let doing = || format!("cannot write {}", path.display());
    let directory = path.parent().ok_or_else(|| Error::failure(doing()))?;
    fault::step("write a state file").context(doing)?;
    let mut file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(directory).context(doing)?;
    let text = serde_json::to_vec_pretty(&Versioned { version: VERSION, record: record.to_form() })
        .context(doing)?;
    file.write_all(&text).context(doing)?;
    fault::step("replace a state file").context(doing)?;
    file.persist(path).context(doing)?;
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    match fault::step("remove a state file").and_then(|()| fs::remove_file(path)) {
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
        model::{Limit, NetnsId, PortRange, TrafficSpec},
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
            ports: "31000-31009".parse().expect("ports"),
            ephemeral_ports: PortRange::new(32768, 33791).expect("a range"),
            ipv6: true,
            traffic: TrafficSpec { egress_rate: Some(0), ..TrafficSpec::default() },
            egress: None,
            ingress: Some(Limit { rate: 1, ceil: 2, burst: 3, leaf: "bfifo".to_owned() }),
            inherit_sysctls: false,
            before: None,
            phase: Phase::Ready,
        }
    }

    #[test]
    fn records_are_found_again() {
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
    fn a_directory_serves_one_at_a_time() {
        let directory = tempfile::tempdir().expect("a directory");
        let state = StateDir::new(directory.path());
        let first = Store::lock(&state).expect("a store");
        assert_eq!(Store::lock(&state).expect_err("it is held").kind, Kind::Conflict);
        drop(first);
        Store::lock(&state).expect("it is free again");
    }

    #[test]
    fn damaged_files_are_set_aside_and_foreign_ones_refused() {
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
        fs::write(&file, "{\"version\":7}").expect("written");
        let error = store.containers().expect_err("it is of another version");
        assert!(error.message.contains("version 7") && error.message.contains("x.json"), "{error}");
        assert!(file.exists());
    }
}
