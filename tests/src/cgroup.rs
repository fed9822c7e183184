//! A cgroup v2 for one test.

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
    /// Creates a cgroup.
    ///
    /// # Panics
    ///
    /// Panics if that fails, for example because cgroup v2 is not mounted.
    #[expect(clippy::new_without_default, reason = "it creates a kernel object")]
    pub fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let root = cgroup::root().unwrap_or_else(|error| panic!("{error}"));
        let name = format!("portmap-test-{}-{}", process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let own = root.join(name);
        fs::create_dir(&own).expect("a cgroup");
        Self { root, own }
    }

    /// Returns the path of its directory.
    pub fn path(&self) -> &Path {
        &self.own
    }

    /// Returns whether it or a descendant contains a process (`cgroup.events`).
    fn is_populated(&self) -> bool {
        let events = fs::read_to_string(self.own.join("cgroup.events")).expect("a cgroup has events");
        !events.lines().any(|line| line == "populated 0")
    }

    /// Moves this process into the cgroup until the returned guard is dropped.
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
        // An exited process leaves its cgroup a little later than it disappears from everywhere else.
        // Meanwhile the kernel may report the cgroup as unpopulated and as busy.
        wait::until("the cgroup to be empty", || !self.is_populated());
        wait::until("the cgroup to be removed", || match fs::remove_dir(&self.own) {
            Ok(()) => true,
            Err(error) if matches!(error.kind(), ErrorKind::ResourceBusy) => false,
            Err(error) => panic!("cannot remove {}: {error}", self.own.display()),
        });
    }
}

/// Guard that moves this process back on drop.
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
