//! Observation: statistics, metrics, capacity, drops, flows, and `explain`.
//!
//! These functions read the maps, the kernel and a snapshot of the registry. What must be read inside
//! namespaces is the collector's. They take no lock that commands hold.

pub(super) mod capacity;
pub(super) mod collect;
pub(super) mod containers;
pub(super) mod drop_stream;
pub(super) mod drops;
pub(super) mod explain;
pub(super) mod flows;
pub(super) mod metrics;
pub(super) mod monitor;
pub(super) mod stats;
mod talkers;
#[cfg(feature = "datapath-log")]
pub(super) mod verdict_log;
