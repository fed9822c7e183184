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
    pub(crate) log: PathBuf,
}

impl Daemon {
    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until it is ready, and says whether it is; if not, it has ended.
    pub fn is_ready(&mut self) -> bool {
        let mut line = String::new();
        let _ = BufReader::new(self.process.stdout.as_mut().expect("piped")).read_line(&mut line);
        line == "ready\n"
    }

    /// Number of files that it has open.
    pub fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("it runs").count()
    }

    /// Waits until it has ended, and says whether all was well.
    pub fn ends_well(mut self) -> bool {
        self.process.wait().expect("it ends").success()
    }

    /// Asks it to stop and waits until it has.
    pub fn stop(mut self) {
        self.signal("TERM");
        let status = self.process.wait().expect("it ends");
        assert!(status.success(), "it ends with {status}: {}", self.log());
    }

    /// Kills it.
    pub fn kill(mut self) {
        self.signal("KILL");
        let _ = self.process.wait();
    }

    /// Waits until it has ended by itself.
    pub fn wait(mut self) {
        let status = self.process.wait().expect("it ends");
        assert!(status.success(), "it ends with {status}: {}", self.log());
    }

    /// Its process, as the machine numbers it: the child of the `nsenter` that waits for it.
    pub fn pid(&self) -> u32 {
        let children = format!("/proc/{0}/task/{0}/children", self.process.id());
        wait::for_value("the daemon's process", || fs::read_to_string(&children).ok()?.trim().parse().ok())
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

    fn signal(&self, signal: &str) {
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
            let children = format!("/proc/{0}/task/{0}/children", self.process.id());
            for pid in fs::read_to_string(children).unwrap_or_default().split_whitespace() {
                let _ = Command::new("kill").args(["-KILL", pid]).status();
            }
            let _ = self.process.wait();
        }
    }
}
