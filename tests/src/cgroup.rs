//! A cgroup of version 2 for one test.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use portmap::kernel::cgroup;

use crate::wait;

/// A cgroup without processes.
#[derive(Debug)]
pub struct Cgroup {
    root: PathBuf,
    own: PathBuf,
}

impl Cgroup {
    /// Makes a cgroup.
    ///
    /// # Panics
    ///
    /// If that fails, as it does where none of version 2 is mounted.
    #[expect(clippy::new_without_default, reason = "it is a thing in the kernel")]
    pub fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let root = cgroup::root().unwrap_or_else(|error| panic!("{error}"));
        let name = format!("portmap-test-{}-{}", process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let own = root.join(name);
        fs::create_dir(&own).expect("a cgroup");
        Self { root, own }
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.own
    }

    /// Whether a process is in it or below it, by what the kernel tells of it.
    fn is_populated(&self) -> bool {
        let events = fs::read_to_string(self.own.join("cgroup.events")).expect("a cgroup has events");
        !events.lines().any(|line| line == "populated 0")
    }

    /// Has this process be in it, until what is returned is dropped.
    pub fn enter(&self) -> Entered<'_> {
        let all = fs::read_to_string("/proc/self/cgroup").expect("a list");
        let before = all.lines().find_map(|line| line.strip_prefix("0::/")).expect("one of version 2");
        move_to(&self.own);
        Entered { before: self.root.join(before), _cgroup: self }
    }
}

fn move_to(cgroup: &Path) {
    fs::write(cgroup.join("cgroup.procs"), process::id().to_string()).expect("this process can be moved");
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if thread::panicking() {
            // Another panic would hide the first.
            let _ = fs::remove_dir(&self.own);
            return;
        }
        // A process that has ended leaves its cgroup a little later than it vanishes from everywhere else, and for as long
        // the kernel may say both that nobody is in it and that it is busy.
        wait::until("the cgroup to be empty", || !self.is_populated());
        wait::until("the cgroup to be removed", || match fs::remove_dir(&self.own) {
            Ok(()) => true,
            Err(error) if matches!(error.kind(), ErrorKind::ResourceBusy) => false,
            Err(error) => panic!("cannot remove {}: {error}", self.own.display()),
        });
    }
}

/// This process, as long as it is in a cgroup.
#[derive(Debug)]
pub struct Entered<'a> {
    before: PathBuf,
    _cgroup: &'a Cgroup,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        move_to(&self.before);
    }
}
