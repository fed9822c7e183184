//! The cost of the log of verdicts (feature `datapath-log`), by `BPF_PROG_TEST_RUN`.

use std::{fs, path::Path, thread, time::Duration};

use anyhow::{Context as _, Result};
use clap::Args;
use portmap::{
    kernel::{programs, verdict_log::VerdictLog},
    object,
};
use portmap_common::verdict_log::{LOG_WINDOW, LogFilter};

use crate::{
    classifier::{
        source::Source,
        statistics::{Random, median},
        test_runs::{self, EMPTY, LIMITED_SLOT, Probe, SLOT},
        world::{self, World},
    },
    machine::Machine,
    text::{number, table},
};

/// The measured packets, and the slot of their container.
const PROBES: [(&str, u16); 3] = [
    ("uplink, to a container, 1 owned ports", LIMITED_SLOT),
    ("host veth, to outside", SLOT),
    ("host veth, foreign source port", SLOT),
];
/// A container without packets.
const OTHER_SLOT: u16 = 4000;
/// A port without packets.
const OTHER_PORT: u16 = 9;
/// Records that are measured at once, fewer than the limit.
const RECORDS: u32 = 50;
/// The object of a build without the feature, which `cargo xtask check` compares with its sources.
const DEFAULT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../portmap-ebpf/objects/portmap-ebpf.o");

/// Measures what the log of verdicts adds to a packet, in a build with the feature `datapath-log`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Number of rounds.
    #[arg(long, value_name = "N", default_value_t = 40)]
    rounds: usize,
}

/// Measures, and prints a table.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    world::leave_the_host()?;
    let machine = Machine::take_cpu()?;
    let mut bench = Bench {
        source: Source::load()?,
        probes: probes()?,
        random: Random::new(1),
        rounds: arguments.rounds,
        machine,
    };
    let world = World::build(&mut bench.source)?;
    let mut rows = table(&["", "to a container", "to outside", "dropped"]);
    let default = fs::read(Path::new(DEFAULT)).with_context(|| format!("cannot read {DEFAULT}"))?;
    drop(programs::load_object(&world.pins, &default)?);
    rows.add_row(row("default build", bench.measure(&world)?));
    let mut object = programs::load_object(&world.pins, object::bytes())?;
    rows.add_row(row("with the feature, nothing chosen", bench.measure(&world)?));
    let mut log = VerdictLog::start(&mut object, |_record| ())?;
    log.set_filter(LogFilter { slot: OTHER_SLOT.into(), port: 0 })?;
    rows.add_row(row("another container is chosen", bench.measure(&world)?));
    log.set_filter(LogFilter { slot: 0, port: OTHER_PORT.into() })?;
    rows.add_row(row("another port is chosen", bench.measure(&world)?));
    let (mut suppressed, mut recorded) = (Vec::new(), Vec::new());
    for (place, (_, slot)) in PROBES.into_iter().enumerate() {
        log.set_filter(LogFilter { slot: slot.into(), port: 0 })?;
        suppressed.push(bench.measure(&world)?[place]);
        recorded.push(bench.record(&world, &mut log, place)?);
    }
    rows.add_row(row("the container is chosen, above the limit of records", suppressed));
    rows.add_row(row("the container is chosen, with a record", recorded));
    println!("Nanoseconds per packet, empty program subtracted: medians of {} rounds.\n", bench.rounds);
    println!("{rows}\n\n{} on Linux {}", bench.machine.cpu, bench.machine.kernel);
    Ok(())
}

/// Returns the empty program's probe and the measured ones.
fn probes() -> Result<Vec<Probe>> {
    let mut all = test_runs::probes();
    let mut chosen = vec![all.remove(EMPTY)];
    for (name, _slot) in PROBES {
        let place = all.iter().position(|probe| probe.name == name);
        chosen.push(all.swap_remove(place.with_context(|| format!("there is no probe {name}"))?));
    }
    Ok(chosen)
}

struct Bench {
    source: Source,
    probes: Vec<Probe>,
    random: Random,
    rounds: usize,
    machine: Machine,
}

impl Bench {
    /// Returns the nanoseconds of each probe.
    fn measure(&mut self, world: &World) -> Result<Vec<f64>> {
        let own = (world, &mut self.source);
        let rounds = test_runs::run(own, &self.machine, &self.probes, self.rounds, &mut self.random)?;
        let of = |place: usize| {
            let differences = rounds.iter().map(|round| round[place].nanoseconds - round[EMPTY].nanoseconds);
            median(&differences.collect::<Vec<f64>>())
        };
        Ok((1..self.probes.len()).map(of).collect())
    }

    /// Returns the nanoseconds of a probe whose packets all have a record.
    fn record(&mut self, world: &World, log: &mut VerdictLog, place: usize) -> Result<f64> {
        let mut times = Vec::new();
        for _ in 0..self.rounds.div_ceil(4) {
            // The limit is over.
            thread::sleep(2 * Duration::from_nanos(LOG_WINDOW));
            log.wait(Duration::ZERO)?;
            times.push(test_runs::mean_time(world, &self.probes[place + 1], RECORDS)?);
            log.wait(Duration::ZERO)?;
        }
        let empty = test_runs::mean_time_of(
            self.source.classifier(crate::classifier::source::EMPTY)?,
            &self.probes[EMPTY],
            RECORDS,
        )?;
        Ok(median(&times) - empty)
    }
}

fn row(name: &str, times: Vec<f64>) -> Vec<String> {
    [name.to_owned()].into_iter().chain(times.into_iter().map(number)).collect()
}
