//! Rate limits of containers: which limits apply, and their enforcement.
//!
//! Egress is shaped by a qdisc at the container's `eth0`, without loss. Because root in the container can
//! remove that qdisc, the program at the host veth also polices the traffic (`pm_limits`). Ingress is shaped
//! by a qdisc at the host veth, through which the programs send the packets.

use portmap_common::{
    gcra::{GcraState, MIN_RATE},
    queue,
    slot::veth_ifindex,
    tables::Endpoint,
};
use tracing::warn;

use super::{Containers, lookup};
use crate::{
    daemon::{env::Env, host::HostState},
    error::{Error, Result},
    kernel::{
        netlink::Netlink,
        qdisc::{self, Class, Leaf, Shape},
    },
    model::{ContainerRecord, Direction, Limit, PerCpu, QueueStats, TrafficSpec, limit::default_burst},
    settings::Shaping,
};

/// Tolerance of the policer in nanoseconds, because the qdisc releases packets late and in batches when the
/// CPU is busy.
const SLACK: u64 = 50_000_000;
/// Tolerance of the policer in bytes, in addition to that time and the burst. The qdisc sends a whole packet
/// on the last token, and the largest packet has 64 KiB before segmentation adds headers.
const OVERSHOOT: u64 = 2 * 65_536;

/// The warning for a container without a working qdisc at its `eth0`.
const HOST_ONLY: &str = "the host drops the excess that it sends, because its qdisc cannot be installed";

/// The HTB quantum in bytes, within the bounds beyond which the kernel warns.
fn quantum(rate: u64) -> u32 {
    u32::try_from((rate / 10).clamp(2 * 1514, 60_000)).unwrap_or(u32::MAX)
}

/// The HTB class of a limit.
fn class(limit: &Limit) -> Class {
    Class {
        rate: limit.rate,
        ceil: limit.ceil,
        burst: limit.burst,
        ceil_burst: default_burst(limit.ceil),
        quantum: quantum(limit.rate),
    }
}

/// The policer of a limit, for the program at the host veth. Its rate has a lower bound of its own, so below
/// that only the qdisc holds the container to its limit.
fn policer_of(limit: &Limit, shaping: &Shaping) -> GcraState {
    let rate = limit.rate.max(MIN_RATE);
    let burst = u128::from(limit.burst + OVERSHOOT) * 1_000_000_000 / u128::from(rate);
    let slack = SLACK.saturating_add(u64::try_from(burst).unwrap_or(u64::MAX));
    GcraState::new(rate, slack, shaping.limits_local)
}

/// The egress and ingress limits that apply to a container with this request, on a host in this state.
pub(in crate::daemon) fn for_traffic(
    env: &Env,
    state: &HostState,
    traffic: &TrafficSpec,
) -> (Option<Limit>, Option<Limit>) {
    let (shaping, leaf) = (&env.settings.shaping, env.leaf.name());
    let speed = shaping.speed_per_cpu(state.link_speed);
    (
        shaping.egress.limit(traffic.egress_rate, traffic.cpus, speed, leaf),
        shaping.ingress.limit(traffic.ingress_rate, traffic.cpus, speed, leaf),
    )
}

/// Refuses limits that the daemon's flags forbid.
///
/// # Errors
///
/// Names the flag.
pub(in crate::daemon) fn check_allowed(env: &Env, traffic: &TrafficSpec) -> Result<()> {
    env.settings.shaping.egress.check_asked(Direction::Egress, traffic.egress_rate)?;
    env.settings.shaping.ingress.check_asked(Direction::Ingress, traffic.ingress_rate)
}

/// The policer of a container at its host veth. Without a limit it is the default, which polices nothing.
pub(in crate::daemon) fn policer(env: &Env, record: &ContainerRecord) -> GcraState {
    record.egress.as_ref().map(|limit| policer_of(limit, &env.settings.shaping)).unwrap_or_default()
}

