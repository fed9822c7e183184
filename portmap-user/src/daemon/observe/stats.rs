//! Statistics, from the maps and the qdiscs.

use std::collections::BTreeMap;

use portmap_common::{
    reason::{Drops, HostHook, Reason, ReasonCounts},
    slot::HOST_SLOT,
};
use tracing::debug;

use super::collect::Readings;
use crate::{
    api::{ContainerStats, DropStats, HostStats, Reasons, Stats, Traffic},
    daemon::{
        container::limits::Queue,
        env::Env,
        registry::{Entry, Snapshot},
    },
    error::Result,
    kernel::slot_counters::{SlotCounts, SlotTable},
    model::{ContainerRecord, QueueStats},
};

/// The statistics of all containers and of the host.
///
/// # Errors
///
/// If a map cannot be read.
pub(in crate::daemon) fn all(env: &Env, containers: &Snapshot, readings: &Readings) -> Result<Stats> {
    let counts = env.maps.slot_counts(&containers.slots())?;
    let of_each = containers.entries().map(|entry| of_container(entry, &counts, readings));
    Ok(Stats { containers: of_each.collect(), host: of_host(env)? })
}

/// The statistics of one container.
///
/// # Errors
///
/// If there is no such container, or a map cannot be read.
pub(in crate::daemon) fn one(
    env: &Env,
    containers: &Snapshot,
    readings: &Readings,
    name: &str,
) -> Result<ContainerStats> {
    let entry = containers.entry(name)?;
    Ok(of_container(entry, &env.maps.slot_counts(&[entry.record.slot].into())?, readings))
}

/// The statistics of a container, given the counters of all slots. What could not be read is left out.
pub(super) fn of_container(entry: &Entry, counts: &SlotTable, readings: &Readings) -> ContainerStats {
    let record = &entry.record;
    let queues = readings.container(entry).map(|reading| &reading.queues);
    let egress = counters(record, queues.and_then(|queues| queues.egress.as_ref()));
    let ingress = counters(record, queues.and_then(|queues| queues.ingress.as_ref()));
    let (name, slot) = (record.name.clone(), record.slot);
    let SlotCounts { delivered, drops: dropped } = counts.get(slot);
    let traffic = delivered
        .by_path()
        .into_iter()
        .filter(|(path, _)| *path != "reserved")
        .map(|(path, tally)| (path.to_owned(), Traffic { packets: tally.packets, bytes: tally.bytes }))
        .collect();
    let (drops, ephemeral_ports) = (drops(&dropped), readings.ports(entry));
    let rtt_us = readings.inside(entry).and_then(|inside| inside.rtt);
    let read_age_ms = readings.age(entry).map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
    ContainerStats { name, slot, traffic, drops, egress, ingress, ephemeral_ports, rtt_us, read_age_ms }
}

fn counters(record: &ContainerRecord, queue: Option<&Result<Queue>>) -> Vec<QueueStats> {
    match queue.map(|queue| queue.as_ref().and_then(|queue| queue.stats.as_ref())) {
        Some(Ok(stats)) => stats.clone(),
        Some(Err(error)) => {
            // Not a warning, because a client causes as many as it likes; `doctor` names such a container.
            debug!("container {:?}: {error}", record.name);
            Vec::new()
        }
        None => Vec::new(),
    }
}

/// The statistics of the host.
pub(super) fn of_host(env: &Env) -> Result<HostStats> {
    let mut passed = BTreeMap::new();
    for hook in HostHook::ALL {
        passed.insert(hook.name().to_owned(), reasons(&env.maps.host(hook)?));
    }
    Ok(HostStats { passed, drops: drops(&env.maps.drops(HOST_SLOT)?) })
}

fn drops(counts: &Drops) -> DropStats {
    DropStats { rx: reasons(&counts.rx), tx: reasons(&counts.tx) }
}

fn reasons(counts: &ReasonCounts) -> Reasons {
    let with_packets = Reason::ALL.iter().map(|reason| (reason.name().to_owned(), counts.get(*reason)));
    with_packets.filter(|(_, packets)| *packets > 0).collect()
}
