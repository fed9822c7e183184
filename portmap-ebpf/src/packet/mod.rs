//! Reading a frame: what the verdicts need from it, or the reason why it is not there.
//!
//! [`ethernet`] tells what the frame is, [`ip::Ip`] who it is from and for, [`content`] what it carries.

pub mod content;
pub mod ethernet;
pub mod ip;
mod ipv4;
mod ipv6;

pub use self::{
    content::{Content, FastPath, ParsePath, Reading, SlowPath},
    ip::{Ip, Version},
    ipv4::V4,
    ipv6::V6,
};
