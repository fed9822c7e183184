//! `/monitor/statistics`: the statistics of all containers in the form of a Mesos agent.

mod percentiles;
pub(in crate::daemon) mod rates;
mod totals;

use std::time::{SystemTime, UNIX_EPOCH};

use self::{rates::Rates, totals::Totals};
use super::collect::{Key, Readings};
use crate::{
    api::monitor::{MonitoredContainer, Ports, Rtt, Statistics, TrafficControl},
    daemon::{
        container::limits::Queue,
        env::Env,
        registry::{Entry, Snapshot},
    },
    error::Result,
    kernel::slot_counters::SlotTable,
    model::{Limit, QueueStats, labels},
};

/// The statistics of all containers in service.
///
/// # Errors
///
/// If a map cannot be read.
pub(in crate::daemon) fn all(
    env: &Env,
    containers: &Snapshot,
    readings: &Readings,
    rates: Option<&Rates>,
) -> Result<Vec<MonitoredContainer>> {
    let counts = env.maps.slot_counts(&containers.slots())?;
    Ok(containers.ready_entries().map(|entry| of_container(entry, &counts, readings, rates)).collect())
}

fn of_container(
    entry: &Entry,
    counts: &SlotTable,
    readings: &Readings,
    rates: Option<&Rates>,
) -> MonitoredContainer {
    let (record, link) = (&entry.record, readings.link(entry));
    let totals = Totals::of(&counts.get(record.slot), link.unwrap_or_default());
    // A counter that is not known yet is left out, because 0 would look like a reset.
    let of_link = |count: u64| link.is_some().then_some(count);
    let inside = readings.inside(entry);
    let sockets = inside.and_then(|inside| inside.sockets);
    let (tx, rx) = (rate_keys(record.egress.as_ref()), rate_keys(record.ingress.as_ref()));
    let statistics = Statistics {
        timestamp: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
        net_rx_packets: totals.rx.packets,
        net_rx_bytes: totals.rx.bytes,
        net_rx_errors: of_link(totals.rx.errors),
        net_rx_dropped: of_link(totals.rx.drops),
        net_tx_packets: totals.tx.packets,
        net_tx_bytes: totals.tx.bytes,
        net_tx_errors: of_link(totals.tx.errors),
        net_tx_dropped: of_link(totals.tx.drops),
        net_tx_rate_limit: tx[0],
        net_tx_burst_rate_limit: tx[1],
        net_tx_burst_size: tx[2],
        net_rx_rate_limit: rx[0],
        net_rx_burst_rate_limit: rx[1],
        net_rx_burst_size: rx[2],
        net_ephemeral_ports: Ports {
            begin: record.ephemeral_ports.first(),
            end: record.ephemeral_ports.last(),
        },
        net_tcp_active_connections: sockets.map(|sockets| float(sockets.tcp)),
        net_tcp_time_wait_connections: sockets.map(|sockets| float(sockets.time_wait)),
        rtt: Rtt::from(inside.and_then(|inside| inside.rtt)),
        net_snmp_statistics: inside.and_then(|inside| inside.snmp.clone()),
        net_traffic_control_statistics: traffic_control(entry, readings),
        net_rate_statistics: rates.map(|rates| rates.of(&Key::of(entry))),
    };
    // Empty if the container lacks the label.
    let label = |key| record.labels.get(key).unwrap_or_default().to_owned();
    MonitoredContainer {
        container_id: record.name.clone(),
        executor_id: label(labels::EXECUTOR_ID),
        executor_name: label(labels::EXECUTOR_NAME),
        framework_id: label(labels::FRAMEWORK_ID),
        source: label(labels::SOURCE),
        statistics,
    }
}

/// Rate, burst rate and burst size of a limit. The last two exist only with a burst rate above the rate.
fn rate_keys(limit: Option<&Limit>) -> [Option<u64>; 3] {
    let burst = limit.filter(|limit| limit.ceil > limit.rate);
    [limit.map(|limit| limit.rate), burst.map(|limit| limit.ceil), burst.map(|limit| limit.burst)]
}

/// A count as a number with a fraction, which the original's type is.
#[expect(clippy::cast_precision_loss, reason = "far from 2^52")]
const fn float(count: u64) -> f64 {
    count as f64
}

/// The qdiscs of a container's limits. Those that could not be read are left out.
fn traffic_control(entry: &Entry, readings: &Readings) -> Vec<TrafficControl> {
    let Some(reading) = readings.container(entry) else { return Vec::new() };
    let directions = [
        (["ingress_bw_limit", "ingress_bloat_reduction"], &reading.queues.ingress),
        (["bw_limit", "bloat_reduction"], &reading.queues.egress),
    ];
    let mut all = Vec::new();
    for (ids, queue) in directions {
        let stats = queue.as_ref().and_then(|queue| queue.as_ref().ok()).and_then(Queue::counters);
        let qdiscs = stats.unwrap_or_default().iter().filter(|queue| !queue.is_class());
        for (id, qdisc) in ids.into_iter().zip(qdiscs) {
            all.push(of_qdisc(id.to_owned(), qdisc));
        }
    }
    all
}

fn of_qdisc(id: String, qdisc: &QueueStats) -> TrafficControl {
    let QueueStats { kind: _, bytes, packets, drops, overlimits, requeues, backlog, qlen, ecn_marks: _ } =
        *qdisc;
    // The qdiscs have no estimator, so both rates are 0.
    TrafficControl {
        id,
        backlog,
        bytes,
        drops,
        overlimits,
        packets,
        qlen,
        requeues,
        ..TrafficControl::default()
    }
}
