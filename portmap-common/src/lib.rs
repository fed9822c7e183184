//! The contract between portmap's BPF programs and its daemon: all types of map keys and values, all names of
//! pins, all marks, and all reasons for which a packet is not delivered.
//!
//! Everything here is plain data with an explicit layout. A change of a size, an offset or a meaning needs a
//! new [`LAYOUT_VERSION`], because maps outlive the daemon that created them.
#![no_std]
#![deny(unsafe_code)]

pub mod address_filter;
pub mod counters;
pub mod event;
pub mod flow_state;
pub mod gcra;
pub mod hook_point;
pub mod marks;
pub mod names;
pub mod queue;
pub mod reason;
pub mod skb;
pub mod slot;
pub mod tables;
pub mod verdict_log;

#[cfg(feature = "user")]
mod pod;

/// Version of the layout of all pinned maps. It is part of the pin path (`<bpffs-dir>/v<LAYOUT_VERSION>`), so
/// that a daemon never takes over maps with a layout that it does not know.
pub const LAYOUT_VERSION: u32 = 6;
