//! The command `portmap`.

use std::process::ExitCode;

use clap::Parser as _;
use portmap::cli::{self, Command};

fn main() -> ExitCode {
    cli::run(Command::parse())
}
