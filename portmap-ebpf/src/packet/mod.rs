//! Parsing of a frame: what a verdict needs from it, or the reason why the frame does not contain it.
//!
//! [`ethernet`] classifies the frame, [`ip`] reads the IP header and locates the L4 header, [`l4`] and
//! [`icmp`] read ports and ICMP messages, [`frag_cache`] provides those of subsequent fragments, [`path`]
//! selects how much of that a program does.

pub mod ethernet;
pub mod frag_cache;
pub mod icmp;
pub mod icmp_message;
pub mod ip;
mod ipv4;
pub(crate) mod ipv6;
pub mod l4;
pub mod path;

pub use self::{
    ip::{IpHeader, IpVersion},
    ipv4::V4,
    ipv6::V6,
    l4::{L4Info, ParsedL4},
    path::{FastPath, ParsePath, SlowPath},
};
