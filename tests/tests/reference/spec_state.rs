//! State of the model between packets.

use std::{collections::HashMap, net::IpAddr};

use portmap_common::{
    flow_state::{
        CONFLICT_WINDOW, ECHO_LIFETIME, Echo, EchoKey, FRAGMENT_LIFETIME, FragCacheEntry, FragmentKey4,
        FragmentKey6, HostConnection, HostConnectionKey, HostFlow, HostFlowKey, Neighbour, NeighbourKey,
    },
    slot::HOST_SLOT,
    tables::{Address4, Address6},
};

use crate::world::World;

/// Identity of a fragmented datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Datagram {
    /// Its sender, see [`FragmentKey4::scope`].
    pub(crate) scope: u16,
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) id: u32,
    /// For IPv4 only.
    pub(crate) protocol: Option<u8>,
}

/// L4 content of a datagram's first fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CachedContent {
    Ports {
        source: u16,
        destination: u16,
    },
    EchoRequest(u16),
    EchoReply(u16),
    /// First fragments with different contents.
    Conflict,
}

/// Owner of an ICMP identifier. The host has slot and generation 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IdOwner {
    pub(crate) slot: u16,
    pub(crate) generation: u32,
    /// The identifier that it uses itself.
    pub(crate) id: u16,
}

/// A change of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StateChange {
    Fragment(Datagram, u64, CachedContent),
    /// Peer, identifier on the wire, and time and owner of the last request.
    Echo(IpAddr, u16, u64, IdOwner),
    /// Time of the host's last packet in a flow.
    HostFlow(HostFlowKey, u64),
    /// Times at which a container was charged for a neighbour (0: never), and at which the FIB was asked.
    Neighbour(u16, IpAddr, u64, u64),
    HostConnection(HostConnectionKey, HostConnection),
}

/// State of the model.
#[derive(Clone, Debug, Default)]
pub(crate) struct SpecState {
    pub(crate) fragments: HashMap<Datagram, (u64, CachedContent)>,
    pub(crate) echoes: HashMap<(IpAddr, u16), (u64, IdOwner)>,
    pub(crate) host_flows: HashMap<HostFlowKey, u64>,
    pub(crate) neighbours: HashMap<(u16, IpAddr), (u64, u64)>,
    pub(crate) host_connections: HashMap<HostConnectionKey, HostConnection>,
}

impl SpecState {
    pub(crate) fn write(&mut self, change: StateChange) {
        match change {
            StateChange::Fragment(datagram, seen, content) => {
                self.fragments.insert(datagram, (seen, content));
            }
            StateChange::Echo(peer, id, seen, owner) => {
                self.echoes.insert((peer, id), (seen, owner));
            }
            StateChange::HostFlow(key, seen) => {
                self.host_flows.insert(key, seen);
            }
            StateChange::Neighbour(slot, address, seen, checked) => {
                self.neighbours.insert((slot, address), (seen, checked));
            }
            StateChange::HostConnection(key, connection) => {
                self.host_connections.insert(key, connection);
            }
        }
    }

    /// Returns the whole state as changes.
    pub(crate) fn changes(&self) -> impl Iterator<Item = StateChange> {
        let fragments = self
            .fragments
            .iter()
            .map(|(datagram, (seen, content))| StateChange::Fragment(*datagram, *seen, *content));
        let echoes = self
            .echoes
            .iter()
            .map(|((peer, id), (seen, owner))| StateChange::Echo(*peer, *id, *seen, *owner));
        let host_flows = self.host_flows.iter().map(|(key, seen)| StateChange::HostFlow(*key, *seen));
        let neighbours = self
            .neighbours
            .iter()
            .map(|((slot, address), times)| StateChange::Neighbour(*slot, *address, times.0, times.1));
        let connections = self
            .host_connections
            .iter()
            .map(|(key, connection)| StateChange::HostConnection(*key, *connection));
        fragments.chain(echoes).chain(host_flows).chain(neighbours).chain(connections)
    }

    /// Returns the content of the first fragment, if the entry is valid.
    pub(crate) fn content(&self, datagram: &Datagram, now: u64) -> Option<CachedContent> {
        let (seen, content) = self.fragments.get(datagram)?;
        (now - seen <= FRAGMENT_LIFETIME).then_some(*content)
    }

