//! What the demonstration prints, in colour on a terminal.

use std::{
    env,
    io::{self, IsTerminal as _},
};

/// Where the demonstration is seen.
pub(crate) struct Screen {
    colour: bool,
}

const BOLD: &str = "1";
const GREEN: &str = "32";
const RED: &str = "31";
const DIM: &str = "2";

impl Screen {
    pub(crate) fn new() -> Self {
        Self { colour: io::stdout().is_terminal() && env::var_os("NO_COLOR").is_none() }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    pub(crate) fn title(&self, text: &str) {
        println!("\n{}", self.paint(BOLD, text));
    }

    /// A command as it would be typed, and what it prints.
    pub(crate) fn command(&self, command: &str, output: &str) {
        println!("  {}", self.paint(DIM, &format!("$ {command}")));
        say(output);
    }

    /// A packet's way and its end.
    pub(crate) fn arrives(&self, way: &str, end: &str) {
        println!("  {way:<44} {}", self.paint(GREEN, end));
    }

    /// A packet's way and why it ends.
    pub(crate) fn dropped(&self, way: &str, reason: &str) {
        println!("  {way:<44} {}", self.paint(RED, &format!("dropped: {reason}")));
    }
}

/// Prints lines as they are.
pub(crate) fn say(text: &str) {
    for line in text.lines() {
        println!("  {line}");
    }
}
