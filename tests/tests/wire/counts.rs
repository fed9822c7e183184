//! The host's counters for the attacking container.

use portmap::kernel::maps::Maps;
use portmap_common::reason::Reason;

use crate::{oracle::Vantage, testbed::SLOT};

/// The host's counters for the container.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) outside: (u64, u64),
    pub(crate) host: (u64, u64),
    pub(crate) container: (u64, u64),
    pub(crate) dropped: u64,
}

impl Counts {
    /// Reads the counters.
    pub(crate) fn read(maps: &Maps) -> Self {
        let counters = maps.counters(SLOT).expect("a map");
        let drops = maps.drops(SLOT).expect("a map").tx;
        Self {
            outside: (counters.tx_outside.packets, counters.tx_outside.bytes),
            host: (counters.tx_host.packets, counters.tx_host.bytes),
            container: (counters.tx_container.packets, counters.tx_container.bytes),
            dropped: Reason::ALL.iter().map(|reason| drops.get(*reason)).sum(),
        }
    }

    pub(crate) fn total(&self) -> u64 {
        self.outside.0 + self.host.0 + self.container.0 + self.dropped
    }

    /// Packets and bytes to a vantage point.
    pub(crate) const fn at(&self, at: Vantage) -> (u64, u64) {
        match at {
            Vantage::Outside => self.outside,
            Vantage::Host => self.host,
            Vantage::Other => self.container,
        }
    }
}
