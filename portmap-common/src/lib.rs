//! The contract between portmap's BPF programs and its daemon: every type that lies in a map, every name
//! under which something is pinned, and every reason for which a packet is not delivered.
//!
//! Everything here is plain data with an explicit layout. A change of a size, an offset or a meaning needs a
//! new [`LAYOUT_VERSION`], because maps outlive the daemon that made them.
#![no_std]
#![deny(unsafe_code)]

pub mod counters;
pub mod event;
pub mod limit;
pub mod memory;
pub mod names;
pub mod queue;
pub mod reason;
pub mod skb;
pub mod slot;
pub mod tables;

#[cfg(feature = "user")]
mod pod;

/// Version of everything that is pinned. It is part of the pin path (`<bpffs-dir>/v<LAYOUT_VERSION>`), so that
/// a daemon never takes over maps whose layout it does not know.
pub const LAYOUT_VERSION: u32 = 5;
