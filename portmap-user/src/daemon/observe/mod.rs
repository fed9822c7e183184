//! Observation: statistics, metrics, capacity, drops, and `explain`.
//!
//! These functions read the maps, the kernel and a snapshot of the registry. They take no lock that commands
//! hold.

pub(super) mod capacity;
pub(super) mod containers;
pub(super) mod drop_stream;
pub(super) mod drops;
pub(super) mod explain;
pub(super) mod metrics;
pub(super) mod stats;
