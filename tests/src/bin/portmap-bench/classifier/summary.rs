//! Costs and ratios that follow from the measurements, and whether they meet the goals.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use crate::classifier::{
    layout::{self, Mix},
    mesos,
    publish::Published,
    statistics::{Estimate, Random, bootstrap, difference, median, median_difference, minimum},
    test_runs::{EMPTY, EMPTY_AGAIN, Probe, Run},
    trials::{Measured, Variant},
};
use crate::machine::Machine;

/// The least number of undisturbed rounds for a result.
const LEAST_ROUNDS: usize = 5;

/// All reported results.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) machine: Machine,
    /// The attach mode of the programs.
    pub(crate) mechanism: String,
    pub(crate) seed: u64,
    /// Steal time during the measurement, in ticks.
    pub(crate) steal_ticks: u64,
    /// Context switches to other tasks during the measurement.
    pub(crate) switches: u64,
    pub(crate) receive_path: Vec<PathCase>,
    pub(crate) programs: Vec<ProgramCost>,
    pub(crate) publish: Vec<Published>,
    pub(crate) again: Again,
    pub(crate) goals: Vec<Goal>,
}

/// Nanoseconds per packet.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Level {
    pub(crate) minimum: f64,
    pub(crate) median: f64,
}

/// The receive path with a number of containers and a mix of ports.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PathCase {
    pub(crate) containers: u16,
    pub(crate) mix: Mix,
    /// Length of Mesos' list.
    pub(crate) filters: usize,
    pub(crate) rounds: usize,
    pub(crate) dropped_rounds: usize,
    /// Trials that were discarded and repeated.
    pub(crate) repeated_trials: u32,
    /// By variant.
    pub(crate) nanoseconds: BTreeMap<String, Level>,
    /// Relative to no classifier.
    pub(crate) empty: Estimate,
    /// Relative to no classifier.
    pub(crate) deliver: Estimate,
    /// Relative to no classifier.
    pub(crate) portmap: Estimate,
    /// Relative to no classifier.
    pub(crate) u32: Estimate,
    /// Relative to the smallest program that does the same with the packet: the empty or the delivering one.
    pub(crate) portmap_verdict: Estimate,
    /// Relative to that program.
    pub(crate) u32_verdict: Estimate,
    /// Cost of the list divided by that of portmap, both relative to no classifier.
    pub(crate) ratio: Estimate,
    /// The same ratio, both relative to the empty program.
    pub(crate) ratio_over_empty: Estimate,
    /// The same ratio, both relative to the smallest program that does the same with the packet.
    pub(crate) ratio_of_verdicts: Estimate,
    /// Second measurement minus the first.
    pub(crate) none_again: Estimate,
    pub(crate) portmap_again: Estimate,
}

/// A program alone.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ProgramCost {
    pub(crate) name: String,
    pub(crate) owned_ports: Option<u16>,
    pub(crate) rounds: usize,
    pub(crate) dropped_rounds: usize,
    pub(crate) nanoseconds: Level,
    /// Relative to the empty program.
    pub(crate) cost: Estimate,
}

/// Comparisons of variants with themselves (A/A test).
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Again {
    pub(crate) checks: usize,
    /// Number of intervals that contain zero.
    pub(crate) hold_zero: usize,
    /// The largest difference found, in nanoseconds.
    pub(crate) largest: f64,
}

impl Again {
    /// Whether more intervals miss zero than chance explains: one in twenty does, so this allows three in
    /// sixteen.
    pub(crate) const fn is_too_noisy(&self) -> bool {
        (self.checks - self.hold_zero) * 16 > self.checks * 3
    }
}

/// A goal, and whether it is met.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Goal {
    pub(crate) text: String,
    pub(crate) measured: String,
    pub(crate) met: bool,
}

impl Summary {
    /// Compares the measurements with the goals again, whose texts or values may have changed since.
    pub(crate) fn update_goals(&mut self) {
        self.goals = goals(&self.receive_path, &self.programs, &self.publish);
    }

