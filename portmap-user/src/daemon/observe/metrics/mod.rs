//! `/metrics`: all counters, the pools, the daemon's operations and its process.
//!
//! Names follow Prometheus' conventions: units in the name, receive and transmit as separate metrics, no
//! totals. Each request builds its metrics from a snapshot, so the series of a container end with it; only the
//! measurements of operations outlive a request.

pub(in crate::daemon) mod encode;
pub(in crate::daemon) mod operations;
mod pools;
mod process;
mod readings;

use std::sync::atomic::AtomicU64;

use portmap_common::{LAYOUT_VERSION, reason::Reason};
use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, info::Info},
    registry::{Registry, Unit},
};

use self::{encode::Format, operations::Meter};
use super::{capacity, collect::Readings, stats};
use crate::{
    api::{ContainerStats, DropStats, HostStats},
    daemon::{env::Env, host::HostState, registry::Published},
    error::{Context as _, Result},
    kernel::{own_process::OwnProcess, programs::AttachMode, qdisc::Leaf},
    model::{ContainerRecord, Phase, QueueStats},
};

/// Reasons of attacks, which have a series from the start, so that a rate includes the first packet. The others
/// would be a series each for every container, most of them 0 for ever.
const ATTACKS: [Reason; 4] = [Reason::SourceAddress, Reason::SourceMac, Reason::SourcePort, Reason::Rate];

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    container: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Path {
    container: String,
    /// The other end of the traffic: outside, the host, or another container.
    peer: &'static str,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Dropped {
    container: String,
    direction: &'static str,
    reason: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HostDropped {
    reason: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Passed {
    hook: String,
    reason: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Direction {
    container: String,
    direction: &'static str,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Queue {
    container: String,
    direction: &'static str,
    /// `bw_limit` for the class that limits the rate, `bloat_reduction` for its leaf, as in Mesos.
    qdisc: &'static str,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Feature {
    feature: &'static str,
}

type Count<L> = Family<L, Counter>;
type Level<L> = Family<L, Gauge<u64, AtomicU64>>;

/// Packets and bytes of one direction.
#[derive(Default)]
struct Flow<L: Clone + std::hash::Hash + Eq> {
    packets: Count<L>,
    bytes: Count<L>,
}

#[derive(Default)]
struct Metrics {
    features: Level<Feature>,
    received: Flow<Path>,
    transmitted: Flow<Path>,
    own: Flow<Of>,
    dropped: Count<Dropped>,
    host_dropped: Count<HostDropped>,
    passed: Count<Passed>,
    limits: Level<Direction>,
    in_place: Level<Direction>,
    queues: QueueMetrics,
}

#[derive(Default)]
struct QueueMetrics {
    sent: Flow<Queue>,
    drops: Count<Queue>,
    overlimits: Count<Queue>,
    requeues: Count<Queue>,
    marks: Count<Queue>,
    backlog: Level<Queue>,
    length: Level<Queue>,
}

/// Reads and encodes all metrics.
///
/// # Errors
///
/// If a map cannot be read.
pub(in crate::daemon) fn all(
    env: &Env,
    state: &HostState,
    published: &Published,
    readings: &Readings,
    meter: &Meter,
    format: Format,
) -> Result<String> {
    let metrics = Metrics::default();
    let has = |feature, has| metrics.features.get_or_create(&Feature { feature }).set(u64::from(has));
    has("fq_codel", env.leaf == Leaf::FqCodel);
    has("tcx", env.attach_mode == AttachMode::Tcx);
    let counts = env.maps.slot_counts(&published.containers.slots())?;
    for entry in published.containers.entries() {
        let record = &entry.record;
        // During `add` and `del` the qdiscs can be missing.
        if record.phase == Phase::Ready {
            let reading = readings.container(entry).filter(|reading| reading.has_limits_of(record));
            let in_place = reading.map(|reading| reading.queues.in_place(env, record));
            metrics.read_limits(record, in_place.unwrap_or_default());
        }
        metrics.read_container(&stats::of_container(entry, &counts, readings));
    }
    metrics.read_host(&stats::of_host(env)?);
    let mut registry = Registry::default();
    let own = registry.sub_registry_with_prefix("portmap");
    metrics.register(own, env.leaf);
    pools::register_containers(own, &published.containers, &env.settings.metrics_labels);
    pools::register_capacity(own, &capacity::of(env, state, published)?);
    readings::register(own, &published.containers, readings);
    meter.register(own);
    process::register(&mut registry, &OwnProcess::read()?);
    let mut text = String::new();
    text::encode(&mut text, &registry).context(|| "cannot write metrics".to_owned())?;
    Ok(format.convert(text))
}

impl Metrics {
    fn read_limits(&self, record: &ContainerRecord, [egress, ingress]: [Option<bool>; 2]) {
        let both = [("egress", &record.egress, egress), ("ingress", &record.ingress, ingress)];
        for (direction, limit, is_in_place) in both {
            let Some(limit) = limit else { continue };
            let labels = Direction { container: record.name.clone(), direction };
            self.limits.get_or_create(&labels).set(limit.rate);
            // Unknown if the qdiscs could not be read.
            if let Some(is_in_place) = is_in_place {
                self.in_place.get_or_create(&labels).set(u64::from(is_in_place));
            }
        }
    }

    fn read_host(&self, host: &HostStats) {
        let DropStats { rx, tx } = &host.drops;
        for (reason, packets) in rx.iter().chain(tx) {
            self.host_dropped.get_or_create(&HostDropped { reason: reason.clone() }).inc_by(*packets);
        }
        for (hook, reasons) in &host.passed {
            for (reason, packets) in reasons {
                let labels = Passed { hook: hook.clone(), reason: reason.clone() };
                self.passed.get_or_create(&labels).inc_by(*packets);
            }
        }
    }

    fn read_container(&self, stats: &ContainerStats) {
        let container = || stats.name.clone();
        for (path, traffic) in &stats.traffic {
            let (flow, peer) = match path.as_str() {
                "rx_outside" => (&self.received, "outside"),
                "rx_host" => (&self.received, "host"),
                "rx_container" => (&self.received, "container"),
                "tx_outside" => (&self.transmitted, "outside"),
                "tx_host" => (&self.transmitted, "host"),
                "tx_container" => (&self.transmitted, "container"),
                _ => {
                    self.own.count(&Of { container: container() }, traffic.packets, traffic.bytes);
                    continue;
                }
            };
            flow.count(&Path { container: container(), peer }, traffic.packets, traffic.bytes);
        }
        for reason in ATTACKS {
            let (direction, reason) = ("transmit", reason.name().to_owned());
            drop(self.dropped.get_or_create(&Dropped { container: container(), direction, reason }));
        }
        for (direction, reasons) in [("receive", &stats.drops.rx), ("transmit", &stats.drops.tx)] {
            for (reason, packets) in reasons {
                let labels = Dropped { container: container(), direction, reason: reason.clone() };
                self.dropped.get_or_create(&labels).inc_by(*packets);
            }
        }
        for (direction, queues) in [("egress", &stats.egress), ("ingress", &stats.ingress)] {
            let qdiscs = queues.iter().filter(|queue| !queue.is_class());
            for (qdisc, queue) in ["bw_limit", "bloat_reduction"].into_iter().zip(qdiscs) {
                self.queues.read(&Queue { container: container(), direction, qdisc }, queue);
            }
        }
    }

    /// Registers all metrics under their names. The registry adds the prefix.
    fn register(self, registry: &mut Registry, leaf: Leaf) {
        let about = vec![
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("layout", LAYOUT_VERSION.to_string()),
            ("leaf", leaf.name().to_owned()),
        ];
        registry.register(
            "build",
            "The daemon's version, the layout of its maps, and the leaf qdisc of rate limits",
            Info::new(about),
        );
        registry.register("kernel_feature", "Whether the kernel has an optional feature", self.features);
        let per_container = registry.sub_registry_with_prefix("container");
        self.received.register(per_container, "receive", "delivered to a container, by origin");
        self.transmitted.register(per_container, "transmit", "sent by a container, by destination");
        self.own.register(per_container, "own", "within a container");
        per_container.register(
            "dropped_packets",
            "Packets dropped, by direction from the container's view, and by reason",
            self.dropped,
        );
        per_container.register_with_unit(
            "limit",
            "Rate limit of a container",
            Unit::Other("bytes_per_second".to_owned()),
            self.limits,
        );
        per_container.register(
            "limit_queue_in_place",
            "Whether the qdisc of a limit is in place; without it the host drops the excess",
            self.in_place,
        );
        self.queues.register(per_container.sub_registry_with_prefix("qdisc"));
        let host = registry.sub_registry_with_prefix("host");
        host.register("dropped_packets", "Packets from outside that were dropped", self.host_dropped);
        host.register("passed_packets", "Packets left to the host, by hook and reason", self.passed);
    }
}

impl<L> Flow<L>
where
    L: Clone + std::hash::Hash + Eq + EncodeLabelSet + std::fmt::Debug + Send + Sync + 'static,
{
    fn count(&self, labels: &L, packets: u64, bytes: u64) {
        self.packets.get_or_create(labels).inc_by(packets);
        self.bytes.get_or_create(labels).inc_by(bytes);
    }

    fn register(self, registry: &mut Registry, name: &str, what: &str) {
        registry.register(format!("{name}_packets"), format!("Packets {what}"), self.packets);
        registry.register(format!("{name}_bytes"), format!("Bytes of packets {what}"), self.bytes);
    }
}

impl QueueMetrics {
    fn read(&self, labels: &Queue, stats: &QueueStats) {
        self.sent.count(labels, stats.packets, stats.bytes);
        self.drops.get_or_create(labels).inc_by(stats.drops);
        self.overlimits.get_or_create(labels).inc_by(stats.overlimits);
        self.requeues.get_or_create(labels).inc_by(stats.requeues);
        if let Some(marks) = stats.ecn_marks {
            self.marks.get_or_create(labels).inc_by(marks);
        }
        self.backlog.get_or_create(labels).set(stats.backlog);
        self.length.get_or_create(labels).set(stats.qlen);
    }

    fn register(self, registry: &mut Registry) {
        self.sent.register(registry, "sent", "sent by a qdisc");
        registry.register("drops", "Packets dropped by a qdisc", self.drops);
        registry.register("overlimits", "Times that a packet exceeded the rate", self.overlimits);
        registry.register(
            "requeues",
            "Packets requeued because the device could not send them",
            self.requeues,
        );
        registry.register("ecn_marks", "Packets marked instead of dropped", self.marks);
        registry.register("backlog_bytes", "Bytes in the queue", self.backlog);
        registry.register("queue_packets", "Packets in the queue", self.length);
    }
}
