//! One module for each hook: `decide` is the whole decision.

pub mod container_lo;
pub mod host_lo;
pub mod uplink;
pub mod veth;
