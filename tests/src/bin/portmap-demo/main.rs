//! The demonstration: a host, the outside and three containers in a sandbox, with real traffic between them.

mod scenes;
mod screen;

use clap::Parser;
use portmap_tests::sandbox::Sandbox;

use crate::screen::Screen;

/// Shows portmap on real traffic, in namespaces that end with this program.
#[derive(Parser)]
#[command(name = "portmap-demo")]
struct Command {
    /// Keep the sandbox, and print the commands to enter it
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
        // Both must outlive this process.
        std::mem::forget((daemon, sandbox));
    } else {
        scenes::clean_up(&screen, &sandbox, daemon);
    }
}
