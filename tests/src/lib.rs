//! Shared by the end-to-end tests, the demonstration and the benchmarks: sandboxes that simulate a host and
//! its network, services inside them, and hand-made frames.

pub mod background;
pub mod cache;
pub mod cgroup;
pub mod daemon;
pub mod events;
pub mod faults;
pub mod frames;
pub mod inventory;
pub mod lines;
pub mod load;
mod not_run;
pub mod observers;
pub mod packet_socket;
pub mod private;
pub mod random;
mod run;
pub mod sandbox;
pub mod service;
pub mod terminal;
pub mod tunnel;
pub mod wait;

pub use self::not_run::not_run;
