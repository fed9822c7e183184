//! State between packets, in a form that the tables and the specification's model share.

use std::collections::{BTreeMap, BTreeSet};

use portmap_common::flow_state::{
    Echo, EchoKey, FragCacheEntry, FragmentKey4, FragmentKey6, HostConnection, HostConnectionKey,
    HostFlowKey, Neighbour, NeighbourKey,
};

use crate::reader::mapped;

/// A datagram of either IP version. IPv6 has no protocol here, because the fragments of one datagram may
/// differ in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Datagram {
    /// Its sender, as in [`FragmentKey4::scope`].
    pub scope: u16,
    /// Source address; an IPv4 address as `::ffff:a.b.c.d`.
    pub source: [u8; 16],
    /// Destination address, in the same form.
    pub destination: [u8; 16],
    /// Identification.
    pub id: u32,
    /// IPv4 protocol.
    pub protocol: Option<u8>,
}

impl From<&FragmentKey4> for Datagram {
    fn from(key: &FragmentKey4) -> Self {
        let FragmentKey4 { source, destination, id, scope, protocol } = *key;
        let protocol = u8::try_from(protocol).expect("a protocol has eight bits");
        Self {
            scope,
            source: mapped(source.bytes),
            destination: mapped(destination.bytes),
            id,
            protocol: Some(protocol),
        }
    }
}

impl From<&FragmentKey6> for Datagram {
    fn from(key: &FragmentKey6) -> Self {
        let FragmentKey6 { source, destination, id, scope, reserved } = *key;
        assert_eq!(reserved, 0, "reserved fields are part of the key");
        Self { scope, source: source.bytes, destination: destination.bytes, id, protocol: None }
    }
}

/// The state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Fragment cache.
    pub fragments: BTreeMap<Datagram, FragCacheEntry>,
    /// Owners of identifiers by peer and identifier on the wire.
    pub echoes: BTreeMap<(Peer, u16), Echo>,
    /// Times of the host's last packets by flow.
    pub host_flows: BTreeMap<HostFlowKey, u64>,
    /// Times at which containers were charged for neighbours, and at which the FIB was asked.
    pub neighbours: BTreeMap<NeighbourKey, Neighbour>,
    /// Connections of the host's.
    pub host_connections: BTreeMap<HostConnectionKey, HostConnection>,
    /// Ports with the flag that there are such connections.
    pub flagged: BTreeSet<u16>,
    /// Owner of all identifiers that are not in `echoes`, towards all peers.
    pub default_owner: Option<Echo>,
}

impl State {
    /// Returns the owner of an identifier.
    pub fn echo(&self, peer: Peer, id: u16) -> Option<Echo> {
        self.echoes.get(&(peer, id)).copied().or(self.default_owner)
    }
}

/// A peer: whether it is IPv6, and the address.
pub type Peer = (bool, [u8; 16]);

/// Returns the parts of a key.
pub fn parts(key: &EchoKey) -> (Peer, u16) {
    assert!(matches!(key.version, 4 | 6), "there are two versions of IP");
    ((key.version == 6, key.peer.bytes), u16::try_from(key.id).expect("an identifier has sixteen bits"))
}
