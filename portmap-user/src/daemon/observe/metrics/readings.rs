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
    let exhausted = Family::<Of, Counter>::default();
    for entry in containers.ready_entries() {
        let Some(ports) = readings.ports(entry) else { continue };
        let labels = Of { container: entry.record.name.clone() };
        in_use.get_or_create(&labels).set(ports.in_use.into());
        total.get_or_create(&labels).set(ports.total.into());
        peak.get_or_create(&labels).set(ports.peak.into());
        exhausted.get_or_create(&labels).inc_by(ports.exhausted);
    }
    let ports = registry.sub_registry_with_prefix("container_ephemeral_ports");
    ports.register("used", "Ephemeral ports that a TCP or UDP socket is bound to", in_use);
    ports.register("owned", "Ephemeral ports in a container's block", total);
    ports.register("used_peak", "Most ephemeral ports in use at a reading since the daemon started", peak);
    ports.register("exhausted_readings", "Readings in which no ephemeral port was free", exhausted);
    let collector = registry.sub_registry_with_prefix("collector");
    let missing = Gauge::<u64, AtomicU64>::default();
    missing.set(u64::try_from(readings.missing(containers)).unwrap_or(u64::MAX));
    collector.register("missing_containers", "Containers in service without a complete reading", missing);
    let rounds = Counter::<u64>::default();
    rounds.inc_by(readings.rounds);
    collector.register("rounds", "Readings of all containers", rounds);
    let overdue = Counter::<u64>::default();
    overdue.inc_by(readings.overdue);
    collector.register("overdue_readings", "Readings that were given up because they took too long", overdue);
}
