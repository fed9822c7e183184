//! Section "Connections of the host": packets from and to containers' ports that are the host's.

use portmap_common::{
    flow_state::{HostConnection, HostConnectionKey},
    slot::HOST_SLOT,
    tables::Address6,
};

use super::Decider;
use crate::{
    reader::{Behind, Content, Inner, Packet, Part},
    tcp::Segment,
};

/// Nanoseconds for which a TCP connection is remembered: five days.
const LONG: u64 = 5 * 24 * 3600 * 1_000_000_000;

/// Nanoseconds for which all others are remembered.
const SHORT: u64 = 180_000_000_000;

/// Nanoseconds by which a packet must prolong a connection to be recorded.
const STEP: u64 = 1_000_000_000;

/// Direction of a packet, seen from this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// From outside.
    In,
    /// To the outside.
    Out,
}

/// Returns the connection of a packet with ports, or of an error about one.
pub(super) fn key(packet: &Packet<'_>, content: Content, way: Direction) -> Option<HostConnectionKey> {
    // The inner packet of an error went the other way.
    let (from, to, is_outward) = match content {
        Content::Ports(from, to) => ((packet.source, from), (packet.destination, to), way == Direction::Out),
        Content::Error { source, destination, quote: Inner::Ports(from, to), .. } => {
            ((source, from), (destination, to), way == Direction::In)
        }
        _ => return None,
    };
    let ((local, local_port), (peer, peer_port)) = if is_outward { (from, to) } else { (to, from) };
    Some(HostConnectionKey {
        peer: Address6::new(peer),
        local: Address6::new(local),
        peer_port,
        local_port,
        version: if packet.is_v6 { 6 } else { 4 },
    })
}

impl Decider<'_> {
    /// Returns a connection that has not expired.
    fn connection(&self, key: &HostConnectionKey) -> Option<HostConnection> {
        self.memory.host_connections.get(key).copied().filter(|known| self.world.now <= known.until)
    }

    /// Returns whether a packet is of a connection of the host's.
    pub(super) fn is_hosts(&self, packet: &Packet<'_>, content: Content, way: Direction) -> bool {
        key(packet, content, way).is_some_and(|key| {
            self.memory.flagged.contains(&key.local_port) && self.connection(&key).is_some()
        })
    }

    /// Records that a peer aborts a connection of the host's with this packet.
    pub(super) fn note_abort(&mut self, packet: &Packet<'_>, content: Content) {
        let segment = packet.behind().and_then(|behind| Segment::of(packet, behind));
        if matches!(content, Content::Ports(..)) && segment.is_some_and(Segment::aborts) {
            self.host_connection = key(packet, content, Direction::In)
                .map(|key| (key, HostConnection { until: self.world.now + SHORT, closing: 1, reserved: 0 }));
        }
    }

    /// Records what containers must not receive: replies to a packet that the host sends or forwards.
    pub(super) fn track(&mut self) -> Option<()> {
        let packet = self.packet()?;
        if !self.is_shared(packet.is_v6, packet.source) {
            return None;
        }
        match self.content(&packet, HOST_SLOT)? {
            Content::Echo { is_request: true, id, at: Some(_) } => {
                self.reserves = Some(((packet.is_v6, packet.destination), id));
            }
            content @ Content::Ports(from, _) if self.owner(from).is_some() => {
                self.track_connection(&packet, key(&packet, content, Direction::Out)?);
            }
            _ => {}
        }
        Some(())
    }

    fn track_connection(&mut self, packet: &Packet<'_>, key: HostConnectionKey) {
        let now = self.world.now;
        let segment = packet.behind().and_then(|behind| Segment::of(packet, behind));
        let before = self.connection(&key);
        if before.is_none() && packet.behind().is_some_and(|behind| answers(packet, behind)) {
            return;
        }
        let was_ended = before.is_some_and(|before| before.closing == 1);
        let is_ended = match segment {
            Some(segment) => segment.ends() || was_ended && !segment.opens(),
            None => was_ended,
        };
        let until = now + if segment.is_some() && !is_ended { LONG } else { SHORT };
        let closing = u32::from(is_ended);
        let connection = match before {
            Some(before) if before.closing == closing => {
                let is_recorded =
                    self.memory.flagged.contains(&key.local_port) && until <= before.until + STEP;
                // Packets of other protocols, and fragments, do not shorten it.
                let until = if is_recorded { before.until } else { until.max(before.until) };
                HostConnection { until, ..before }
            }
            _ => HostConnection { until, closing, reserved: 0 },
        };
        self.host_connection = Some((key, connection));
    }
}

/// Returns whether a packet accepts or refuses a connection.
fn answers(packet: &Packet<'_>, behind: Behind) -> bool {
    if matches!(behind.part, Part::Subsequent(_)) {
        return false;
    }
    let byte =
        |needed: usize, at: usize| packet.bytes.get(behind.at..behind.at + needed).map(|header| header[at]);
    match behind.protocol {
        6 => byte(16, 13).is_some_and(|flags| flags & 0x04 != 0 || flags & 0x12 == 0x12),
        132 => byte(16, 12).is_some_and(|chunk| [2, 6, 14].contains(&chunk)),
        33 => byte(12, 8).is_some_and(|kind| [1, 7].contains(&(kind >> 1 & 0xf))),
        _ => false,
    }
}
