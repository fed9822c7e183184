//! Readings of the kernel for statistics, besides the counters of the programs.

use std::{borrow::Cow, collections::BTreeMap};

/// Errors and drops of an interface since it was created, from the interface's view.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkErrors {
    /// Packets received with an error.
    pub rx_errors: u64,
    /// Packets received and dropped.
    pub rx_dropped: u64,
    /// Packets that could not be sent because of an error.
    pub tx_errors: u64,
    /// Packets dropped instead of sent.
    pub tx_dropped: u64,
}

/// Counts of a network namespace's sockets, IPv4 and IPv6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketSummary {
    /// TCP sockets in use, listening ones included.
    pub tcp: u64,
    /// TCP connections in `TIME_WAIT`.
    pub time_wait: u64,
    /// UDP sockets that are bound to a port.
    pub udp: u64,
    /// Sockets of all kinds.
    pub all: u64,
}

impl SocketSummary {
    /// Whether there can be a TCP socket besides `own` sockets of another kind. One that is only bound is in no count
    /// but that of all.
    pub const fn can_have_tcp(&self, own: u64) -> bool {
        self.tcp + self.time_wait > 0 || self.all > self.udp + own
    }
}

/// Protocol counters of a network namespace (`/proc/net/snmp`), by group and then by the kernel's name.
pub type Snmp = BTreeMap<Cow<'static, str>, BTreeMap<Cow<'static, str>, i64>>;

/// Percentiles of the round-trip times of a namespace's TCP connections, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RttPercentiles {
    /// Half of the connections have at most this.
    pub p50: u32,
    /// 90 % of them.
    pub p90: u32,
    /// 95 % of them.
    pub p95: u32,
    /// 99 % of them.
    pub p99: u32,
}

/// Use of a container's block of ephemeral ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortUse {
    /// Ports that a TCP socket in any state, `TIME_WAIT` included, or a UDP socket is bound to.
    pub in_use: u32,
    /// Number of ports in the block.
    pub total: u32,
    /// The highest `in_use` of all readings since the daemon started, or since the container has this block.
    pub peak: u32,
    /// Number of readings since the daemon started in which no port of the block was free.
    pub exhausted: u64,
}

impl PortUse {
    /// The use after another reading; `before`: that of the reading before it.
    pub fn next(before: Option<Self>, in_use: u32, total: u32) -> Self {
        let before = before.unwrap_or_default();
        let peak = if before.total == total { before.peak } else { 0 };
        // A counter, which continues when exhaustion has been remedied by a larger block.
        let exhausted = before.exhausted + u64::from(in_use >= total);
        Self { in_use, total, peak: peak.max(in_use), exhausted }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_in_use_have_a_peak_and_a_count_of_exhaustion() {
        let first = PortUse::next(None, 3, 16);
        assert_eq!(first, PortUse { in_use: 3, total: 16, peak: 3, exhausted: 0 });
        let full = PortUse::next(Some(PortUse::next(Some(first), 16, 16)), 16, 16);
        assert_eq!(full, PortUse { in_use: 16, total: 16, peak: 16, exhausted: 2 });
        let after = PortUse::next(Some(full), 0, 16);
        assert_eq!(after, PortUse { in_use: 0, total: 16, peak: 16, exhausted: 2 });
        assert_eq!(
            PortUse::next(Some(after), 1, 32),
            PortUse { in_use: 1, total: 32, peak: 1, exhausted: 2 }
        );
    }
}
