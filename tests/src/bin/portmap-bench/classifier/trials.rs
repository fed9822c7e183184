//! Time per packet on the whole receive path, with each classifier in it.
//!
//! A round measures every case (a number of containers and a mix of ports), and in each case every variant,
//! in random order. The cost of a variant is its difference to another one in the same round, so that changes
//! between rounds (other tenants of the machine, the clock of the CPU) cancel out. The result of a trial is
//! the median of its batches, so that interrupts and other tasks, which disturb few batches, do not count. A
//! trial with steal time is repeated at once. If every attempt has steal time, the case is dropped from the
//! round.
//!
//! Frames carry the uplink's MAC address, because portmap redirects no others, and end right behind the
//! classifier: at the check of the IP header, on the host or in the container. A packet to a container's port
//! costs more than a verdict, because it changes namespace: portmap redirects to the peer, Mesos sends
//! through the veth pair and a CPU's backlog queue. This delivery touches more of the kernel's data the more
//! containers there are. To show its part of the cost, one variant reads the owner from the packet and only
//! redirects.

use std::time::Duration;

use anyhow::{Context as _, Result};
use portmap_common::tables::PortEntry;
use serde::Serialize;

use crate::classifier::{
    layout::{self, Mix},
    source::{BATCH, MOST_PACKETS, SEQUENCE, Source},
    statistics::{self, Random},
    verify::{self, Sinks},
    world::{Classifier, World},
};
use crate::machine::Machine;

/// Packets that verify the path through a classifier.
const VERIFIED: u32 = 8_192;
/// Attempts to make an undisturbed trial.
pub(crate) const ATTEMPTS: u32 = 6;

/// The classifier of a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Variant {
    /// No classifier.
    None,
    /// No classifier again: the difference is the noise of the method.
    NoneAgain,
    /// The empty program.
    Empty,
    /// The program that delivers without a verdict.
    Deliver,
    /// portmap.
    Portmap,
    /// portmap again.
    PortmapAgain,
    /// Mesos' list.
    U32,
}

impl Variant {
    pub(crate) const ALL: [Self; 7] = [
        Self::None,
        Self::NoneAgain,
        Self::Empty,
        Self::Deliver,
        Self::Portmap,
        Self::PortmapAgain,
        Self::U32,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::NoneAgain => "none_again",
            Self::Empty => "empty",
            Self::Deliver => "deliver",
            Self::Portmap => "portmap",
            Self::PortmapAgain => "portmap_again",
            Self::U32 => "u32",
        }
    }

    const fn classifier(self, containers: u16) -> Classifier {
        match self {
            Self::None | Self::NoneAgain => Classifier::None,
            Self::Empty => Classifier::Empty,
            Self::Deliver => Classifier::Deliver,
            Self::Portmap | Self::PortmapAgain => Classifier::Portmap,
            Self::U32 => Classifier::U32(containers),
        }
    }
}

/// The extent of the measurements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) rounds: usize,
    /// Duration of a trial, unless its least number of packets takes longer.
    pub(crate) trial: Duration,
    pub(crate) least_packets: u32,
}

/// A number of containers and a mix of ports.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) containers: u16,
    pub(crate) mix: Mix,
    table: Vec<PortEntry>,
    ports: Vec<u16>,
    /// Packets of a trial, by variant.
    packets: [u32; Variant::ALL.len()],
}

/// A case in a round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    pub(crate) round: usize,
    pub(crate) containers: u16,
    pub(crate) mix: Mix,
    /// By variant.
    pub(crate) packets: [u32; Variant::ALL.len()],
    /// Nanoseconds per packet in the median batch, by variant.
    pub(crate) nanoseconds: [f64; Variant::ALL.len()],
    /// Steal time in ticks.
    pub(crate) steal: u64,
    /// Context switches to other tasks.
    pub(crate) switches: u64,
    /// Trials that were discarded because of steal time.
    pub(crate) repeated: u32,
    /// Whether a kept trial has steal time.
    pub(crate) disturbed: bool,
}

