//! Limits on containers' traffic: who gets which, and bringing it about.
//!
//! What a container sends waits in a queue at its `eth0`, which holds it to its limit without loss. The root inside can
//! take that queue away, so the program at the host veth drops what comes faster (`pm_limits`). What a container receives
//! waits in a queue at its host veth, to which the programs send it instead of past it.

use portmap_common::{
    gcra::GcraState,
    slot::veth_ifindex,
    tables::{Endpoint, QUEUE_LOCAL, QUEUE_OUTSIDE},
};
use tracing::warn;

use super::{
    Daemon, HostFacts,
    container::{namespace_of, port_entry},
};
use crate::{
    api::{Limit, QueueStats, Wishes},
    error::{Error, Result},
    kernel::{
        link,
        netlink::Netlink,
        qdisc::{self, Class, Leaf, Shape},
    },
    rates::{Direction, default_burst},
    reach::Loopback,
    records::ContainerRecord,
    settings::Shaping,
};

/// Nanoseconds by which what passes a host veth may be ahead of the limit: a queue's packets are late when the CPU is
/// busy, and come together then.
const TOLERANCE: u64 = 50_000_000;
/// Bytes by which it may be ahead besides that, and the burst: a queue sends a packet as long as there is anything left of
/// the limit, and the largest is 64 KiB before it gets headers for all segments.
const OVERSHOOT: u64 = 2 * 65_536;

/// What is said where a container has no queue to wait in.
const HOST_ONLY: &str = "what it sends is limited at the host only, by dropping";

/// Bytes that a class sends before it is another's turn, with the kernel's bounds for sane values.
fn quantum(rate: u64) -> u32 {
    u32::try_from((rate / 10).clamp(2 * 1514, 60_000)).unwrap_or(u32::MAX)
}

/// The class that a limit becomes.
fn class(limit: &Limit) -> Class {
    Class {
        rate: limit.rate,
        ceil: limit.ceil,
        burst: limit.burst,
        ceil_burst: default_burst(limit.ceil),
        quantum: quantum(limit.rate),
    }
}

/// What the program at the host veth holds a container to.
fn entry(limit: &Limit, shaping: &Shaping) -> GcraState {
    let burst = u128::from(limit.burst + OVERSHOOT) * 1_000_000_000 / u128::from(limit.rate);
    let tolerance = TOLERANCE.saturating_add(u64::try_from(burst).unwrap_or(u64::MAX));
    GcraState::new(limit.rate, tolerance, shaping.limits_local)
}

/// Bytes per second of the uplink for each CPU of the host, if both can be known.
pub(super) fn speed_per_cpu(shaping: &Shaping, facts: &HostFacts) -> Option<u64> {
    let speed = shaping.link_speed.or_else(|| link::speed(&facts.uplink))?;
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Some(speed / u64::try_from(cpus).unwrap_or(1))
}

impl Daemon {
    /// The limits that a container gets for what was asked.
    pub(super) fn limits(&self, wishes: &Wishes) -> (Option<Limit>, Option<Limit>) {
        let shaping = &self.settings.shaping;
        let leaf = self.leaf.name();
        (
            shaping.egress.limit(wishes.egress_rate, wishes.cpus, self.speed_per_cpu, leaf),
            shaping.ingress.limit(wishes.ingress_rate, wishes.cpus, self.speed_per_cpu, leaf),
        )
    }

    /// Refuses what the flags forbid.
    pub(super) fn check_wishes(&self, wishes: &Wishes) -> Result<()> {
        self.settings.shaping.egress.check_asked(Direction::Egress, wishes.egress_rate)?;
        self.settings.shaping.ingress.check_asked(Direction::Ingress, wishes.ingress_rate)
    }

