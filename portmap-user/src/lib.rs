//! portmap's daemon and command line.
//!
//! A command goes from [`cli`] through [`client`] and a Unix socket to [`daemon`], which decides what to do,
//! records it in [`state`], and executes it through [`kernel`]. [`model`] has the values that all of them
//! share, [`api`] their form on the socket, [`records`] their form on disk. The programs of the BPF
//! [`object`] decide about packets.

pub mod api;
pub mod cli;
pub mod client;
pub mod daemon;
pub mod durations;
pub mod error;
pub mod failpoint;
pub mod journald;
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
