//! What happens to a packet: pure functions from a frame and the tables to a [`Verdict`].
//!
//! One module for each hook decides, [`packet`] reads headers, [`tables`] and [`frame`] are what a hook may ask
//! for. The same code is compiled into the BPF programs, the tests and every tool that predicts a verdict; it
//! knows nothing of either kernel or user space.
#![no_std]
#![forbid(unsafe_code)]

pub mod bind;
pub mod echo;
pub mod frame;
pub mod hooks;
pub mod neighbours;
mod object;
pub mod packet;
pub mod packet_buf;
pub mod rate;
pub mod reach;
pub mod sample;
pub mod segments;
pub mod tables;
pub mod verdict;
pub mod verdict_codec;

pub use crate::{frame::Frame, packet_buf::PacketBuf, tables::Tables, verdict::Verdict};
