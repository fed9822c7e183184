//! A running daemon of a sandbox.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Command},
};

use crate::wait;

/// A running daemon; it is killed when this is dropped.
#[derive(Debug)]
pub struct Daemon {
    pub(crate) process: Child,
    /// The file with its log.
    pub log: PathBuf,
    /// Files that it had open when it was ready.
    pub(crate) files: Option<usize>,
}

/// Files that it may have open for good besides those at its start: samples of drops that somebody has asked for.
const MORE_FILES: usize = 4;
/// Bytes of memory that no test has it need, with a few containers; it starts with about 15 MB.
const MUCH_MEMORY: u64 = 64 << 20;

impl Daemon {
    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until it is ready, and says whether it is; if not, it has ended.
    pub fn is_ready(&mut self) -> bool {
        let mut line = String::new();
        let _ = BufReader::new(self.process.stdout.as_mut().expect("piped")).read_line(&mut line);
        if line == "ready\n" {
            self.files = Some(self.open_files());
        }
        self.files.is_some()
    }

    /// Waits until it has checked the containers that it found, or has ended.
    pub fn has_checked(&mut self) {
        wait::until("all containers to be checked", || {
            let log = self.log();
            let none = log.contains("taking over 0 containers");
            none || log.contains(" containers in ") || matches!(self.process.try_wait(), Ok(Some(_)))
        });
    }

    /// Number of files that it has open; none if it has ended.
    pub fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.children())).map_or(0, Iterator::count)
    }

    /// Bytes of its resident memory; none if it has ended.
    pub fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.children())).unwrap_or_default();
        let resident =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        1024 * resident.and_then(|number| number.parse::<u64>().ok()).unwrap_or_default()
    }

    /// That it has let go of what its work has needed.
    fn expect_no_leak(&self) {
        let Some(files) = self.files else { return };
        // What it does by itself, and clients that have gone, have some for a moment. It may come to its end meanwhile.
        wait::until("files to be closed", || self.open_files() <= files + MORE_FILES);
        let resident = self.resident();
        assert!(resident <= MUCH_MEMORY, "the daemon has {resident} bytes of memory");
    }

    /// The processes that `nsenter` has started and that have not ended.
    fn children(&self) -> String {
        let children = format!("/proc/{0}/task/{0}/children", self.process.id());
        let children = fs::read_to_string(children).unwrap_or_default();
        children.trim().to_owned()
    }

    /// Waits until it has ended, and says whether all was well.
    pub fn ends_well(mut self) -> bool {
        self.process.wait().expect("it ends").success()
    }

    /// Sends it a signal, and waits until it has ended by that; the exit code.
    pub fn ends_by(mut self, signal: &str) -> Option<i32> {
        self.signal(signal);
        self.process.wait().expect("it ends").code()
    }

    /// Asks it to stop and waits until it has.
    pub fn stop(mut self) {
        self.expect_no_leak();
        self.signal("TERM");
        let status = self.process.wait().expect("it ends");
        assert!(status.success(), "it ends with {status}: {}", self.log());
    }

    /// Kills it.
    pub fn kill(mut self) {
        // It may have been killed at a step that it takes by itself.
        if matches!(self.process.try_wait(), Ok(None)) {
            self.signal("KILL");
        }
        let _ = self.process.wait();
    }

    /// Waits until it has ended by itself.
    pub fn wait(mut self) {
        let status = self.process.wait().expect("it ends");
        assert!(status.success(), "it ends with {status}: {}", self.log());
    }

    /// Its process, as the machine numbers it: the child of the `nsenter` that waits for it.
    pub fn pid(&self) -> u32 {
        wait::for_value("the daemon's process", || self.children().parse().ok())
    }

    /// Stops it where it is.
    pub fn pause(&self) {
        self.signal("STOP");
    }

    /// Lets it go on.
    pub fn resume(&self) {
        // What waits for it has stopped with it, and has it go on.
        send("CONT", self.process.id());
        self.signal("CONT");
    }

    /// Sends it a signal.
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