    /// Brings a running container's limits about. None of its packets is lost, unless it had no queue before, or one of its
    /// own making that takes none of ours.
    ///
    /// What is inside comes last, and is no reason to fail: its root could keep its limits by that. Returns what there is to
    /// warn of then.
    pub(super) fn apply(&self, record: &ContainerRecord) -> Result<Option<String>> {
        self.limit_ingress(record)?;
        self.publish_flags(record)?;
        let namespace = namespace_of(record)?;
        // What is dropped must not come before the queue knows of a lower limit, nor stay behind a higher one.
        let (before, after) = (self.maps.limit(record.slot)?, self.limit_entry(record));
        let is_lower = after.ns_per_byte > before.ns_per_byte;
        if !is_lower {
            self.maps.set_limit(record.slot, after)?;
        }
        let eth0 = self.maps.endpoint(record.slot)?.eth0_ifindex;
        let inside = namespace.run(|| {
            self.limit_egress(record, eth0).or_else(|_unfit| {
                qdisc::clear(&Netlink::open()?, eth0)?;
                self.limit_egress(record, eth0)
            })
        });
        let warning = inside.err().map(|error| format!("{HOST_ONLY}: {error}"));
        if let Some(warning) = &warning {
            warn!("container {:?}: {warning}", record.name);
        }
        if is_lower {
            self.maps.set_limit(record.slot, after)?;
        }
        Ok(warning)
    }

    /// The same for a container that stays in service even if not all of it can be done. Then its limit is held at the host
    /// alone.
    pub(super) fn apply_at_least_outside(&self, record: &ContainerRecord) -> Result<()> {
        if let Err(error) = self.apply(record) {
            warn!("container {:?}: {HOST_ONLY}: {error}", record.name);
            self.maps.set_limit(record.slot, self.limit_entry(record))?;
        }
        Ok(())
    }

    /// What the program at the host veth holds a container to; nothing without a limit.
    pub(super) fn limit_entry(&self, record: &ContainerRecord) -> GcraState {
        record.egress.as_ref().map(|limit| entry(limit, &self.settings.shaping)).unwrap_or_default()
    }

    /// Limits what the calling thread's namespace, a container's, sends by its `eth0`.
    pub(super) fn limit_egress(&self, record: &ContainerRecord, eth0: u32) -> Result<()> {
        let local_is_free = !self.settings.shaping.limits_local;
        self.limit_interface(eth0, record.egress.as_ref(), local_is_free)
    }

    /// Limits what a container receives, at its host veth.
    pub(super) fn limit_ingress(&self, record: &ContainerRecord) -> Result<()> {
        // What is not limited does not come this way.
        self.limit_interface(veth_ifindex(record.slot), record.ingress.as_ref(), false)
    }

    fn limit_interface(&self, index: u32, limit: Option<&Limit>, local_is_free: bool) -> Result<()> {
        let netlink = Netlink::open()?;
        match limit {
            Some(limit) => {
                qdisc::shape(&netlink, index, &Shape { class: class(limit), local_is_free, leaf: self.leaf })
            }
            None => qdisc::unshape(&netlink, index, self.leaf),
        }
    }

    /// Whose a container's loopback addresses are: as was asked for it, or as the daemon's flag says.
    pub(super) fn loopback(&self, record: &ContainerRecord) -> Loopback {
        record.wishes.loopback.unwrap_or(self.settings.reach.loopback)
    }

    /// The flags of a container's ports.
    pub(super) fn flags(&self, record: &ContainerRecord) -> u16 {
        let queues = match &record.ingress {
            None => 0,
            Some(_) if self.settings.shaping.limits_local => QUEUE_OUTSIDE | QUEUE_LOCAL,
            Some(_) => QUEUE_OUTSIDE,
        };
        queues | self.loopback(record).flag()
    }

    /// Tells the programs which way packets for a container go, and which do not.
    fn publish_flags(&self, record: &ContainerRecord) -> Result<()> {
        let flags = self.flags(record);
        let maps = &self.maps;
        let endpoint = maps.endpoint(record.slot)?;
        if endpoint.flags == flags {
            return Ok(());
        }
        maps.change_endpoint(record.slot, Endpoint { flags, ..endpoint })?;
        for port in record.all_ports().iter() {
            maps.ports.set(port, port_entry(record, flags));
        }
        Ok(())
    }

