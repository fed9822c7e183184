//! A daemon process in a sandbox.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command},
};

use crate::wait;

/// A daemon process; it is killed on drop.
#[derive(Debug)]
pub struct Daemon {
    pub(crate) process: Child,
    /// File with its log.
    pub log: PathBuf,
    /// Number of open files when it became ready.
    pub(crate) files: Option<usize>,
}

/// Files that may stay open besides those at the start: the ring buffer of drop samples, once a client has
/// followed drops.
const EXTRA_FILES: usize = 4;
/// Sockets for the kernel's notifications. A daemon opens them a moment before or after it says that it is ready.
const NOTIFICATION_SOCKETS: usize = 2;
/// Upper bound on resident memory in bytes, with a few containers; a daemon starts with about 15 MB.
const MAX_RESIDENT: u64 = 64 << 20;

impl Daemon {
    /// Returns the log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until the daemon is ready. Returns false if it exited instead.
    pub fn wait_ready(&mut self) -> bool {
        let mut line = String::new();
        let _ = BufReader::new(self.process.stdout.as_mut().expect("piped")).read_line(&mut line);
        if line == "ready\n" {
            self.files = Some(self.open_files());
        }
        self.files.is_some()
    }

    /// Waits until the daemon has checked the containers that it found at start, or has exited.
    pub fn wait_checked(&mut self) {
        wait::until("all containers to be checked", || {
            let log = self.log();
            let none = log.contains("taking over 0 containers");
            none || log.contains(" containers in ") || matches!(self.process.try_wait(), Ok(Some(_)))
        });
    }

    /// Returns the number of open files, without those for the kernel's notifications; 0 if it has exited.
    pub fn open_files(&self) -> usize {
        let process = format!("/proc/{}", self.children());
        let table = fs::read_to_string(format!("{process}/net/netlink")).unwrap_or_default();
        // The columns are: address, protocol, port, groups, and others, of which the last is the inode.
        let subscribed: Vec<String> = table
            .lines()
            .skip(1)
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .filter(|columns| columns.get(3).is_some_and(|groups| *groups != "00000000"))
            .filter_map(|columns| columns.last().map(|inode| format!("socket:[{inode}]")))
            .collect();
        let files = fs::read_dir(format!("{process}/fd")).into_iter().flatten().flatten();
        let files = files.filter_map(|file| fs::read_link(file.path()).ok());
        let (notifying, others): (Vec<_>, Vec<_>) =
            files.partition(|file| subscribed.iter().any(|socket| Path::new(socket) == file));
        others.len() + notifying.len().saturating_sub(NOTIFICATION_SOCKETS)
    }

    /// Returns the resident memory in bytes; 0 if it has exited.
    pub fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.children())).unwrap_or_default();
        let resident =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        1024 * resident.and_then(|number| number.parse::<u64>().ok()).unwrap_or_default()
    }

    /// Checks that no files or memory leaked.
    fn expect_no_leak(&self) {
        let Some(files) = self.files else { return };
        // Background work and disconnected clients hold files for a moment. The daemon may exit meanwhile.
        wait::until("files to be closed", || self.open_files() <= files + EXTRA_FILES);
        let resident = self.resident();
        assert!(resident <= MAX_RESIDENT, "the daemon has {resident} bytes of resident memory");
    }

    /// Process ids of the running children of `nsenter`.
    fn children(&self) -> String {
        let children = format!("/proc/{0}/task/{0}/children", self.process.id());
        let children = fs::read_to_string(children).unwrap_or_default();
        children.trim().to_owned()
    }

    /// Waits until it exits. Returns whether the exit code is 0.
    pub fn wait_success(mut self) -> bool {
        self.process.wait().expect("the daemon exits").success()
    }

    /// Sends a signal, waits until the process exits and returns the exit code.
    pub fn signal_and_wait(mut self, signal: &str) -> Option<i32> {
        self.signal(signal);
        self.process.wait().expect("the daemon exits").code()
    }

    /// Sends SIGTERM and waits for a successful exit.
    pub fn stop(mut self) {
        self.expect_no_leak();
        self.signal("TERM");
        let status = self.process.wait().expect("the daemon exits");
        assert!(status.success(), "the daemon exits with {status}: {}", self.log());
    }

    /// Sends SIGKILL and waits.
    pub fn kill(mut self) {
        // A fault may have killed it already, at a step of its background work.
        if matches!(self.process.try_wait(), Ok(None)) {
            self.signal("KILL");
        }
        let _ = self.process.wait();
    }

    /// Waits until it exits by itself, successfully.
    pub fn wait(mut self) {
        let status = self.process.wait().expect("the daemon exits");
        assert!(status.success(), "the daemon exits with {status}: {}", self.log());
    }

    /// Process id in the machine's pid namespace: the child of the waiting `nsenter`.
    pub fn pid(&self) -> u32 {
        wait::for_value("the daemon's process", || self.children().parse().ok())
    }

    /// Suspends it (SIGSTOP).
    pub fn pause(&self) {
        self.signal("STOP");
    }

    /// Resumes it.
    pub fn resume(&self) {
        // `nsenter` has stopped together with its child, and must continue first.
        send("CONT", self.process.id());
        self.signal("CONT");
    }

    /// Sends a signal.
    pub fn signal(&self, signal: &str) {
        send(signal, self.pid());
    }
}

fn send(signal: &str, process: u32) {
    let sent = Command::new("kill").args([&format!("-{signal}"), &process.to_string()]).status();
    assert!(sent.expect("kill is part of procps").success());
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.process.try_wait(), Ok(None)) {
            if !std::thread::panicking() {
                self.expect_no_leak();
            }
            for pid in self.children().split_whitespace() {
                let _ = Command::new("kill").args(["-KILL", pid]).status();
            }
            let _ = self.process.wait();
        }
    }
}
