//! What the containers own and what they can still get: ports, blocks, slots, limits.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder},
    metrics::{MetricType, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

use crate::{
    api::{Capacity, ContainerState, LimitPolicies},
    daemon::registry::Snapshot,
    model::PortRange,
    settings::MetricsLabel,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct State {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Size {
    /// Number of ports of a block.
    size: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Direction {
    direction: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Ports {
    container: String,
    kind: &'static str,
}

type Value = Gauge<u64, AtomicU64>;
type Level<L> = Family<L, Value>;

/// Registers the metrics of containers that are no counters.
pub(super) fn register_containers(registry: &mut Registry, containers: &Snapshot, chosen: &[MetricsLabel]) {
    let (states, unchecked, ports) = (Level::<State>::default(), Value::default(), Level::<Ports>::default());
    let mut infos = Vec::with_capacity(containers.len());
    for state in
        [ContainerState::Adding, ContainerState::Ready, ContainerState::Deleting, ContainerState::Broken]
    {
        states.get_or_create(&State { state: state.name() }).set(0);
    }
    for entry in containers.entries() {
        let record = &entry.record;
        states.get_or_create(&State { state: entry.state().name() }).inc();
        unchecked.inc_by(u64::from(entry.is_unchecked));
        for (kind, count) in [("static", record.ports.count()), ("ephemeral", record.ephemeral_ports.count())]
        {
            ports.get_or_create(&Ports { container: record.name.clone(), kind }).set(number(count));
        }
        let own = [("container".to_owned(), record.name.clone()), ("device".to_owned(), record.host_veth())];
        let labels = chosen
            .iter()
            .filter_map(|label| Some((label.name.clone(), record.labels.get(&label.key)?.to_owned())));
        infos.push(own.into_iter().chain(labels).collect());
    }
    registry.register("containers", "Containers, by state", states);
    registry.register(
        "unchecked_containers",
        "Containers of an earlier daemon that this one has not checked yet",
        unchecked,
    );
    registry.register("container_ports", "Ports of a container", ports);
    registry.register("container", "The host veth and the chosen labels of a container", Infos(infos));
}

/// Registers the metrics of the pools and of the daemon's limits.
pub(super) fn register_capacity(registry: &mut Registry, capacity: &Capacity) {
    let Capacity { containers, slots, static_ports, ephemeral_ports, limits } = capacity;
    let value = |count: usize| {
        let gauge = Value::default();
        gauge.set(number(count));
        gauge
    };
    let by_state = |counts: &[(&'static str, usize)]| {
        let family = Level::<State>::default();
        for (state, count) in counts {
            family.get_or_create(&State { state }).set(number(*count));
        }
        family
    };
    registry.register(
        "containers_fit",
        "How many more containers can be added with the default number of ephemeral ports",
        value(containers.fit),
    );
    registry.register(
        "slots",
        "Slots, one of which each container needs",
        by_state(&[("owned", slots.owned), ("free", slots.free)]),
    );
    registry.register(
        "static_ports",
        "Ports that containers can request by number",
        by_state(&[("owned", static_ports.owned), ("free", static_ports.free)]),
    );
    registry.register(
        "static_ports_largest_free_run",
        "Ports of the longest run of free static ports",
        value(static_ports.largest_free_run.map_or(0, PortRange::count)),
    );
    registry.register(
        "ephemeral_ports",
        "Ports of the ephemeral pool; host: in use by a process of the host",
        by_state(&[
            ("owned", ephemeral_ports.owned),
            ("free", ephemeral_ports.free),
            ("quarantined", ephemeral_ports.quarantined),
            ("host", ephemeral_ports.host),
        ]),
    );
    registry.register(
        "ephemeral_ports_per_container",
        "Default number of ephemeral ports of a container",
        value(usize::from(ephemeral_ports.per_container)),
    );
    let (free, owned, quarantined) = (Level::<Size>::default(), Level::default(), Level::default());
    for row in &ephemeral_ports.blocks {
        let size = Size { size: row.size };
        free.get_or_create(&size).set(number(row.free));
        owned.get_or_create(&size).set(number(row.owned));
        quarantined.get_or_create(&size).set(number(row.quarantined));
    }
    registry.register(
        "ephemeral_blocks_free",
        "How many containers can get a block of this size if no other size is requested",
        free,
    );
    registry.register("ephemeral_blocks_owned", "Blocks of containers", owned);
    registry.register("ephemeral_blocks_quarantined", "Released blocks in quarantine", quarantined);
    if let Some(seconds) = ephemeral_ports.next_free_seconds {
        let left = Value::default();
        left.set(seconds);
        registry.register_with_unit(
            "ephemeral_block_next_free",
            "Time until the quarantine of a block ends; absent if no block is in quarantine",
            Unit::Seconds,
            left,
        );
    }
    register_limits(registry, limits);
}

fn register_limits(registry: &mut Registry, limits: &LimitPolicies) {
    let (default, per_cpu) = (Level::<Direction>::default(), Level::<Direction>::default());
    for (direction, policy) in [("egress", &limits.egress), ("ingress", &limits.ingress)] {
        let direction = Direction { direction };
        default.get_or_create(&direction).set(policy.per_container.unwrap_or_default());
        per_cpu.get_or_create(&direction).set(policy.per_cpu.unwrap_or_default());
    }
    let per_second = || Unit::Other("bytes_per_second".to_owned());
    registry.register_with_unit(
        "default_limit",
        "Rate limit of a container without one of its own; 0: unlimited",
        per_second(),
        default,
    );
    registry.register_with_unit(
        "per_cpu_limit",
        "Rate limit per CPU of a container; 0: limits do not depend on CPUs",
        per_second(),
        per_cpu,
    );
    if let Some(speed) = limits.link_speed {
        let link_speed = Value::default();
        link_speed.set(speed);
        registry.register_with_unit(
            "link_speed",
            "Speed of the fastest uplink, if it is known",
            per_second(),
            link_speed,
        );
    }
}

fn number(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// One info metric for each set of labels. The crate's `Info` in a `Family` would need a label of its own.
#[derive(Debug)]
struct Infos(Vec<Vec<(String, String)>>);

impl EncodeMetric for Infos {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|labels| encoder.encode_info(labels))
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Info
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