    /// Returns the content of a first fragment within the conflict window.
    pub(crate) fn recent(&self, datagram: &Datagram, now: u64) -> Option<CachedContent> {
        let (seen, content) = self.fragments.get(datagram)?;
        (now - seen <= CONFLICT_WINDOW).then_some(*content)
    }

    /// Returns the owner of an identifier: the host, or a container that still exists.
    pub(crate) fn owner(&self, world: &World, peer: IpAddr, id: u16) -> Option<IdOwner> {
        let (_, owner) = self.echoes.get(&(peer, id))?;
        let is_there =
            owner.slot == HOST_SLOT || world.containers.get(&owner.slot) == Some(&owner.generation);
        is_there.then_some(*owner)
    }

    /// Returns the owner of an identifier, if its last request is recent enough to keep it.
    pub(crate) fn current_owner(&self, world: &World, peer: IpAddr, id: u16, now: u64) -> Option<IdOwner> {
        let (seen, _) = self.echoes.get(&(peer, id))?;
        if now - seen > ECHO_LIFETIME { None } else { self.owner(world, peer, id) }
    }
}

/// A state change as a map entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Fragment4(FragmentKey4, FragCacheEntry),
    Fragment6(FragmentKey6, FragCacheEntry),
    Echo(EchoKey, Echo),
    HostFlow(HostFlowKey, HostFlow),
    Neighbour(NeighbourKey, Neighbour),
    HostConnection(HostConnectionKey, HostConnection),
}

impl From<StateChange> for Entry {
    fn from(change: StateChange) -> Self {
        match change {
            StateChange::Fragment(Datagram { scope, source, destination, id, protocol }, seen, content) => {
                let (kind, source_port, destination_port) = match content {
                    CachedContent::Ports { source, destination } => {
                        (FragCacheEntry::PORTS, source, destination)
                    }
                    CachedContent::EchoRequest(id) => (FragCacheEntry::ECHO_REQUEST, id, 0),
                    CachedContent::EchoReply(id) => (FragCacheEntry::ECHO_REPLY, id, 0),
                    CachedContent::Conflict => (FragCacheEntry::CONFLICT, 0, 0),
                };
                let fragment =
                    FragCacheEntry { seen, kind, source: source_port, destination: destination_port };
                match (source, destination) {
                    (IpAddr::V4(source), IpAddr::V4(destination)) => {
                        let (source, destination) =
                            (Address4::new(source.octets()), Address4::new(destination.octets()));
                        let protocol = protocol.expect("IPv4 fragments have one").into();
                        Self::Fragment4(FragmentKey4 { source, destination, id, scope, protocol }, fragment)
                    }
                    (IpAddr::V6(source), IpAddr::V6(destination)) => {
                        let (source, destination) =
                            (Address6::new(source.octets()), Address6::new(destination.octets()));
                        Self::Fragment6(
                            FragmentKey6 { source, destination, id, scope, reserved: 0 },
                            fragment,
                        )
                    }
                    mixed => panic!("addresses of two versions: {mixed:?}"),
                }
            }
            StateChange::HostFlow(key, seen) => Self::HostFlow(key, HostFlow { seen }),
            StateChange::Neighbour(slot, address, seen, checked) => {
                let (address, version) = in_map(address);
                let key = NeighbourKey { address, slot: slot.into(), version };
                Self::Neighbour(key, Neighbour { seen, checked })
            }
            StateChange::HostConnection(key, connection) => Self::HostConnection(key, connection),
            StateChange::Echo(peer, id, seen, owner) => {
                let (peer, version) = in_map(peer);
                let echo = Echo { generation: owner.generation, slot: owner.slot, id: owner.id, seen };
                let key = EchoKey { peer, id: id.into(), version };
                Self::Echo(key, echo)
            }
        }
    }
}

/// Returns an address in the form of a key, and its IP version.
pub(crate) fn in_map(address: IpAddr) -> (Address6, u32) {
    let (octets, version) = match address {
        IpAddr::V4(address) => (address.to_ipv6_mapped().octets(), 4),
        IpAddr::V6(address) => (address.octets(), 6),
    };
    (Address6::new(octets), version)
}
