//! portmap's daemon and command line.
//!
//! A command travels from [`cli`] through [`client`] and a Unix socket to [`daemon`], which decides what is to be
//! done and writes it down in [`state`]; [`kernel`] does it. [`api`] is what goes over the socket. What packets
//! do is not decided here but by the programs of the BPF [`object`].

pub mod api;
pub mod cli;
pub mod client;
pub mod daemon;
pub mod durations;
pub mod error;
pub mod fault;
pub mod kernel;
pub mod locks;
pub mod log;
pub mod model;
pub mod object;
pub mod paths;
pub mod records;
pub mod settings;
pub mod sizes;
pub mod state;
