//! What a hook may look up.

use portmap_common::tables::{Config, Endpoint, PortEntry};

/// The maps, or a stand-in for them.
pub trait Tables {
    /// The owner of `port`.
    fn port(&self, port: u16) -> PortEntry;

    /// The container in `slot`; all zero if there is none.
    fn endpoint(&self, slot: u16) -> Endpoint;

    /// The host's addresses.
    fn config(&self) -> Config;
}
