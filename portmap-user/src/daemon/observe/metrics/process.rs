//! The daemon's process, under the names of Prometheus' client libraries.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::{Registry, Unit},
};

use crate::kernel::own_process::OwnProcess;

/// Registers the metrics of this process.
pub(super) fn register(registry: &mut Registry, process: &OwnProcess) {
    let gauge = |value: u64| {
        let gauge = Gauge::<u64, AtomicU64>::default();
        gauge.set(value);
        gauge
    };
    let (cpu, start) = (Counter::<f64, AtomicU64>::default(), Gauge::<f64, AtomicU64>::default());
    cpu.inc_by(process.cpu_seconds);
    start.set(process.started);
    let registry = registry.sub_registry_with_prefix("process");
    registry.register_with_unit("cpu", "CPU time of the daemon", Unit::Seconds, cpu);
    registry.register_with_unit("resident_memory", "Resident memory", Unit::Bytes, gauge(process.resident));
    registry.register_with_unit(
        "virtual_memory",
        "Virtual memory",
        Unit::Bytes,
        gauge(process.virtual_memory),
    );
    registry.register("open_fds", "Open file descriptors", gauge(process.open_files));
    registry.register("max_fds", "Limit on open file descriptors", gauge(process.max_files));
    registry.register("threads", "Threads", gauge(process.threads));
    registry.register_with_unit("start_time", "Start of the daemon, since the epoch", Unit::Seconds, start);
}
