//! A program in a pseudo-terminal, and its screen as text.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::{AsFd as _, OwnedFd},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard},
    thread::{self, JoinHandle},
};

use nix::{
    pty::{OpenptyResult, Winsize, openpty},
    sys::termios::{Termios, tcgetattr},
};

use crate::wait;

/// A running program with a terminal of its own.
#[derive(Debug)]
pub struct Terminal {
    process: Child,
    /// The end of a person: keys go in.
    master: File,
    /// The end of the program, which keeps the terminal open when the program has ended.
    slave: OwnedFd,
    emulator: Arc<Mutex<Emulator>>,
    reader: Option<JoinHandle<()>>,
    /// The mode of the terminal before the program started.
    before: Termios,
}

/// What the terminal shows.
struct Emulator(vt100::Parser);

impl std::fmt::Debug for Emulator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.screen().contents())
    }
}

impl Terminal {
    /// Starts a program in a terminal of this size.
    ///
    /// # Panics
    ///
    /// Panics if that fails.
    pub fn start(command: &Command, rows: u16, columns: u16) -> Self {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let OpenptyResult { master, slave } = openpty(&size, None).expect("a pseudo-terminal");
        let before = tcgetattr(&slave).expect("a terminal");
        // A session of its own, whose controlling terminal this is.
        let mut wrapped = Command::new("setsid");
        wrapped.args(["--ctty", "--wait"]).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => wrapped.env(name, value),
                None => wrapped.env_remove(name),
            };
        }
        let end = || Stdio::from(slave.try_clone().expect("a descriptor"));
        let process =
            wrapped.stdin(end()).stdout(end()).stderr(end()).spawn().expect("setsid is part of util-linux");
        let emulator = Arc::new(Mutex::new(Emulator(vt100::Parser::new(rows, columns, 0))));
        let mut output = File::from(master.try_clone().expect("a descriptor"));
        let screen = emulator.clone();
        let reader = thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = output.read(&mut buffer) {
                screen.lock().expect("no panic").0.process(&buffer[..length]);
            }
        });
        Self { process, master: File::from(master), slave, emulator, reader: Some(reader), before }
    }

    fn emulator(&self) -> MutexGuard<'_, Emulator> {
        self.emulator.lock().expect("no panic")
    }

    /// The screen, line by line, without the spaces at the ends of lines.
    pub fn text(&self) -> String {
        let text = self.emulator().0.screen().contents();
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        lines.join("\n").trim_end().to_owned()
    }

    /// The screen with the sequences that draw it, such as those of colours.
    pub fn formatted(&self) -> String {
        String::from_utf8_lossy(&self.emulator().0.screen().contents_formatted()).into_owned()
    }

    /// Types these characters.
    pub fn keys(&self, keys: &str) {
        (&self.master).write_all(keys.as_bytes()).expect("the terminal is open");
    }

    /// Waits until the screen satisfies a condition, and returns it.
    ///
    /// # Panics
    ///
    /// Panics after the limit of [`wait`]; the message contains the screen.
    pub fn wait(&self, what: &str, condition: impl Fn(&str) -> bool) -> String {
        // Printed by a test that fails only.
        let guard = ShownIfPanicking(self);
        let text = wait::for_value(what, || Some(self.text()).filter(|text| condition(text)));
        std::mem::forget(guard);
        text
    }

    /// Waits until the screen contains a text.
    pub fn wait_for(&self, text: &str) -> String {
        self.wait(text, |screen| screen.contains(text))
    }

    /// Changes the size of the terminal, as a window's user does.
    ///
    /// # Panics
    ///
    /// Panics if that fails.
    pub fn resize(&self, rows: u16, columns: u16) {
        self.emulator().0.screen_mut().set_size(rows, columns);
        let mut stty = Command::new("stty");
        stty.args(["rows", &rows.to_string(), "cols", &columns.to_string()]);
        let status = stty.stdin(self.slave.try_clone().expect("a descriptor")).status();
        assert!(status.expect("stty is part of coreutils").success());
    }

    /// Whether a program has the whole screen for itself: the alternate screen, without a cursor.
    pub fn is_taken(&self) -> bool {
        let emulator = self.emulator();
        let screen = emulator.0.screen();
        screen.alternate_screen() || screen.hide_cursor()
    }

    /// The process id of the program itself, below its wrappers.
    pub fn pid(&self) -> u32 {
        wait::for_value("the program to start", || {
            let mut pid = self.process.id();
            while let Some(child) = child_of(pid) {
                pid = child;
            }
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
            (name.trim() == "portmap").then_some(pid)
        })
    }

    /// Waits until the program ends, and checks that the terminal is as it was before.
    ///
    /// # Panics
    ///
    /// Panics if it is not restored.
    pub fn expect_restored(&mut self) -> ExitStatus {
        let status = wait::for_value("the program to end", || self.process.try_wait().expect("a status"));
        wait::until("the terminal to be restored", || !self.is_taken());
        let after = tcgetattr(self.slave.as_fd()).expect("a terminal");
        assert_eq!(after.local_flags, self.before.local_flags);
        assert_eq!(after.input_flags, self.before.input_flags);
        assert_eq!(after.output_flags, self.before.output_flags);
        status
    }
}

/// The child of a process that has one.
fn child_of(pid: u32) -> Option<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

struct ShownIfPanicking<'a>(&'a Terminal);

impl Drop for ShownIfPanicking<'_> {
    fn drop(&mut self) {
        println!("the screen:\n{}", self.0.text());
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        // The reader ends with the last descriptor of the program's end.
        drop(std::mem::replace(&mut self.slave, OwnedFd::from(File::open("/dev/null").expect("a file"))));
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}
