//! `/monitor/statistics`: the JSON of a Mesos agent. Names, units and types are the original's
//! (docs/monitor.md).

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::model::{RttPercentiles, Snmp};

/// A container and its statistics. The texts are empty if the container lacks the label.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MonitoredContainer {
    /// Its name.
    pub container_id: String,
    /// Its label of this name.
    pub executor_id: String,
    /// Its label of this name.
    pub executor_name: String,
    /// Its label of this name.
    pub framework_id: String,
    /// Its label of this name.
    pub source: String,
    /// The statistics.
    pub statistics: Statistics,
}

/// Statistics of a container. `rx` and `tx` are from its point of view; rates are in bytes per second.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Statistics {
    /// Time of the reading, in seconds since 1970.
    pub timestamp: f64,
    /// Packets delivered to the container.
    pub net_rx_packets: u64,
    /// Their bytes.
    pub net_rx_bytes: u64,
    /// Packets for the container that its interface could not send on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net_rx_errors: Option<u64>,
    /// Packets for the container that were dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net_rx_dropped: Option<u64>,
    /// Packets that the container sent.
    pub net_tx_packets: u64,
    /// Their bytes.
    pub net_tx_bytes: u64,
    /// Packets of the container that its interface could not receive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net_tx_errors: Option<u64>,
    /// Packets of the container that were dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net_tx_dropped: Option<u64>,
    /// Limit on what it sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net_tx_rate_limit: Option<u64>,
    /// Rate while its burst lasts, if that is higher.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net_tx_burst_rate_limit: Option<u64>,
    /// Bytes that may exceed the limit at once, if there is a burst rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net_tx_burst_size: Option<u64>,
    /// Limit on what it receives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net_rx_rate_limit: Option<u64>,
    /// Rate while its burst lasts, if that is higher.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net_rx_burst_rate_limit: Option<u64>,
    /// Bytes that may exceed the limit at once, if there is a burst rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net_rx_burst_size: Option<u64>,
    /// Its block of ephemeral ports.
    pub net_ephemeral_ports: Ports,
    /// TCP sockets in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net_tcp_active_connections: Option<f64>,
    /// TCP connections in `TIME_WAIT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net_tcp_time_wait_connections: Option<f64>,
    /// Percentiles of round-trip times.
    #[serde(flatten)]
    pub rtt: Rtt,
    /// Protocol counters: group, name, value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net_snmp_statistics: Option<Arc<Snmp>>,
    /// Counters of the qdiscs of its limits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub net_traffic_control_statistics: Vec<TrafficControl>,
    /// Percentiles of its rates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net_rate_statistics: Option<RateStatistics>,
}

/// A range of ports, both bounds included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    /// The first port.
    pub begin: u16,
    /// The last port.
    pub end: u16,
}

/// Percentiles of the round-trip times of TCP connections, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rtt {
    #[serde(default, rename = "net_tcp_rtt_microsecs_p50", skip_serializing_if = "Option::is_none")]
    p50: Option<f64>,
    #[serde(default, rename = "net_tcp_rtt_microsecs_p90", skip_serializing_if = "Option::is_none")]
    p90: Option<f64>,
    #[serde(default, rename = "net_tcp_rtt_microsecs_p95", skip_serializing_if = "Option::is_none")]
    p95: Option<f64>,
    #[serde(default, rename = "net_tcp_rtt_microsecs_p99", skip_serializing_if = "Option::is_none")]
    p99: Option<f64>,
}

impl From<Option<RttPercentiles>> for Rtt {
    fn from(percentiles: Option<RttPercentiles>) -> Self {
        let Some(RttPercentiles { p50, p90, p95, p99 }) = percentiles else { return Self::default() };
        let [p50, p90, p95, p99] = [p50, p90, p95, p99].map(|value| Some(f64::from(value)));
        Self { p50, p90, p95, p99 }
    }
}

/// Counters of a qdisc.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficControl {
    /// `bw_limit` or `bloat_reduction`, and for what the container receives with the prefix `ingress_`.
    pub id: String,
    /// Bytes in the queue.
    pub backlog: u64,
    /// Bytes sent.
    pub bytes: u64,
    /// Packets dropped.
    pub drops: u64,
    /// Times that a packet was delayed by the limit.
    pub overlimits: u64,
    /// Packets sent.
    pub packets: u64,
    /// Packets in the queue.
    pub qlen: u64,
    /// Always 0: the qdisc has no estimator.
    pub ratebps: u64,
    /// Always 0: the qdisc has no estimator.
    pub ratepps: u64,
    /// Packets returned by the device.
    pub requeues: u64,
}

/// Percentiles of the rates of a container over a window.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RateStatistics {
    /// Bytes per second received.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_rate: Option<Percentiles>,
    /// Packets per second received.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_packet_rate: Option<Percentiles>,
    /// Drops per second of packets for the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_drop_rate: Option<Percentiles>,
    /// Errors per second of packets for the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_error_rate: Option<Percentiles>,
    /// Bytes per second sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_rate: Option<Percentiles>,
    /// Packets per second sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_packet_rate: Option<Percentiles>,
    /// Drops per second of packets of the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_drop_rate: Option<Percentiles>,
    /// Errors per second of packets of the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_error_rate: Option<Percentiles>,
    /// How long a sample counts, in seconds.
    pub sampling_window_secs: f64,
    /// Time between two samples, in seconds.
    pub sampling_interval_secs: f64,
}

/// Percentiles of a rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Percentiles {
    /// Number of samples.
    pub samples: u64,
    /// The lowest.
    pub min: u64,
    /// The highest.
    pub max: u64,
    /// 50 % of the samples are at most this; interpolated, as the others.
    pub p50: u64,
    /// 90 %.
    pub p90: u64,
    /// 95 %.
    pub p95: u64,
    /// 99 %.
    pub p99: u64,
    /// 99.9 %.
    pub p999: u64,
    /// 99.99 %.
    pub p9999: u64,
}
