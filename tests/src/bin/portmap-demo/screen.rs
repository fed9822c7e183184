//! Output of the demonstration, in colour on a terminal.

use std::{
    env,
    io::{self, IsTerminal as _},
};

/// The terminal, or another output without colour.
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

    /// Prints a command line and its output.
    pub(crate) fn command(&self, command: &str, output: &str) {
        println!("  {}", self.paint(DIM, &format!("$ {command}")));
        say(output);
    }

    /// Prints a packet's path and its destination.
    pub(crate) fn arrives(&self, way: &str, end: &str) {
        println!("  {way:<44} {}", self.paint(GREEN, end));
    }

    /// Prints a packet's path and the reason of its drop.
    pub(crate) fn dropped(&self, way: &str, reason: &str) {
        println!("  {way:<44} {}", self.paint(RED, &format!("dropped: {reason}")));
    }
}

/// Prints lines, indented.
pub(crate) fn say(text: &str) {
    for line in text.lines() {
        println!("  {line}");
    }
}
