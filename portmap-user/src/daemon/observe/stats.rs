//! Statistics, from the maps and the qdiscs.

use std::collections::BTreeMap;

use portmap_common::{
    reason::{Drops, HostHook, Reason, ReasonCounts},
    slot::HOST_SLOT,
};
use tracing::warn;

use crate::{
    api::{ContainerStats, DropStats, HostStats, Reasons, Stats, Traffic},
    daemon::{
        container::limits::{Queue, Queues},
        env::Env,
        registry::Snapshot,
    },
    error::Result,
    kernel::netlink::Netlink,
    model::{ContainerRecord, Phase, QueueStats},
};

/// The statistics of all containers and of the host.
///
/// # Errors
///
/// If a map cannot be read.
pub(in crate::daemon) fn all(env: &Env, containers: &Snapshot) -> Result<Stats> {
    let netlink = Netlink::open()?;
    let of_each =
        containers.records().map(|record| of_container(env, record, Queues::read(env, &netlink, record)));
    Ok(Stats { containers: of_each.collect::<Result<_>>()?, host: of_host(env)? })
}

/// The statistics of one container.
///
/// # Errors
///
/// If there is no such container, or a map cannot be read.
pub(in crate::daemon) fn one(env: &Env, containers: &Snapshot, name: &str) -> Result<ContainerStats> {
    let record = &containers.entry(name)?.record;
    of_container(env, record, Queues::read(env, &Netlink::open()?, record))
}

/// The statistics of a container with these qdiscs. Qdiscs that could not be read have no counters.
pub(super) fn of_container(env: &Env, record: &ContainerRecord, queues: Queues) -> Result<ContainerStats> {
    let (egress, ingress) = (counters(record, queues.egress), counters(record, queues.ingress));
    let (name, slot) = (record.name.clone(), record.slot);
    let counters = env.maps.counters(slot)?;
    let traffic = counters
        .by_path()
        .into_iter()
        .filter(|(path, _)| *path != "reserved")
        .map(|(path, tally)| (path.to_owned(), Traffic { packets: tally.packets, bytes: tally.bytes }))
        .collect();
    let drops = drops(&env.maps.drops(slot)?);
    Ok(ContainerStats { name, slot, traffic, drops, egress, ingress })
}

fn counters(record: &ContainerRecord, queue: Option<Result<Queue>>) -> Vec<QueueStats> {
    match queue.map(|queue| queue.and_then(|queue| queue.stats)) {
        Some(Ok(stats)) => stats,
        Some(Err(error)) => {
            // During `del` the namespace can be missing.
            if record.phase == Phase::Ready {
                warn!("container {:?}: {error}", record.name);
            }
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
