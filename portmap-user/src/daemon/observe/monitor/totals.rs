//! The totals of a container's traffic.

use portmap_common::{
    counters::PacketCount,
    reason::{Reason, ReasonCounts},
};

use crate::{kernel::slot_counters::SlotCounts, model::LinkErrors};

/// Totals since the container was added, from its point of view.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::daemon) struct Totals {
    /// What it received.
    pub(in crate::daemon) rx: Flow,
    /// What it sent.
    pub(in crate::daemon) tx: Flow,
}

/// Totals of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::daemon) struct Flow {
    /// Bytes delivered, with Ethernet headers.
    pub(in crate::daemon) bytes: u64,
    /// Packets delivered.
    pub(in crate::daemon) packets: u64,
    /// Packets dropped by the programs or by the host veth. Drops of a limit's qdisc are in that qdisc's counters.
    pub(in crate::daemon) drops: u64,
    /// Errors of the host veth.
    pub(in crate::daemon) errors: u64,
}

impl Totals {
    /// The totals of a slot with these counters, whose host veth has these errors.
    pub(in crate::daemon) fn of(counts: &SlotCounts, link: LinkErrors) -> Self {
        let SlotCounts { delivered: counters, drops } = counts;
        let sum = |paths: [PacketCount; 3]| paths.into_iter().fold(PacketCount::default(), PacketCount::plus);
        let rx = sum([counters.rx_outside, counters.rx_host, counters.rx_container]);
        let tx = sum([counters.tx_outside, counters.tx_host, counters.tx_container]);
        let flow = |delivered: PacketCount, drops: &ReasonCounts, [dropped, errors]: [u64; 2]| {
            let by_reason = Reason::ALL.iter().map(|reason| drops.get(*reason));
            Flow {
                bytes: delivered.bytes,
                packets: delivered.packets,
                drops: by_reason.fold(dropped, u64::wrapping_add),
                errors,
            }
        };
        // The host veth sends what the container receives.
        Self {
            rx: flow(rx, &drops.rx, [link.tx_dropped, link.tx_errors]),
            tx: flow(tx, &drops.tx, [link.rx_dropped, link.rx_errors]),
        }
    }
}

#[cfg(test)]
mod tests {
    use portmap_common::{counters::Counters, reason::Drops};

    use super::*;

    #[test]
    fn totals_are_those_of_the_container_and_not_of_its_loopback() {
        let path = |packets| PacketCount { packets, bytes: packets * 100 };
        let delivered = Counters {
            rx_outside: path(1),
            rx_host: path(2),
            rx_container: path(4),
            tx_outside: path(8),
            tx_host: path(16),
            tx_container: path(32),
            own: path(64),
            ..Counters::default()
        };
        let mut drops = Drops::default();
        (drops.rx.malformed, drops.tx.malformed, drops.tx.arp) = (1, 2, 4);
        let link = LinkErrors { rx_errors: 1000, rx_dropped: 2000, tx_errors: 3000, tx_dropped: 4000 };
        let expected = Totals {
            rx: Flow { packets: 7, bytes: 700, drops: 4001, errors: 3000 },
            tx: Flow { packets: 56, bytes: 5600, drops: 2006, errors: 1000 },
        };
        assert_eq!(Totals::of(&SlotCounts { delivered, drops }, link), expected);
    }
}
