//! Background programs of a test.

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
    sync::{Arc, Mutex},
    thread,
};

use crate::{
    sandbox::{Netns, Sandbox},
    wait,
};

/// A program that runs until its sandbox ends, and its output.
#[derive(Clone, Debug)]
pub struct Background(Arc<Mutex<Vec<String>>>);

impl Background {
    /// Starts a program with its arguments, split as a shell does, in a network namespace.
    ///
    /// # Panics
    ///
    /// Panics if there is no shell.
    pub fn start(sandbox: &Sandbox, netns: Netns<'_>, command: &str) -> Self {
        let mut process = sandbox
            .command(netns, "sh")
            .args(["-c", &format!("exec {command} 2>&1")])
            .stdout(Stdio::piped())
            .spawn()
            .expect("a shell");
        let output = process.stdout.take().expect("piped");
        let lines = Arc::new(Mutex::new(Vec::new()));
        let kept = lines.clone();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                kept.lock().expect("not poisoned").push(line);
            }
            let _ = process.wait();
        });
        Self(lines)
    }

    /// Starts a server and waits until it listens on a port.
    pub fn server(sandbox: &Sandbox, netns: Netns<'_>, port: u16, command: &str) -> Self {
        let server = Self::start(sandbox, netns, command);
        let script = format!("ss -Hlntu 'sport = :{port}'");
        wait::until(command, || !sandbox.sh(netns, &script).is_empty());
        server
    }

    /// Starts `tcpdump` on all interfaces of a namespace, printing packets with their bytes, and waits
    /// until it captures.
    pub fn capture(sandbox: &Sandbox, netns: Netns<'_>, filter: &str) -> Self {
        let command = format!("tcpdump -Z root -i any -nlx --immediate-mode '{filter}'");
        let capture = Self::start(sandbox, netns, &command);
        wait::until("tcpdump to start", || capture.count("listening on") == 1);
        capture
    }

    /// Returns the output so far.
    ///
    /// # Panics
    ///
    /// Panics if the thread that reads it has.
    pub fn lines(&self) -> Vec<String> {
        self.0.lock().expect("not poisoned").clone()
    }

    /// Returns the number of lines that contain this text.
    pub fn count(&self, text: &str) -> usize {
        self.lines().iter().filter(|line| line.contains(text)).count()
    }
}
