//! Capacity: what containers can still get, from a snapshot of the registry.

use portmap_common::slot::SLOTS;

use crate::{
    api::{
        BlockCapacity, Bound, Capacity, ContainerCapacity, EphemeralCapacity, LimitPolicies, LimitPolicy,
        SlotCapacity, StaticCapacity,
    },
    daemon::{
        env::Env,
        host::{HostState, sockets::HostSockets},
        registry::{Published, Snapshot},
    },
    error::Result,
    kernel::clock,
    model::{Policy, PoolCapacity, ephemeral},
};

/// What containers can still get.
///
/// # Errors
///
/// If the monotonic clock cannot be read.
pub(in crate::daemon) fn of(env: &Env, state: &HostState, published: &Published) -> Result<Capacity> {
    let (containers, settings) = (&published.containers, &env.settings);
    let used = HostSockets::read(state, &settings.ephemeral_ports).ports();
    let owned: Vec<_> = containers.records().map(|record| record.ephemeral_ports).collect();
    let pool = published.pool.capacity(&owned, &used, clock::since_boot()?);
    let slots = slots(containers);
    let speed = settings.shaping.speed_per_cpu(state.link_speed);
    Ok(Capacity {
        containers: fit(containers.len(), &slots, &pool, settings.block),
        slots,
        static_ports: static_ports(env, containers),
        ephemeral_ports: ephemeral_ports(pool, settings.block),
        limits: LimitPolicies {
            egress: policy(&settings.shaping.egress, speed),
            ingress: policy(&settings.shaping.ingress, speed),
            link_speed: state.link_speed,
        },
    })
}

/// How many more containers can be added, each with a block of the default size.
fn fit(total: usize, slots: &SlotCapacity, pool: &PoolCapacity, block: u16) -> ContainerCapacity {
    let row = pool.blocks.iter().find(|row| row.size == block);
    let free = row.map_or(0, |row| row.free);
    let later = free + row.map_or(0, |row| row.quarantined);
    ContainerCapacity {
        total,
        fit: free.min(slots.free),
        fit_after_quarantine: later.min(slots.free),
        bound_by: if free <= slots.free { Bound::EphemeralPorts } else { Bound::Slots },
    }
}

fn slots(containers: &Snapshot) -> SlotCapacity {
    let (total, owned) = (usize::from(SLOTS - 1), containers.len());
    SlotCapacity { total, owned, free: total.saturating_sub(owned) }
}

fn static_ports(env: &Env, containers: &Snapshot) -> StaticCapacity {
    let managed = &env.settings.ports;
    let free_ports = managed.difference(&containers.static_ports());
    let largest_free_run = free_ports.longest_run();
    let (total, free) = (managed.count(), free_ports.count());
    StaticCapacity { total, owned: total - free, free, largest_free_run, free_ports }
}

fn ephemeral_ports(pool: PoolCapacity, per_container: u16) -> EphemeralCapacity {
    let PoolCapacity { total, free, owned, quarantined, host, next_free, blocks } = pool;
    let block = |row: ephemeral::BlockCapacity| {
        let ephemeral::BlockCapacity { size, free, owned, quarantined } = row;
        BlockCapacity { size, free, owned, quarantined }
    };
    EphemeralCapacity {
        total,
        owned,
        free,
        quarantined,
        host,
        next_free_seconds: next_free.map(|left| left.as_secs() + u64::from(left.subsec_nanos() > 0)),
        per_container,
        blocks: blocks.into_iter().map(block).collect(),
    }
}

/// `speed` is the link's speed per CPU in bytes per second, if it is known.
fn policy(policy: &Policy, speed: Option<u64>) -> LimitPolicy {
    LimitPolicy {
        // A limit of 0 means none.
        per_container: policy.fixed.filter(|rate| *rate > 0),
        per_cpu: policy.per_cpu_rate(speed).filter(|rate| *rate > 0),
        minimum: policy.minimum,
        maximum: policy.maximum,
    }
}