impl Measured {
    /// Nanoseconds per packet.
    pub(crate) fn per_packet(&self, variant: Variant) -> f64 {
        self.nanoseconds[variant as usize]
    }
}

/// Prepares the cases, verifies the path of packets in each of them, and determines the number of packets of
/// a trial.
pub(crate) fn prepare(
    world: &World,
    source: &mut Source,
    sinks: &Sinks,
    plan: &Plan,
    random: &mut Random,
) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for containers in layout::CONTAINERS {
        for mix in Mix::ALL {
            let table = layout::table(containers);
            let ports = layout::sequence(containers, mix, SEQUENCE, random);
            let mut case = Case { containers, mix, table, ports, packets: [VERIFIED; _] };
            world.publish(&case.table);
            source.set_ports(&case.ports, &case.table)?;
            for variant in Variant::ALL {
                let classifier = variant.classifier(containers);
                let sent = (&*case.ports, &*case.table, VERIFIED);
                verify::verify(world, source, sinks, (classifier, mix), sent)
                    .with_context(|| format!("with {containers} containers"))?;
                source.send(classifier.ifindex(), 0, plan.least_packets)?;
                let times = source.times(0, plan.least_packets)?;
                case.packets[variant as usize] = packets(plan, statistics::median(&times));
            }
            cases.push(case);
        }
    }
    Ok(cases)
}

/// Returns the number of packets that fill a trial, a multiple of a batch, for a time per packet in
/// nanoseconds.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the cast saturates, as intended"
)]
fn packets(plan: &Plan, nanoseconds: f64) -> u32 {
    let fit = plan.trial.as_secs_f64() * 1e9 / nanoseconds;
    (fit as u32).clamp(plan.least_packets, MOST_PACKETS).next_multiple_of(BATCH)
}

/// Measures all rounds.
pub(crate) fn run(
    (world, source, sinks): (&World, &mut Source, &Sinks),
    machine: &Machine,
    cases: &[Case],
    plan: &Plan,
    random: &mut Random,
    mut progress: impl FnMut(usize),
) -> Result<Vec<Measured>> {
    let mut measured = Vec::new();
    let mut order: Vec<&Case> = cases.iter().collect();
    for round in 0..plan.rounds {
        random.shuffle(&mut order);
        for case in &order {
            measured.push(measure((world, source, sinks), machine, case, round, random)?);
        }
        progress(round + 1);
    }
    Ok(measured)
}

fn measure(
    (world, source, sinks): (&World, &mut Source, &Sinks),
    machine: &Machine,
    case: &Case,
    round: usize,
    random: &mut Random,
) -> Result<Measured> {
    world.publish(&case.table);
    source.set_ports(&case.ports, &case.table)?;
    let start = u32::try_from(random.below(SEQUENCE))?.next_multiple_of(BATCH);
    let mut order = Variant::ALL;
    random.shuffle(&mut order);
    let mut measured = Measured {
        round,
        containers: case.containers,
        mix: case.mix,
        packets: case.packets,
        nanoseconds: [0.0; _],
        steal: 0,
        switches: 0,
        repeated: 0,
        disturbed: false,
    };
    for variant in order {
        let classifier = variant.classifier(case.containers);
        let packets = case.packets[variant as usize];
        for attempt in 1.. {
            let arrived = sinks.now()?;
            let before = machine.disturbance()?;
            source.send(classifier.ifindex(), start, packets)?;
            let disturbance = machine.disturbance()?.since(before);
            sinks.check(arrived, classifier, case.mix, u64::from(packets))?;
            measured.steal += disturbance.steal;
            measured.switches += disturbance.switches;
            measured.nanoseconds[variant as usize] = statistics::median(&source.times(start, packets)?);
            if disturbance.steal == 0 {
                break;
            }
            measured.repeated += 1;
            if attempt == ATTEMPTS {
                measured.disturbed = true;
                break;
            }
        }
    }
    Ok(measured)
}