/// Applies the egress limit at a container's `eth0`. `inside` must be a socket of its namespace.
pub(super) fn limit_egress(env: &Env, inside: &Netlink, record: &ContainerRecord, eth0: u32) -> Result<()> {
    let local_is_free = !env.settings.shaping.limits_local;
    limit_interface(env, inside, eth0, record.egress.as_ref(), local_is_free)
}

/// Applies the ingress limit at a container's host veth.
pub(super) fn limit_ingress(env: &Env, netlink: &Netlink, record: &ContainerRecord) -> Result<()> {
    // Exempt local packets never pass this qdisc, so it needs no class for them.
    limit_interface(env, netlink, veth_ifindex(record.slot), record.ingress.as_ref(), false)
}

fn limit_interface(
    env: &Env,
    netlink: &Netlink,
    index: u32,
    limit: Option<&Limit>,
    local_is_free: bool,
) -> Result<()> {
    match limit {
        Some(limit) => {
            qdisc::shape(netlink, index, &Shape { class: class(limit), local_is_free, leaf: env.leaf })?;
        }
        None => qdisc::unshape(netlink, index, env.leaf)?,
    }
    Ok(())
}

impl Containers {
    /// Applies the limits of a container in service. No packet is lost, unless the container had no qdisc
    /// before, or has installed one that is incompatible.
    ///
    /// Returns a warning if the qdisc at `eth0` cannot be installed. That is no error, because otherwise root
    /// in the container could reject limits.
    pub(in crate::daemon) fn apply_limits(
        &self,
        netlink: &Netlink,
        record: &ContainerRecord,
    ) -> Result<Option<String>> {
        let env = &self.env;
        limit_ingress(env, netlink, record)?;
        self.publish_flags(record)?;
        // The policer must never be stricter than the qdisc, so a lower limit is applied to the qdisc first,
        // and a higher one to the policer first.
        let (before, after) = (env.maps.limit(record.slot)?, policer(env, record));
        let is_lower = after.ns_per_byte > before.ns_per_byte;
        let eth0 = env.maps.endpoint(record.slot)?.eth0_ifindex;
        if !is_lower {
            env.maps.set_limit(record.slot, after)?;
        }
        let applied = lookup::visit(record, |inside| {
            Ok(limit_egress(env, &inside.netlink, record, eth0).or_else(|_incompatible| {
                qdisc::clear(&inside.netlink, eth0)?;
                limit_egress(env, &inside.netlink, record, eth0)
            }))
        });
        let applied = match applied.and_then(|visited| visited.ok_or_else(|| lookup::netns_gone(record))) {
            Ok(applied) => applied,
            Err(error) => {
                if !is_lower {
                    env.maps.set_limit(record.slot, before)?;
                }
                return Err(error);
            }
        };
        let warning = applied.err().map(|error| format!("{HOST_ONLY}: {error}"));
        if let Some(warning) = &warning {
            warn!("container {:?}: {warning}", record.name);
        }
        if is_lower {
            env.maps.set_limit(record.slot, after)?;
        }
        Ok(warning)
    }

    /// Applies the limits of a container. If that fails, the container stays in service and only the host
    /// polices it.
    pub(in crate::daemon) fn apply_limits_or_police(
        &self,
        netlink: &Netlink,
        record: &ContainerRecord,
    ) -> Result<()> {
        if let Err(error) = self.apply_limits(netlink, record) {
            warn!("container {:?}: {HOST_ONLY}: {error}", record.name);
            self.env.maps.set_limit(record.slot, policer(&self.env, record))?;
        }
        Ok(())
    }

    /// Ensures that the host side of a container's limits is in place. Returns true if anything changed.
    pub(in crate::daemon) fn ensure_host_side_limits(
        &self,
        netlink: &Netlink,
        record: &ContainerRecord,
    ) -> Result<bool> {
        if check_host_side(&self.env, netlink, record).is_ok() {
            return Ok(false);
        }
        limit_ingress(&self.env, netlink, record)?;
        self.publish_flags(record)?;
        self.env.maps.set_limit(record.slot, policer(&self.env, record))?;
        Ok(true)
    }

