//! Programs that run while a test does something else.

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
    sync::{Arc, Mutex},
    thread,
};

use portmap_tests::{
    sandbox::{Netns, Sandbox},
    wait,
};

/// A program that runs until its sandbox ends, and what it has printed.
#[derive(Clone, Debug)]
pub(crate) struct Background(Arc<Mutex<Vec<String>>>);

impl Background {
    /// Starts a program with its arguments, as a shell would, in a place.
    pub(crate) fn start(sandbox: &Sandbox, place: Netns<'_>, command: &str) -> Self {
        let mut process = sandbox
            .command(place, "sh")
            .args(["-c", &format!("exec {command} 2>&1")])
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell");
        let output = process.stdout.take().expect("piped");
        let lines = Arc::new(Mutex::new(Vec::new()));
        let kept = lines.clone();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                kept.lock().expect("nobody panics").push(line);
            }
            let _ = process.wait();
        });
        Self(lines)
    }

    /// Starts a server and waits until it listens on a port.
    pub(crate) fn server(sandbox: &Sandbox, place: Netns<'_>, port: u16, command: &str) -> Self {
        let server = Self::start(sandbox, place, command);
        let script = format!("ss -Hlntu 'sport = :{port}'");
        wait::until(command, || !sandbox.sh(place, &script).is_empty());
        server
    }

    /// Starts `tcpdump` on all interfaces of a place, which prints packets with their bytes, and waits until it sees
    /// what comes.
    pub(crate) fn capture(sandbox: &Sandbox, place: Netns<'_>, filter: &str) -> Self {
        let command = format!("tcpdump -Z root -i any -nlx --immediate-mode '{filter}'");
        let capture = Self::start(sandbox, place, &command);
        wait::until("tcpdump to start", || capture.count("listening on") == 1);
        capture
    }

    /// What it has printed so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.0.lock().expect("nobody panics").clone()
    }

    /// Number of lines with this text.
    pub(crate) fn count(&self, text: &str) -> usize {
        self.lines().iter().filter(|line| line.contains(text)).count()
    }
}
