//! The registry: the only owner of the containers' entries, of the pool of ephemeral ports, and of the port
//! map.
//!
//! A writer changes the entries under the registry's lock and publishes a snapshot. Readers use the snapshot,
//! so they never wait for a writer.

mod admission;
mod changes;
mod entries;
mod ephemeral;
mod port_map;
mod refusal;
mod snapshot;
mod static_ports;

pub(super) use self::{
    admission::Admission,
    entries::{Published, Registry},
    ephemeral::drain_end,
    refusal::Refusal,
    snapshot::{Entry, Life, Snapshot},
    static_ports::{StaticPortGrant, StaticPortRequest},
};