    /// Rewrites the flags that direct packets to a container through its qdisc or past it.
    fn publish_flags(&self, record: &ContainerRecord) -> Result<()> {
        let (flags, maps) = (self.env.port_flags(record), &self.env.maps);
        let endpoint = maps.endpoint(record.slot)?;
        if endpoint.flags != flags {
            maps.change_endpoint(record.slot, Endpoint { flags, ..endpoint })?;
            self.registry.publish_flags(record);
        }
        Ok(())
    }
}

/// The qdiscs of a container's limits, as read from the kernel; `None` for a direction without a limit.
pub(in crate::daemon) struct Queues {
    pub(in crate::daemon) egress: Option<Result<Queue>>,
    pub(in crate::daemon) ingress: Option<Result<Queue>>,
}

/// The qdisc that enforces a limit.
pub(in crate::daemon) struct Queue {
    /// Its class and the kind of its leaf qdisc; `None` if another qdisc has replaced it.
    shape: Result<Option<(Class, String)>>,
    /// Counters of the qdiscs and classes of the interface.
    pub(in crate::daemon) stats: Result<Vec<QueueStats>>,
}

impl Queue {
    /// Reads the qdisc of an interface.
    pub(in crate::daemon) fn read(netlink: &Netlink, index: u32) -> Self {
        Self {
            shape: qdisc::shape_of(netlink, index).map_err(Error::from),
            // A container's root can make other classes, any number of them.
            stats: qdisc::stats_of(netlink, index, |class| [queue::LIMITED, queue::LOCAL].contains(&class))
                .map_err(Error::from),
        }
    }

    /// Counters of its qdiscs and classes, if they could be read.
    pub(in crate::daemon) fn counters(&self) -> Option<&[QueueStats]> {
        self.stats.as_deref().ok()
    }
}

impl Queues {
    /// Whether all of them could be read.
    pub(in crate::daemon) fn were_read(&self) -> bool {
        let was_read = |queue: &Result<Queue>| queue.as_ref().is_ok_and(|queue| queue.stats.is_ok());
        [&self.egress, &self.ingress].into_iter().flatten().all(was_read)
    }

    /// Reads a container's qdiscs. Enters its namespace only if it has an egress limit.
    pub(in crate::daemon) fn read(env: &Env, netlink: &Netlink, record: &ContainerRecord) -> Self {
        let egress = record.egress.as_ref().map(|_limit| {
            let eth0 = env.maps.endpoint(record.slot)?.eth0_ifindex;
            lookup::visit_existing(record, |inside| Ok(Queue::read(&inside.netlink, eth0)))
        });
        let ingress =
            record.ingress.as_ref().map(|_limit| Ok(Queue::read(netlink, veth_ifindex(record.slot))));
        Self { egress, ingress }
    }

    /// Compares the qdiscs and the policer with the container's limits.
    ///
    /// # Errors
    ///
    /// Names the first difference.
    pub(in crate::daemon) fn check(self, env: &Env, record: &ContainerRecord) -> Result<()> {
        if let Some((limit, queue)) = record.egress.as_ref().zip(self.egress) {
            check_egress(env, record, limit, queue?.shape?)?;
        }
        if let Some((limit, queue)) = record.ingress.as_ref().zip(self.ingress) {
            check_shape(env, record, &record.host_veth(), limit, queue?.shape?)?;
        }
        check_policer(env, record)
    }