    pub(crate) fn new(
        (machine, attach_mode, seed): (Machine, &'static str, u64),
        measured: &[Measured],
        (probes, runs): (&[Probe], &[Vec<Run>]),
        publish: Vec<Published>,
        random: &mut Random,
    ) -> Result<Self> {
        let mut receive_path = Vec::new();
        for containers in layout::CONTAINERS {
            for mix in Mix::ALL {
                receive_path.push(path_case(containers, mix, measured, random)?);
            }
        }
        let programs = (EMPTY_AGAIN..probes.len())
            .map(|place| program_cost(&probes[place], place, runs, random))
            .collect::<Result<Vec<_>>>()?;
        let again = again(&receive_path, &programs);
        let goals = goals(&receive_path, &programs, &publish);
        let steal_path: u64 = measured.iter().map(|case| case.steal).sum();
        let steal_programs: u64 = runs.iter().flatten().map(|run| run.disturbance.steal).sum();
        let switches_path: u64 = measured.iter().map(|case| case.switches).sum();
        let switches_programs: u64 = runs.iter().flatten().map(|run| run.disturbance.switches).sum();
        Ok(Self {
            machine,
            mechanism: attach_mode.to_owned(),
            seed,
            steal_ticks: steal_path + steal_programs,
            switches: switches_path + switches_programs,
            receive_path,
            programs,
            publish,
            again,
            goals,
        })
    }

    /// The case with so many containers and this mix.
    pub(crate) fn case(&self, containers: u16, mix: Mix) -> &PathCase {
        case(&self.receive_path, containers, mix)
    }
}

fn case(cases: &[PathCase], containers: u16, mix: Mix) -> &PathCase {
    let wanted = |case: &&PathCase| case.containers == containers && case.mix == mix;
    cases.iter().find(wanted).expect("every case is measured")
}

fn path_case(containers: u16, mix: Mix, measured: &[Measured], random: &mut Random) -> Result<PathCase> {
    let all: Vec<&Measured> =
        measured.iter().filter(|case| case.containers == containers && case.mix == mix).collect();
    let rounds: Vec<&Measured> = all.iter().copied().filter(|case| !case.disturbed).collect();
    ensure!(
        rounds.len() >= LEAST_ROUNDS,
        "only {} of {} rounds with {containers} containers were undisturbed, expected at least {LEAST_ROUNDS}: \
         the machine is too busy to measure",
        rounds.len(),
        all.len()
    );
    let nanoseconds = Variant::ALL
        .map(|variant| {
            let values: Vec<f64> = rounds.iter().map(|case| case.per_packet(variant)).collect();
            (variant.name().to_owned(), level(&values))
        })
        .into();
    let mut minus = |variant: Variant, base: Variant| {
        difference(&rounds, random, |case| (case.per_packet(variant), case.per_packet(base)))
    };
    let empty = minus(Variant::Empty, Variant::None);
    let deliver = minus(Variant::Deliver, Variant::None);
    let portmap = minus(Variant::Portmap, Variant::None);
    let u32 = minus(Variant::U32, Variant::None);
    let least = if mix == Mix::Owned { Variant::Deliver } else { Variant::Empty };
    let portmap_verdict = minus(Variant::Portmap, least);
    let u32_verdict = minus(Variant::U32, least);
    let none_again = minus(Variant::NoneAgain, Variant::None);
    let portmap_again = minus(Variant::PortmapAgain, Variant::Portmap);
    let mut ratio = |base: Variant| {
        bootstrap(&rounds, random, |rounds| {
            let cost =
                |variant| median_difference(rounds, |case| (case.per_packet(variant), case.per_packet(base)));
            cost(Variant::U32) / cost(Variant::Portmap)
        })
    };
    Ok(PathCase {
        containers,
        mix,
        filters: usize::from(containers) * layout::RANGES,
        rounds: rounds.len(),
        dropped_rounds: all.len() - rounds.len(),
        repeated_trials: all.iter().map(|case| case.repeated).sum(),
        nanoseconds,
        empty,
        deliver,
        portmap,
        u32,
        portmap_verdict,
        u32_verdict,
        ratio: ratio(Variant::None),
        ratio_over_empty: ratio(Variant::Empty),
        ratio_of_verdicts: ratio(least),
        none_again,
        portmap_again,
    })
}

fn program_cost(probe: &Probe, place: usize, runs: &[Vec<Run>], random: &mut Random) -> Result<ProgramCost> {
    let undisturbed =
        |round: &&Vec<Run>| round[place].disturbance.is_none() && round[EMPTY].disturbance.is_none();
    let rounds: Vec<&Vec<Run>> = runs.iter().filter(undisturbed).collect();
    ensure!(
        rounds.len() >= LEAST_ROUNDS,
        "only {} of {} rounds of {:?} were undisturbed, expected at least {LEAST_ROUNDS}: the machine is too busy \
         to measure",
        rounds.len(),
        runs.len(),
        probe.name
    );
    let values: Vec<f64> = rounds.iter().map(|round| round[place].nanoseconds).collect();
    Ok(ProgramCost {
        name: probe.name.clone(),
        owned_ports: probe.owned_ports,
        rounds: rounds.len(),
        dropped_rounds: runs.len() - rounds.len(),
        nanoseconds: level(&values),
        cost: difference(&rounds, random, |round| (round[place].nanoseconds, round[EMPTY].nanoseconds)),
    })
}

fn level(values: &[f64]) -> Level {
    Level { minimum: minimum(values), median: median(values) }
}

fn again(cases: &[PathCase], programs: &[ProgramCost]) -> Again {
    let mut estimates: Vec<Estimate> =
        cases.iter().flat_map(|case| [case.none_again, case.portmap_again]).collect();
    // The first of the programs is the empty one against itself.
    estimates.extend(programs.first().map(|program| program.cost));
    Again {
        checks: estimates.len(),
        hold_zero: estimates.iter().filter(|estimate| estimate.holds_zero()).count(),
        largest: estimates.iter().map(|estimate| estimate.value.abs()).fold(0.0, f64::max),
    }
}

fn goals(cases: &[PathCase], programs: &[ProgramCost], publish: &[Published]) -> Vec<Goal> {
    let uplink: Vec<f64> = programs
        .iter()
        // On a host with one address.
        .filter(|program| program.name.starts_with("uplink") && !program.name.ends_with("further addresses"))
        .map(|program| program.cost.value)
        .collect();
    let most = uplink.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let owned: Vec<f64> = programs
        .iter()
        .filter(|program| program.owned_ports.is_some())
        .map(|program| program.cost.value)
        .collect();
    let spread = owned.iter().copied().fold(f64::NEG_INFINITY, f64::max) - minimum(&owned);
    let cost_of = |name: &str| {
        let found = programs.iter().find(|program| program.name == name);
        found.map_or(f64::NAN, |program| program.cost.value)
    };
    let addresses = (cost_of("uplink, to a container, 1000 further addresses")
        - cost_of("uplink, to a container, 16384 owned ports"))
    .abs();
    let mut goals = vec![
        Goal {
            text: "the uplink's program takes at most 12 ns more than an empty one".to_owned(),
            measured: format!("{most:.1} ns"),
            met: most <= 12.0,
        },
        Goal {
            text: "its costs with 1 to 65,535 owned ports differ by at most 2 ns".to_owned(),
            measured: format!("{spread:.1} ns"),
            met: spread <= 2.0,
        },
        Goal {
            text: "1,000 further addresses of the host change them by at most 2 ns".to_owned(),
            measured: format!("{addresses:.1} ns"),
            met: addresses <= 2.0,
        },
    ];
    for (containers, least) in [(100, 50.0), (1_000, 500.0)] {
        for mix in Mix::ALL {
            let case = case(cases, containers, mix);
            goals.push(Goal {
                text: format!(
                    "costs at most 1/{least} of {} u32 filters, {} ports",
                    case.filters,
                    mix.name()
                ),
                measured: format!(
                    "1/{:.0} (verdicts alone 1/{:.0})",
                    case.ratio.value, case.ratio_of_verdicts.value
                ),
                met: case.ratio.value >= least,
            });
        }
    }
    if let Some(first) = publish.first() {
        goals.push(Goal {
            text: format!("{} ports are published in at most 10 µs", first.ports),
            measured: format!("{:.2} µs", first.mapped_median),
            met: first.mapped_median <= 10.0,
        });
    }
    goals
}

/// Whether Mesos itself could have installed a list of this length.
pub(crate) const fn mesos_allows(filters: usize) -> bool {
    filters <= mesos::MOST_FILTERS
}

/// The undisturbed share of all rounds, in percent.
pub(crate) fn share_kept(summary: &Summary) -> f64 {
    let kept: Vec<f64> = summary
        .receive_path
        .iter()
        .map(|case| count(case.rounds) / count(case.rounds + case.dropped_rounds) * 100.0)
        .collect();
    minimum(&kept)
}

fn count(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}