    /// Counters of the queues of a container. One that cannot be looked at has none.
    pub(super) fn queue_stats(&self, record: &ContainerRecord) -> (Vec<QueueStats>, Vec<QueueStats>) {
        let look = |index| qdisc::stats_of(&Netlink::open()?, index);
        let inside = record.egress.as_ref().map(|_| {
            let eth0 = self.maps.endpoint(record.slot)?.eth0_ifindex;
            namespace_of(record)?.run(|| look(eth0))
        });
        let outside = record.ingress.as_ref().map(|_| look(veth_ifindex(record.slot)));
        let counted = |looked: Option<Result<Vec<QueueStats>>>| match looked {
            Some(Ok(stats)) => stats,
            Some(Err(error)) => {
                warn!("container {:?}: {error}", record.name);
                Vec::new()
            }
            None => Vec::new(),
        };
        (counted(inside), counted(outside))
    }

    /// Compares a container's queues with its limits, for `doctor`.
    pub(super) fn check_limits(&self, record: &ContainerRecord) -> Result<()> {
        if let Some(limit) = &record.egress {
            self.check_egress(record, limit)?;
        }
        self.check_outside(record)
    }

    /// Compares what holds a container's limits on the host's side with them.
    pub(super) fn check_outside(&self, record: &ContainerRecord) -> Result<()> {
        if let Some(limit) = &record.ingress {
            self.check_ingress(record, limit)?;
        }
        if self.maps.limit(record.slot)?.ns_per_byte != self.limit_entry(record).ns_per_byte {
            return Err(Error::failure(format!("pm_limits does not have its limit: {}", repair(record))));
        }
        Ok(())
    }

    /// Has a container's limits be held on the host's side. Returns whether they were not.
    pub(super) fn hold_outside(&self, record: &ContainerRecord) -> Result<bool> {
        if self.check_outside(record).is_ok() {
            return Ok(false);
        }
        self.limit_ingress(record)?;
        self.publish_flags(record)?;
        self.maps.set_limit(record.slot, self.limit_entry(record))?;
        Ok(true)
    }

    /// Compares what holds a limit on what a container sends with that limit.
    pub(super) fn check_egress(&self, record: &ContainerRecord, limit: &Limit) -> Result<()> {
        let eth0 = self.maps.endpoint(record.slot)?.eth0_ifindex;
        let found = namespace_of(record)?.run(|| qdisc::shape_of(&Netlink::open()?, eth0))?;
        self.check_queue(record, "eth0", limit, found).map_err(|error| {
            Error::failure(format!("{error}; what it sends faster than its limit is dropped at the host"))
        })
    }

    /// Compares what holds a limit on what a container receives with that limit.
    pub(super) fn check_ingress(&self, record: &ContainerRecord, limit: &Limit) -> Result<()> {
        let found = qdisc::shape_of(&Netlink::open()?, veth_ifindex(record.slot))?;
        self.check_queue(record, &record.host_veth(), limit, found)
    }

    fn check_queue(
        &self,
        record: &ContainerRecord,
        interface: &str,
        limit: &Limit,
        found: Option<(Class, String)>,
    ) -> Result<()> {
        let repair = repair(record);
        let Some((class, leaf)) = found else {
            return Err(Error::failure(format!("the queue of {interface} that limits it is gone: {repair}")));
        };
        if (class.rate, class.ceil) != (limit.rate, limit.ceil) || leaf != self.leaf.name() {
            return Err(Error::failure(format!(
                "the queue of {interface} has {} B/s (at most {}) and {leaf}, expected {} ({}) and {}: {repair}",
                class.rate,
                class.ceil,
                limit.rate,
                limit.ceil,
                self.leaf.name()
            )));
        }
        Ok(())
    }
}

fn repair(record: &ContainerRecord) -> String {
    format!("run `portmap update {}` to put it back", record.name)
}

/// Says what limits will have to do without.
pub(super) fn warn_of_limits(shaping: &Shaping, leaf: Leaf, speed_per_cpu: Option<u64>, uplink: &str) {
    if leaf != Leaf::FqCodel {
        warn!(
            "this kernel has no fq_codel: packets over a limit wait in one queue ({}), where flows feel each other and \
             none is marked",
            leaf.name()
        );
    }
    let is_auto = [&shaping.egress, &shaping.ingress]
        .iter()
        .any(|policy| policy.per_cpu == Some(crate::rates::PerCpu::Auto));
    if is_auto && speed_per_cpu.is_none() {
        warn!(
            "the speed of {uplink} is not known, so auto limits nobody: give it with --network-link-speed, or name a rate"
        );
    }
}