    /// Whether the qdisc of each direction enforces its limit; `None` for a direction without a limit, or if
    /// the qdisc could not be read.
    pub(in crate::daemon) fn in_place(&self, env: &Env, record: &ContainerRecord) -> [Option<bool>; 2] {
        let is_in_place = |limit: &Option<Limit>, queue: &Option<Result<Queue>>| {
            let (limit, queue) = (limit.as_ref()?, queue.as_ref()?);
            let found = queue.as_ref().ok()?.shape.clone().ok()?;
            Some(check_shape(env, record, "", limit, found).is_ok())
        };
        [is_in_place(&record.egress, &self.egress), is_in_place(&record.ingress, &self.ingress)]
    }
}

/// Compares the ingress qdisc and the policer of a container with its limits.
///
/// # Errors
///
/// Names the first difference.
pub(in crate::daemon) fn check_host_side(
    env: &Env,
    netlink: &Netlink,
    record: &ContainerRecord,
) -> Result<()> {
    if let Some(limit) = &record.ingress {
        let found = qdisc::shape_of(netlink, veth_ifindex(record.slot))?;
        check_shape(env, record, &record.host_veth(), limit, found)?;
    }
    check_policer(env, record)
}

fn check_policer(env: &Env, record: &ContainerRecord) -> Result<()> {
    if env.maps.limit(record.slot)?.ns_per_byte == policer(env, record).ns_per_byte {
        return Ok(());
    }
    Err(Error::failure(format!("its policer in pm_limits has another rate: {}", repair(record))))
}

fn check_egress(
    env: &Env,
    record: &ContainerRecord,
    limit: &Limit,
    found: Option<(Class, String)>,
) -> Result<()> {
    check_shape(env, record, record.interface.as_str(), limit, found)
        .map_err(|error| Error::failure(format!("{error}; the host drops the excess that it sends")))
}

fn check_shape(
    env: &Env,
    record: &ContainerRecord,
    interface: &str,
    limit: &Limit,
    found: Option<(Class, String)>,
) -> Result<()> {
    let (repair, expected_leaf) = (repair(record), env.leaf.name());
    let Some((class, leaf)) = found else {
        return Err(Error::failure(format!("the qdisc of {interface} that limits it is missing: {repair}")));
    };
    if (class.rate, class.ceil) != (limit.rate, limit.ceil) || leaf != expected_leaf {
        return Err(Error::failure(format!(
            "the qdisc of {interface} has rate {} B/s, ceil {} and leaf {leaf}, expected {}, {} and \
             {expected_leaf}: {repair}",
            class.rate, class.ceil, limit.rate, limit.ceil,
        )));
    }
    Ok(())
}

fn repair(record: &ContainerRecord) -> String {
    format!("run `portmap update {}` to restore it", record.name)
}

/// Compares the daemon's limits with the speed of the fastest uplink, if it is known. Warns of an upper bound without
/// effect.
///
/// # Errors
///
/// If a container could never reach its limit.
pub(in crate::daemon) fn check_link_speed(shaping: &Shaping, state: &HostState) -> Result<()> {
    let Some(speed) = state.link_speed else { return Ok(()) };
    let policies = [(Direction::Egress, &shaping.egress), (Direction::Ingress, &shaping.ingress)];
    for (direction, policy) in policies {
        if let Some(warning) = policy.check_speed(direction, &state.describe_fastest(), speed)? {
            warn!("{warning}");
        }
    }
    Ok(())
}

/// Warns if limits work with restrictions on this host.
pub(in crate::daemon) fn warn_of_degraded_limits(shaping: &Shaping, leaf: Leaf, state: &HostState) {
    if leaf != Leaf::FqCodel {
        warn!(
            "this kernel has no fq_codel: all flows of a container share one queue ({}), without ECN marks",
            leaf.name()
        );
    }
    let is_auto =
        [&shaping.egress, &shaping.ingress].iter().any(|policy| policy.per_cpu == Some(PerCpu::Auto));
    if is_auto && state.link_speed.is_none() {
        warn!(
            "the link speed of {} is unknown, so the rate `auto` limits no container: set \
             --network-link-speed, or a rate",
            state.describe_uplinks()
        );
    }
}
