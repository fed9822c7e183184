//! A running `portmap events`.

use std::{
    process::{Child, Stdio},
    sync::mpsc::Receiver,
};

use serde_json::{Value, json};

use crate::{lines, sandbox::Sandbox, wait};

/// The command, and what it prints.
#[derive(Debug)]
pub struct Events {
    process: Child,
    lines: Receiver<String>,
}

impl Events {
    /// Starts it and waits until it is subscribed.
    ///
    /// # Panics
    ///
    /// Panics if it prints anything else first.
    pub fn follow(sandbox: &Sandbox, arguments: &[&str]) -> Self {
        let mut process = sandbox
            .portmap_command(&[&["events"], arguments].concat())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the command runs");
        let lines = lines::of(process.stdout.take().expect("piped"));
        let events = Self { process, lines };
        assert_eq!(events.next()["event"], "subscribed");
        events
    }

    /// Waits for the next event.
    ///
    /// # Panics
    ///
    /// Panics if none comes.
    pub fn next(&self) -> Value {
        let line = self.lines.recv_timeout(wait::LIMIT).expect("an event");
        serde_json::from_str(&line).expect("JSON")
    }

    /// Waits for the next event, of this kind and container, and returns it.
    ///
    /// # Panics
    ///
    /// Panics if another one comes.
    pub fn expect(&self, kind: &str, container: &str) -> Value {
        let event = self.next();
        assert_eq!(
            (&event["event"], &event["container"]["name"]),
            (&json!(kind), &json!(container)),
            "{event}"
        );
        event
    }

    /// Waits for an event about the host whose text ends like this.
    ///
    /// # Panics
    ///
    /// Panics if no more events come before.
    pub fn expect_host(&self, end: &str) {
        loop {
            let event = self.next();
            if event["event"] == "host_changed" && event["text"].as_str().expect("a text").ends_with(end) {
                return;
            }
        }
    }

    /// Waits until a line contains a text. It may be the last one, after which the daemon ends.
    ///
    /// # Panics
    ///
    /// Panics if none does.
    pub fn wait_for(&self, text: &str) {
        wait::until("the line", || self.lines.try_recv().is_ok_and(|line| line.contains(text)));
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
