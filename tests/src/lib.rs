//! What the end-to-end tests, the demonstration and the benchmarks share: sandboxes that play a host and its
//! surroundings, services in them, and hand-made frames.

pub mod frames;
pub mod packet_socket;
pub mod private;
pub mod sandbox;
pub mod service;
pub mod wait;
