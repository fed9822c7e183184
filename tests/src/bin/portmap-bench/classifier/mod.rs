//! Benchmarks of the classifier: the cost of a packet, compared with no classifier, with an empty program,
//! and with the filter lists of Apache Mesos.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use clap::Args;

mod hosts;
mod iproute2;
mod layout;
mod mesos;
mod plot;
mod publish;
mod report;
pub(crate) mod source;
pub(crate) mod statistics;
mod summary;
pub(crate) mod test_runs;
mod trials;
mod verify;
pub(crate) mod world;

use crate::machine::Machine;

use self::{source::Source, statistics::Random, summary::Summary, trials::Plan, verify::Sinks, world::World};

/// Measures the cost of portmap's classifier per packet, compared with Apache Mesos' lists of u32 filters.
#[derive(Debug, Args)]
// The command that includes these arguments has a group of the same name.
#[group(skip)]
pub(crate) struct Arguments {
    /// Take less than a minute instead of several; confidence intervals are wider.
    #[arg(long)]
    quick: bool,
    /// Directory for raw data, summary and plot.
    #[arg(long, value_name = "DIR", default_value = "docs/benchmarks/classifier")]
    output: PathBuf,
    /// Seed of the order of trials and of the packets' ports.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Write the report and the plot again from the summary in the output directory, without measuring.
    #[arg(long, conflicts_with_all = ["quick", "seed"])]
    redraw: bool,
}

/// Measures, or reads the summary of an earlier measurement, and writes the report and the plot.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let mut summary = if arguments.redraw {
        report::read_summary(&arguments.output)?
    } else {
        fs::create_dir_all(&arguments.output)
            .with_context(|| format!("cannot make {}", arguments.output.display()))?;
        measure(arguments)?
    };
    if arguments.redraw {
        summary.update_goals();
    } else {
        report::write_summary(&arguments.output, &summary)?;
    }
    report::write(&arguments.output, &summary)?;
    plot::draw(&arguments.output, &summary)?;
    print!("{}", report::text(&summary)?);
    println!("\nRaw data, summary and plot: {}", arguments.output.display());
    Ok(())
}

/// Measures, and writes the raw data.
fn measure(arguments: &Arguments) -> Result<Summary> {
    let (plan, test_rounds) = if arguments.quick {
        (Plan { rounds: 10, trial: Duration::from_millis(4), least_packets: 512 }, 20)
    } else {
        (Plan { rounds: 100, trial: Duration::from_millis(10), least_packets: 1_024 }, 120)
    };
    let mut random = Random::new(arguments.seed);
    world::leave_the_host()?;
    let machine = Machine::take_cpu()?;
    let mut source = Source::load()?;
    eprintln!(
        "creating {} containers, one uplink for each variant, and Mesos' filters",
        layout::MOST_CONTAINERS
    );
    let world = World::build(&mut source)?;
    let sinks = Sinks::open(&world)?;
    eprintln!("verifying the path of packets through each variant");
    let cases = trials::prepare(&world, &mut source, &sinks, &plan, &mut random)?;
    eprintln!("measuring the receive path, {} rounds", plan.rounds);
    let progress = |round: usize| {
        if round.is_multiple_of(plan.rounds.div_ceil(6)) {
            eprintln!("  {round} rounds");
        }
    };
    let measured =
        trials::run((&world, &mut source, &sinks), &machine, &cases, &plan, &mut random, progress)?;
    hosts::prepare(&world)?;
    eprintln!("measuring the programs alone, {test_rounds} rounds");
    let probes = test_runs::probes();
    let runs = test_runs::run((&world, &mut source), &machine, &probes, test_rounds, &mut random)?;
    let published = publish::run(&world)?;
    report::write_raw(&arguments.output, &measured, (&probes, &runs))?;
    let seed = arguments.seed;
    let attach_mode = world.attach_mode.name();
    Summary::new((machine, attach_mode, seed), &measured, (&probes, &runs), published, &mut random)
}
