//! The demonstration: a host, the outside and three containers in a sandbox, with real traffic between them.

mod scenes;
mod screen;

use clap::Parser;
use portmap_tests::sandbox::Sandbox;

use crate::screen::Screen;

/// Shows on real traffic what portmap does, in namespaces of its own that leave no trace.
#[derive(Parser)]
#[command(name = "portmap-demo")]
struct Command {
    /// Leave the sandbox up and say how to look around in it
    #[arg(long)]
    keep: bool,
}

fn main() {
    let command = Command::parse();
    let screen = Screen::new();
    let sandbox = if command.keep { Sandbox::lasting() } else { Sandbox::new() };
    let daemon = scenes::play(&screen, &sandbox);
    if command.keep {
        scenes::how_to_look_around(&screen, &sandbox);
        // Neither is to end with this process.
        std::mem::forget((daemon, sandbox));
    } else {
        scenes::clean_up(&screen, &sandbox, daemon);
    }
}
