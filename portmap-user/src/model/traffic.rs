//! What a client requests for a container's traffic.

use super::{cpus::Cpus, reach::Loopback};

/// Requested properties of a container's traffic. The daemon's flags decide those that are `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrafficSpec {
    /// Limit on what it sends, in bytes per second; 0: unlimited.
    pub egress_rate: Option<u64>,
    /// Limit on what it receives, in bytes per second; 0: unlimited.
    pub ingress_rate: Option<u64>,
    /// Its CPUs, for limits that depend on them.
    pub cpus: Option<Cpus>,
    /// Scope of its loopback addresses.
    pub loopback: Option<Loopback>,
}

impl TrafficSpec {
    /// Returns these properties, with those that are `None` taken from `other`.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            egress_rate: self.egress_rate.or(other.egress_rate),
            ingress_rate: self.ingress_rate.or(other.ingress_rate),
            cpus: self.cpus.or(other.cpus),
            loopback: self.loopback.or(other.loopback),
        }
    }
}
