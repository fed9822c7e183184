//! What the model remembers between packets.

use std::{collections::HashMap, net::IpAddr};

use portmap_common::{
    flow_state::{
        CONFLICT_WINDOW, ECHO_LIFETIME, Echo, EchoKey, FRAGMENT_LIFETIME, FragCacheEntry, FragmentKey4,
        FragmentKey6, HostFlow, HostFlowKey, Neighbour, NeighbourKey,
    },
    slot::HOST_SLOT,
    tables::{Address4, Address6},
};

use crate::world::World;

/// What all fragments of one datagram have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Datagram {
    /// Who sent it, see [`FragmentKey4::scope`].
    pub(crate) scope: u16,
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) id: u32,
    /// For IPv4 only.
    pub(crate) protocol: Option<u8>,
}

/// What the first fragment of a datagram carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carried {
    Ports {
        source: u16,
        destination: u16,
    },
    EchoRequest(u16),
    EchoReply(u16),
    /// First fragments said different things.
    Contradicted,
}

/// Who sent an echo request; the host has slot and generation 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asker {
    pub(crate) slot: u16,
    pub(crate) generation: u32,
    /// The identifier that it used.
    pub(crate) id: u16,
}

/// Something to be remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    Fragment(Datagram, u64, Carried),
    /// Pinged address and identifier in the answer, and when who has asked last.
    Echo(IpAddr, u16, u64, Asker),
    /// The host has sent something at that time.
    HostFlow(HostFlowKey, u64),
    /// A container has asked for a neighbour at that time.
    Neighbour(u16, IpAddr, u64),
}

/// The fragments and echo requests of the past.
#[derive(Clone, Debug, Default)]
pub(crate) struct SpecState {
    pub(crate) fragments: HashMap<Datagram, (u64, Carried)>,
    pub(crate) echoes: HashMap<(IpAddr, u16), (u64, Asker)>,
    pub(crate) host_flows: HashMap<HostFlowKey, u64>,
    pub(crate) neighbours: HashMap<(u16, IpAddr), u64>,
}

impl SpecState {
    pub(crate) fn write(&mut self, note: Note) {
        match note {
            Note::Fragment(datagram, seen, carried) => {
                self.fragments.insert(datagram, (seen, carried));
            }
            Note::Echo(peer, id, seen, asker) => {
                self.echoes.insert((peer, id), (seen, asker));
            }
            Note::HostFlow(key, seen) => {
                self.host_flows.insert(key, seen);
            }
            Note::Neighbour(slot, address, seen) => {
                self.neighbours.insert((slot, address), seen);
            }
        }
    }

    /// Everything that is remembered.
    pub(crate) fn notes(&self) -> impl Iterator<Item = Note> {
        let fragments = self
            .fragments
            .iter()
            .map(|(datagram, (seen, carried))| Note::Fragment(*datagram, *seen, *carried));
        let echoes =
            self.echoes.iter().map(|((peer, id), (seen, asker))| Note::Echo(*peer, *id, *seen, *asker));
        let host_flows = self.host_flows.iter().map(|(key, seen)| Note::HostFlow(*key, *seen));
        let neighbours =
            self.neighbours.iter().map(|((slot, address), seen)| Note::Neighbour(*slot, *address, *seen));
        fragments.chain(echoes).chain(host_flows).chain(neighbours)
    }

    /// What the first fragment carried, if it is known and not too old.
    pub(crate) fn carried(&self, datagram: &Datagram, now: u64) -> Option<Carried> {
        let (seen, carried) = self.fragments.get(datagram)?;
        (now - seen <= FRAGMENT_LIFETIME).then_some(*carried)
    }

    /// What a first fragment carried that is so young that another one is of the same datagram.
    pub(crate) fn just_carried(&self, datagram: &Datagram, now: u64) -> Option<Carried> {
        let (seen, carried) = self.fragments.get(datagram)?;
        (now - seen <= CONFLICT_WINDOW).then_some(*carried)
    }

    /// The host, or the container that still exists, to which an answer with this identifier belongs.
    pub(crate) fn asker(&self, world: &World, peer: IpAddr, id: u16) -> Option<Asker> {
        let (_, asker) = self.echoes.get(&(peer, id))?;
        let is_there =
            asker.slot == HOST_SLOT || world.containers.get(&asker.slot) == Some(&asker.generation);
        is_there.then_some(*asker)
    }

    /// The same, if it has asked so lately that nobody else gets the identifier.
    pub(crate) fn keeper(&self, world: &World, peer: IpAddr, id: u16, now: u64) -> Option<Asker> {
        let (seen, _) = self.echoes.get(&(peer, id))?;
        if now - seen > ECHO_LIFETIME { None } else { self.asker(world, peer, id) }
    }
}

/// A note as it lies in the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Fragment4(FragmentKey4, FragCacheEntry),
    Fragment6(FragmentKey6, FragCacheEntry),
    Echo(EchoKey, Echo),
    HostFlow(HostFlowKey, HostFlow),
    Neighbour(NeighbourKey, Neighbour),
}

impl From<Note> for Entry {
    fn from(note: Note) -> Self {
        match note {
            Note::Fragment(Datagram { scope, source, destination, id, protocol }, seen, carried) => {
                let (kind, source_port, destination_port) = match carried {
                    Carried::Ports { source, destination } => (FragCacheEntry::PORTS, source, destination),
                    Carried::EchoRequest(id) => (FragCacheEntry::ECHO_REQUEST, id, 0),
                    Carried::EchoReply(id) => (FragCacheEntry::ECHO_REPLY, id, 0),
                    Carried::Contradicted => (FragCacheEntry::CONFLICT, 0, 0),
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
            Note::HostFlow(key, seen) => Self::HostFlow(key, HostFlow { seen }),
            Note::Neighbour(slot, address, seen) => {
                let (address, version) = in_map(address);
                let key = NeighbourKey { address, slot: slot.into(), version };
                Self::Neighbour(key, Neighbour { seen })
            }
            Note::Echo(peer, id, seen, asker) => {
                let (peer, version) = in_map(peer);
                let echo = Echo { generation: asker.generation, slot: asker.slot, id: asker.id, seen };
                let key = EchoKey { peer, id: id.into(), version };
                Self::Echo(key, echo)
            }
        }
    }
}

/// An address as a key has it, and its version.
fn in_map(address: IpAddr) -> (Address6, u32) {
    let (octets, version) = match address {
        IpAddr::V4(address) => (address.to_ipv6_mapped().octets(), 4),
        IpAddr::V6(address) => (address.octets(), 6),
    };
    (Address6::new(octets), version)
}
