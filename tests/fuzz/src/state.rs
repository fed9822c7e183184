//! What is remembered between packets, in a form that the tables and the specification's model share.

use std::collections::BTreeMap;

use portmap_common::flow_state::{
    Echo, EchoKey, FragCacheEntry, FragmentKey4, FragmentKey6, HostFlowKey, NeighbourKey,
};

use crate::reader::mapped;

/// A datagram of either version. IPv6 has no protocol here, because its fragments may differ in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Datagram {
    /// Who sent it, as in [`FragmentKey4::scope`].
    pub scope: u16,
    /// Source address; an IPv4 address as `::ffff:a.b.c.d`.
    pub source: [u8; 16],
    /// Destination address, likewise.
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
        assert_eq!(reserved, 0, "what is reserved is part of the key");
        Self { scope, source: source.bytes, destination: destination.bytes, id, protocol: None }
    }
}

/// Everything that is remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// What first fragments carried.
    pub fragments: BTreeMap<Datagram, FragCacheEntry>,
    /// Who has asked for echoes, by peer and outside identifier.
    pub echoes: BTreeMap<(Peer, u16), Echo>,
    /// When the host has sent something between two ports.
    pub host_flows: BTreeMap<HostFlowKey, u64>,
    /// When containers have asked for neighbours.
    pub neighbours: BTreeMap<NeighbourKey, u64>,
    /// Who has every identifier that is not in `echoes`, towards whomever.
    pub crowd: Option<Echo>,
}

impl State {
    /// Who has asked for the echo with this identifier.
    pub fn echo(&self, peer: Peer, id: u16) -> Option<Echo> {
        self.echoes.get(&(peer, id)).copied().or(self.crowd)
    }
}

/// Who is asked for an echo: whether by IPv6, and the address.
pub type Peer = (bool, [u8; 16]);

/// The parts of an echo's key.
pub fn parts(key: &EchoKey) -> (Peer, u16) {
    assert!(matches!(key.version, 4 | 6), "there are two versions of IP");
    ((key.version == 6, key.peer.bytes), u16::try_from(key.id).expect("an identifier has sixteen bits"))
}
