//! What the programs remember of earlier packets: first fragments, and identifiers of echo requests.

use portmap_common::{
    flow_state::{Echo, FragCacheEntry},
    slot::HOST_SLOT,
    tables::PortEntry,
};
use portmap_ebpf::Tables as _;

use super::Decider;
use crate::{
    reader::{Behind, Content, Packet, Part},
    state::{Datagram, Peer},
    world::World,
};

/// Nanoseconds for which a fragment cache entry is valid.
const LIFETIME: u64 = 30_000_000_000;

/// Nanoseconds within which a different first fragment is a conflict.
const CONFLICT_WINDOW: u64 = 1_000_000_000;

impl Decider<'_> {
    /// Returns the L4 content of a packet or of its first fragment.
    pub(super) fn content(&mut self, packet: &Packet<'_>, scope: u16) -> Option<Content> {
        let behind = packet.behind()?;
        let key = |id| datagram(packet, behind, id, scope);
        match behind.part {
            Part::Whole => packet.content(behind),
            Part::First(id) => {
                let content = packet.content(behind)?;
                self.first = Some((key(id), self.entry(key(id), content)?));
                Some(content)
            }
            Part::Subsequent(id) => {
                let fragment = self.memory.fragments.get(&key(id))?;
                let FragCacheEntry { seen, kind, source, destination } = *fragment;
                if self.world.now.checked_sub(seen)? > LIFETIME || kind == 3 {
                    return None;
                }
                Some(if kind == FragCacheEntry::PORTS {
                    Content::Ports(source, destination)
                } else {
                    Content::Echo { is_request: kind == FragCacheEntry::ECHO_REQUEST, id: source, at: None }
                })
            }
        }
    }

    /// Returns the entry of a datagram with this first fragment.
    fn entry(&self, datagram: Datagram, content: Content) -> Option<FragCacheEntry> {
        let (kind, source, destination) = match content {
            Content::Ports(source, destination) => (FragCacheEntry::PORTS, source, destination),
            Content::Echo { is_request: true, id, .. } => (FragCacheEntry::ECHO_REQUEST, id, 0),
            Content::Echo { id, .. } => (FragCacheEntry::ECHO_REPLY, id, 0),
            Content::Error { .. } => return None,
        };
        let says = FragCacheEntry { seen: self.world.now, kind, source, destination };
        let before = self.memory.fragments.get(&datagram).copied().filter(|before| {
            self.world.now.checked_sub(before.seen).is_some_and(|age| age <= CONFLICT_WINDOW)
        });
        let is_same = |before: FragCacheEntry| FragCacheEntry { seen: says.seen, ..before } == says;
        Some(match before {
            Some(before) if before.kind == 3 => before,
            Some(before) if !is_same(before) => {
                FragCacheEntry { seen: says.seen, kind: 3, source: 0, destination: 0 }
            }
            _ => says,
        })
    }

    /// Returns the container that owns an identifier, and its own identifier.
    pub(super) fn id_owner(&self, peer: Peer, id: u16) -> Option<(PortEntry, u16)> {
        let echo = self.memory.echo(peer, id)?;
        is_live(self.world, echo).then(|| (self.world.endpoint(echo.slot).entry(echo.slot), echo.id))
    }
}

/// Returns the key of a fragment's datagram.
pub fn datagram(packet: &Packet<'_>, behind: Behind, id: u32, scope: u16) -> Datagram {
    let Packet { source, destination, .. } = *packet;
    Datagram { scope, source, destination, id, protocol: (!packet.is_v6).then_some(behind.protocol) }
}

/// Returns whether the owner of an identifier still exists.
pub fn is_live(world: &World, echo: Echo) -> bool {
    let endpoint = world.endpoint(echo.slot);
    echo.slot != HOST_SLOT && endpoint.host_ifindex != 0 && endpoint.generation == echo.generation
}
