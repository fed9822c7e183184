//! Benchmarks: what a packet costs, and how well limits on rates are kept.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod classifier;
mod containers;
mod machine;
mod paper;
mod shaping;
mod text;

/// Measures what portmap's classifier costs per packet, against Apache Mesos' lists of u32 filters; or something else that
/// is named.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench", args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(flatten)]
    classifier: classifier::Arguments,
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Measures how well limits on rates are kept, and how much neighbours feel of each other.
    Shaping(shaping::Arguments),
    /// Measures how long it takes to add, list, change and remove containers, and what the daemon needs, by their number.
    Containers(containers::Arguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match &arguments.what {
        None => classifier::run(&arguments.classifier),
        Some(What::Shaping(shaping)) => shaping::run(shaping),
        Some(What::Containers(containers)) => containers::run(containers),
    };
    if let Err(error) = result {
        eprintln!("error: {error:#}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
