//! Benchmarks of the classifier: what a packet costs, against nothing, an empty program, and the lists of filters
//! of Apache Mesos.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use clap::Args;

mod layout;
mod mesos;
mod plot;
mod proof;
mod publish;
mod report;
mod source;
mod statistics;
mod summary;
mod test_runs;
mod trials;
mod world;

use crate::machine::Machine;

use self::{proof::Ends, source::Source, statistics::Random, summary::Summary, trials::Plan, world::World};

/// Measures what portmap's classifier costs per packet, against Apache Mesos' lists of u32 filters.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Takes less than a minute instead of several; the intervals get wider.
    #[arg(long)]
    quick: bool,
    /// Directory for raw data, summary and plot.
    #[arg(long, value_name = "DIR", default_value = "docs/benchmarks/classifier")]
    output: PathBuf,
    /// Seed of the order of trials and of the packets' ports.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

/// Measures.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let (plan, test_rounds) = if arguments.quick {
        (Plan { rounds: 10, trial: Duration::from_millis(4), least_packets: 512 }, 20)
    } else {
        (Plan { rounds: 100, trial: Duration::from_millis(10), least_packets: 1_024 }, 120)
    };
    fs::create_dir_all(&arguments.output)
        .with_context(|| format!("cannot make {}", arguments.output.display()))?;
    let mut random = Random::new(arguments.seed);
    world::leave_the_host()?;
    let machine = Machine::take_cpu()?;
    let mut source = Source::load()?;
    eprintln!(
        "making {} containers, one uplink for each variant, and Mesos' filters",
        layout::MOST_CONTAINERS
    );
    let world = World::build(&mut source)?;
    let ends = Ends::open(&world)?;
    eprintln!("proving that packets take the right way through each variant");
    let cases = trials::prepare(&world, &mut source, &ends, &plan, &mut random)?;
    eprintln!("measuring the receive path, {} rounds", plan.rounds);
    let progress = |round: usize| {
        if round.is_multiple_of(plan.rounds.div_ceil(6)) {
            eprintln!("  {round} rounds");
        }
    };
    let measured = trials::run((&world, &mut source, &ends), &machine, &cases, &plan, &mut random, progress)?;
    eprintln!("measuring the programs alone, {test_rounds} rounds");
    let probes = test_runs::probes();
    let runs = test_runs::run((&world, &mut source), &machine, &probes, test_rounds, &mut random)?;
    let published = publish::run(&world)?;
    report::write_raw(&arguments.output, &measured, (&probes, &runs))?;
    let seed = arguments.seed;
    let mechanism = world.attach_mode.name();
    let summary =
        Summary::new((machine, mechanism, seed), &measured, (&probes, &runs), published, &mut random)?;
    report::write_summary(&arguments.output, &summary)?;
    plot::draw(&arguments.output, &summary)?;
    print!("{}", report::text(&summary)?);
    println!("\nRaw data, summary and plot: {}", arguments.output.display());
    Ok(())
}
