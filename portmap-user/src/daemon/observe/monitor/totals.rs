//! The totals of a container's traffic.

use portmap_common::{
    counters::PacketCount,
    reason::{Reason, ReasonCounts},
};

use crate::{daemon::env::Env, error::Result, model::LinkErrors};

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
    /// Reads the totals of a slot, whose host veth has these errors.
    ///
    /// # Errors
    ///
    /// If a map cannot be read.
    pub(in crate::daemon) fn read(env: &Env, slot: u16, link: LinkErrors) -> Result<Self> {
        let (counters, drops) = (env.maps.counters(slot)?, env.maps.drops(slot)?);
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
        Ok(Self {
            rx: flow(rx, &drops.rx, [link.tx_dropped, link.tx_errors]),
            tx: flow(tx, &drops.tx, [link.rx_dropped, link.rx_errors]),
        })
    }
}
