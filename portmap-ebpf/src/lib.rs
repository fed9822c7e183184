//! The verdicts: pure functions from a frame and the tables to a [`Verdict`].
//!
//! [`hooks`] has one module per hook with its decision, [`packet`] parses headers, [`frame`] and [`tables`]
//! are the traits through which a hook reads the frame and the maps. The BPF programs, the daemon (`portmap
//! explain`) and the tests compile the same code; it depends on neither the kernel nor user space.
#![no_std]
#![forbid(unsafe_code)]

pub mod bind;
pub mod fib;
pub mod frame;
pub mod hooks;
pub mod host_connections;
pub mod icmp_id;
pub mod neighbours;
mod object;
pub mod packet;
pub mod packet_buf;
pub mod policer;
pub mod reach;
pub mod route;
pub mod sample;
pub mod segments;
pub mod tables;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod verdict;
pub mod verdict_codec;

pub use crate::{frame::Frame, packet_buf::PacketBuf, tables::Tables, verdict::Verdict};
