//! Benchmarks: the cost of a packet, the accuracy of rate limits, the scaling with the number of containers, and
//! the cost of the live view.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod canvas;
mod classifier;
mod containers;
#[cfg(feature = "datapath-log")]
mod datapath_log;
mod machine;
mod shaping;
mod text;
mod top;

/// Measures the cost of portmap's classifier per packet, compared with Apache Mesos' lists of u32 filters,
/// unless a subcommand names another benchmark.
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
    /// Measure the accuracy of rate limits, and the isolation of neighbours.
    Shaping(shaping::Arguments),
    /// Measure the time of commands and the memory of the daemon by the number of containers.
    Containers(containers::Arguments),
    /// Measure the CPU time of `portmap top` with many containers.
    Top(top::Arguments),
    /// Measure the cost of the log of verdicts.
    #[cfg(feature = "datapath-log")]
    DatapathLog(datapath_log::Arguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match &arguments.what {
        None => classifier::run(&arguments.classifier),
        Some(What::Shaping(shaping)) => shaping::run(shaping),
        Some(What::Containers(containers)) => containers::run(containers),
        Some(What::Top(top)) => top::run(top),
        #[cfg(feature = "datapath-log")]
        Some(What::DatapathLog(log)) => datapath_log::run(log),
    };
    if let Err(error) = result {
        eprintln!("error: {error:#}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn arguments_are_consistent() {
        Arguments::command().debug_assert();
    }
}
