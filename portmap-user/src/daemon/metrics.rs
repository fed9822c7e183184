//! `/metrics`: everything that is counted, in the text format of `OpenMetrics`.
//!
//! Names follow Prometheus' conventions: units in the name, receive and transmit apart, totals left to the reader.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, info::Info},
    registry::{Registry, Unit},
};

use super::Daemon;
use crate::{
    api::{ContainerStats, DropStats, Stats},
    error::{Context as _, Result},
    kernel::{programs::AttachMode, qdisc::Leaf},
    model::{ContainerRecord, Phase, QueueStats},
};

/// The type of the answer.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    container: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Path {
    container: String,
    /// The other end: outside, the host, or another container.
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
    /// `bw_limit` is what limits the rate, `bloat_reduction` what packets wait in, as Mesos names them.
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
    queues: Queues,
}

#[derive(Default)]
struct Queues {
    sent: Flow<Queue>,
    drops: Count<Queue>,
    overlimits: Count<Queue>,
    requeues: Count<Queue>,
    marks: Count<Queue>,
    backlog: Level<Queue>,
    length: Level<Queue>,
}

impl Daemon {
    /// All metrics as they are now.
    pub(super) fn metrics(&self) -> Result<String> {
        let metrics = Metrics::default();
        let has = |feature, has| metrics.features.get_or_create(&Feature { feature }).set(u64::from(has));
        has("fq_codel", self.leaf == Leaf::FqCodel);
        has("tcx", self.attach_mode == AttachMode::Tcx);
        metrics.read(&self.stats()?);
        let records: Vec<ContainerRecord> =
            self.registry().containers.values().map(|entry| entry.record.clone()).collect();
        // What is about to come or to go has no queue of its own yet, or none any more.
        for record in records.iter().filter(|record| record.phase == Phase::Ready) {
            let egress =
                record.egress.as_ref().map(|limit| ("egress", limit, self.check_egress(record, limit)));
            let ingress =
                record.ingress.as_ref().map(|limit| ("ingress", limit, self.check_ingress(record, limit)));
            for (direction, limit, checked) in egress.into_iter().chain(ingress) {
                let labels = Direction { container: record.name.clone(), direction };
                metrics.limits.get_or_create(&labels).set(limit.rate);
                metrics.in_place.get_or_create(&labels).set(u64::from(checked.is_ok()));
            }
        }
        let mut text = String::new();
        text::encode(&mut text, &metrics.registry(self.leaf))
            .context(|| "cannot write metrics".to_owned())?;
        Ok(text)
    }
}

impl Metrics {
    fn read(&self, stats: &Stats) {
        for container in &stats.containers {
            self.read_container(container);
        }
        let DropStats { rx, tx } = &stats.host.drops;
        for (reason, packets) in rx.iter().chain(tx) {
            self.host_dropped.get_or_create(&HostDropped { reason: reason.clone() }).inc_by(*packets);
        }
        for (hook, reasons) in &stats.host.passed {
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

    /// All of them, with their names. The prefix comes before each.
    fn registry(self, leaf: Leaf) -> Registry {
        let mut registry = Registry::with_prefix("portmap");
        let about = vec![("version", env!("CARGO_PKG_VERSION")), ("leaf", leaf.name())];
        registry.register("build", "This daemon, and what packets over a limit wait in", Info::new(about));
        registry.register("kernel_feature", "Whether the kernel has what portmap would use", self.features);
        let per_container = registry.sub_registry_with_prefix("container");
        self.received.register(per_container, "receive", "delivered to a container, by where they are from");
        self.transmitted.register(per_container, "transmit", "a container sent, by where they went");
        self.own.register(per_container, "own", "that stayed inside a container");
        per_container.register(
            "dropped_packets",
            "Packets dropped, by direction as the container sees it, and reason",
            self.dropped,
        );
        per_container.register_with_unit(
            "limit",
            "Limit on a container's rate",
            Unit::Other("bytes_per_second".to_owned()),
            self.limits,
        );
        per_container.register(
            "limit_queue_in_place",
            "Whether the queue that holds a limit is in place; if not, the host drops what exceeds the limit",
            self.in_place,
        );
        self.queues.register(per_container.sub_registry_with_prefix("qdisc"));
        let host = registry.sub_registry_with_prefix("host");
        host.register("dropped_packets", "Packets from outside that were dropped", self.host_dropped);
        host.register("passed_packets", "Packets left to the host, by hook and reason", self.passed);
        registry
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

impl Queues {
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
        self.sent.register(registry, "sent", "that a queue has sent");
        registry.register("drops", "Packets that a queue has dropped", self.drops);
        registry.register("overlimits", "Times that a packet had to wait for the rate", self.overlimits);
        registry.register("requeues", "Times that a packet came back from the device", self.requeues);
        registry.register("ecn_marks", "Packets marked instead of dropped", self.marks);
        registry.register("backlog_bytes", "Bytes that wait", self.backlog);
        registry.register("queue_packets", "Packets that wait", self.length);
    }
}
