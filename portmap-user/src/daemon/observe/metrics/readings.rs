//! Metrics of what the collector reads: ephemeral ports, and the collector itself.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::super::collect::Readings;
use crate::daemon::registry::Snapshot;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    container: String,
}

type Level = Family<Of, Gauge<u64, AtomicU64>>;

/// Registers these metrics.
pub(super) fn register(registry: &mut Registry, containers: &Snapshot, readings: &Readings) {
    let (in_use, total, peak) = (Level::default(), Level::default(), Level::default());
    let (exhausted, complete) = (Family::<Of, Counter>::default(), Level::default());
    let mut count_missing = 0;
    for entry in containers.ready_entries() {
        let labels = Of { container: entry.record.name.clone() };
        let is_complete = readings.is_complete(entry);
        complete.get_or_create(&labels).set(u64::from(is_complete));
        count_missing += u64::from(!is_complete);
        let Some(ports) = readings.ports(entry) else { continue };
        in_use.get_or_create(&labels).set(ports.in_use.into());
        total.get_or_create(&labels).set(ports.total.into());
        peak.get_or_create(&labels).set(ports.peak.into());
        exhausted.get_or_create(&labels).inc_by(ports.exhausted);
    }
    registry.register(
        "container_reading_complete",
        "1 if all statistics of the container could be read",
        complete,
    );
    let ports = registry.sub_registry_with_prefix("container_ephemeral_ports");
    ports.register("used", "Ephemeral ports that a TCP or UDP socket is bound to", in_use);
    ports.register("owned", "Ephemeral ports in a container's block", total);
    ports.register("used_peak", "Most ephemeral ports of the block in use at a reading", peak);
    ports.register("exhausted_readings", "Readings in which no ephemeral port was free", exhausted);
    let collector = registry.sub_registry_with_prefix("collector");
    let missing = Gauge::<u64, AtomicU64>::default();
    missing.set(count_missing);
    collector.register("missing_containers", "Containers in service without a complete reading", missing);
    let rounds = Counter::<u64>::default();
    rounds.inc_by(readings.rounds);
    collector.register("rounds", "Readings of all containers", rounds);
    let overdue = Counter::<u64>::default();
    overdue.inc_by(readings.overdue);
    collector.register("overdue_readings", "Readings that were given up because they took too long", overdue);
}
