//! What the end-to-end tests, the demonstration and the benchmarks share: sandboxes that play a host and its
//! surroundings, services in them, and hand-made frames.

pub mod cgroup;
pub mod daemon;
pub mod faults;
pub mod frames;
pub mod inventory;
pub mod load;
mod not_run;
pub mod observers;
pub mod packet_socket;
pub mod private;
pub mod random;
mod run;
pub mod sandbox;
pub mod service;
pub mod wait;

pub use self::not_run::not_run;
