//! Sections "Routes" and "Neighbours": where a container's packet leaves, and what that costs.

use portmap_common::{
    flow_state::{Neighbour, NeighbourKey},
    tables::{Address6, Config},
};
use portmap_ebpf::{fib::FibAnswer, verdict::NextHop};

use super::Decider;
use crate::{
    expected::{Exit, Question},
    reader::{Content, Packet, mapped},
    tcp::Segment,
    values::UPLINK,
    world::OTHER_BROADCAST,
};

/// Nanoseconds for which the FIB is not asked again.
const ANSWER_LIFETIME: u64 = 10_000_000;

/// Nanoseconds for which a charged neighbour is not new.
const CHARGE_LIFETIME: u64 = 60_000_000_000;

/// A route, and what the neighbour policer needs of it.
pub(super) struct Route {
    pub(super) exit: Exit,
    /// Whether the FIB was asked.
    was_asked: bool,
    /// Whether the kernel must resolve the destination itself.
    resolves: bool,
}

impl Decider<'_> {
    /// Returns the route of a packet to a unicast destination, if there is one.
    pub(super) fn route(&mut self, packet: &Packet<'_>, slot: u16, content: Content) -> Option<Route> {
        if !is_unicast(&self.config, packet) {
            return None;
        }
        let known = |next_hop| {
            let exit = Exit { ifindex: UPLINK, next_hop };
            Some(Route { exit, was_asked: false, resolves: false })
        };
        if self.is_direct(packet) {
            let gateway = self.gateway(packet);
            if !is_in_network(&self.config, packet) {
                return known(hop(packet.is_v6, gateway?));
            }
            let key = neighbour(packet, slot);
            let asked = self.memory.neighbours.get(&key).map(|entry| entry.checked);
            let is_answered = asked.is_some_and(|asked| self.world.now - asked <= ANSWER_LIFETIME);
            if gateway == Some(packet.destination) || is_answered && !opens(packet, content) {
                return known(hop(packet.is_v6, packet.destination));
            }
        }
        self.question = Some(question(packet, content));
        let FibAnswer { outcome, ifindex, next_hop } = self.world.answer(packet.is_v6, packet.destination);
        let is_resolved = match outcome {
            FibAnswer::RESOLVED => true,
            FibAnswer::UNRESOLVED => false,
            _ => return None,
        };
        Some(Route {
            exit: Exit { ifindex, next_hop: if is_resolved { next_hop } else { NextHop::KERNEL } },
            was_asked: true,
            resolves: !is_resolved && next_hop == hop(packet.is_v6, packet.destination),
        })
    }

    /// Returns whether the sender has used too many neighbours for this route; if not, records the charge,
    /// and that the FIB was asked.
    pub(super) fn is_one_too_many(&mut self, packet: &Packet<'_>, slot: u16, route: &Route) -> bool {
        let key = neighbour(packet, slot);
        let before = self.memory.neighbours.get(&key).copied().unwrap_or_default();
        let now = self.world.now;
        let is_charged = before.seen != 0 && now - before.seen <= CHARGE_LIFETIME;
        let is_new = route.resolves && !is_charged;
        if is_new && self.world.is_neighbour_limited(slot) {
            return true;
        }
        // Where the version is not direct the FIB is asked for every packet.
        if is_new || route.was_asked && self.is_direct(packet) {
            let seen = if is_new { now } else { before.seen };
            self.neighbour = Some((key, Neighbour { seen, checked: now }));
        }
        false
    }

    fn is_direct(&self, packet: &Packet<'_>) -> bool {
        let Config { direct4, direct6, .. } = self.config;
        (if packet.is_v6 { direct6 } else { direct4 }) == 1
    }

    fn gateway(&self, packet: &Packet<'_>) -> Option<[u8; 16]> {
        let Config { gateway, gateway6, .. } = self.config;
        let (gateway, none) =
            if packet.is_v6 { (gateway6.bytes, [0; 16]) } else { (mapped(gateway.bytes), mapped([0; 4])) };
        (gateway != none).then_some(gateway)
    }
}

fn neighbour(packet: &Packet<'_>, slot: u16) -> NeighbourKey {
    let version = if packet.is_v6 { 6 } else { 4 };
    NeighbourKey { address: Address6::new(packet.destination), slot: slot.into(), version }
}

/// Returns the question about a packet.
fn question(packet: &Packet<'_>, content: Content) -> Question {
    let Packet { is_v6, source, destination, .. } = *packet;
    let protocol = packet.behind().map_or(0, |behind| behind.protocol);
    let ports = if let Content::Ports(from, to) = content { (from, to) } else { (0, 0) };
    Question { is_v6, source, destination, protocol, ports }
}

fn opens(packet: &Packet<'_>, content: Content) -> bool {
    let segment = packet.behind().and_then(|behind| Segment::of(packet, behind));
    matches!(content, Content::Ports(..)) && segment.is_some_and(Segment::opens)
}

fn hop(is_v6: bool, address: [u8; 16]) -> NextHop {
    let [.., a, b, c, d] = address;
    if is_v6 { NextHop::v6(address) } else { NextHop::v4([a, b, c, d]) }
}

/// Returns the number of addresses in the network of the primary IPv4 address.
fn size4(config: &Config) -> u64 {
    // In 64 bits, because a /0 network has more addresses than 32 bits can count.
    1 << (32 - u32::from_be_bytes(config.netmask.bytes).count_ones())
}

/// Returns whether a packet's destination is in the network of the primary address.
fn is_in_network(config: &Config, packet: &Packet<'_>) -> bool {
    let to = u128::from_be_bytes(packet.destination);
    if packet.is_v6 {
        let prefix = u128::from_be_bytes(config.netmask6.bytes).count_ones();
        let shared = u128::from_be_bytes(config.host_ip6.bytes);
        return prefix == 0 || (to ^ shared) >> (128 - prefix) == 0;
    }
    let [.., a, b, c, d] = packet.destination;
    let number = |bytes| u64::from(u32::from_be_bytes(bytes)) / size4(config);
    number([a, b, c, d]) == number(config.host_ip.bytes)
}

/// Returns whether a packet's destination is a unicast address.
fn is_unicast(config: &Config, packet: &Packet<'_>) -> bool {
    let to = u128::from_be_bytes(packet.destination);
    if packet.is_v6 {
        let is_in = |network: u128, prefix: u32| (to ^ network) >> (128 - prefix) == 0;
        return !(to == 0 || is_in(0xff << 120, 8) || is_in(0xfe80 << 112, 10) || is_in(0xffff << 32, 96));
    }
    let [.., a, b, c, d] = packet.destination;
    if a == 0 || a >= 224 || config.broadcasts != 0 && [a, b, c, d] == OTHER_BROADCAST {
        return false;
    }
    let (size, place) = (size4(config), u64::from(u32::from_be_bytes([a, b, c, d])) % size4(config));
    !(is_in_network(config, packet) && size > 2 && (place == 0 || place == size - 1))
}
