//! The expected verdict on a frame, from `docs/datapath.md`, "Verdicts by hook", row by row, without the
//! reasons.

use portmap_common::{
    flow_state::{Echo, FragCacheEntry, HostFlowKey, NeighbourKey},
    hook_point::HookPoint,
    marks::HANDLED_MARK,
    slot::HOST_SLOT,
    tables::{Address6, Config, PortEntry},
};
use portmap_ebpf::{
    Tables as _,
    verdict::{IcmpIdRewrite, NextHop, Origin},
};

use crate::{
    expected::{Delivery, EchoRequest, Expected, Outcome},
    hook_ctx::HookCtx,
    reader::{self, Behind, Content, Inner, Packet, Part, is_loopback, is_one, mapped},
    state::{Datagram, Peer, State},
    world::{OTHER_BROADCAST, World},
};

/// Nanoseconds for which a fragment cache entry is valid.
const LIFETIME: u64 = 30_000_000_000;

/// Nanoseconds within which a different first fragment is a conflict.
const CONFLICT_WINDOW: u64 = 1_000_000_000;

/// Nanoseconds for which a container may reply to the host.
const FLOW_LIFETIME: u64 = 180_000_000_000;

/// Nanoseconds for which a used neighbour is not new.
const NEIGHBOUR_LIFETIME: u64 = 60_000_000_000;

/// Returns the outcome that the specification demands.
pub fn of(ctx: &HookCtx, frame: &[u8], world: &World, memory: &State) -> Outcome {
    let mut decider = Decider {
        frame,
        world,
        config: *world.config(),
        memory,
        first: None,
        host_flow: None,
        charges: None,
    };
    let mut reserves = None;
    let expected = match ctx.hook {
        HookPoint::UplinkIngress => decider.uplink(ctx.vlan_tag).unwrap_or(Expected::Left),
        HookPoint::VethIngress(slot) => decider.veth(ctx, slot).unwrap_or(Expected::Dropped(slot)),
        HookPoint::HostLoIngress if ctx.mark == HANDLED_MARK => Expected::AlreadyHandled,
        HookPoint::HostLoIngress => decider.host_lo(ctx.vlan_tag).unwrap_or(Expected::Left),
        HookPoint::ContainerLoEgress => decider.container_lo(ctx.vlan_tag),
        HookPoint::ContainerEth0Ingress => container_eth0(frame, ctx.vlan_tag),
        HookPoint::UplinkEgress => {
            reserves = decider.reserves(ctx);
            decider.uplink_egress(ctx)
        }
    };
    // A dropped packet is not cached.
    let first = if matches!(expected, Expected::Dropped(_)) { None } else { decider.first };
    Outcome { expected, first, reserves, host_flow: decider.host_flow, charges: decider.charges }
}

fn container_eth0(frame: &[u8], tag: Option<u16>) -> Expected {
    let packet = if tag.is_none() { reader::packet(frame) } else { None };
    if packet.is_some_and(|packet| is_one(packet.source) || is_one(packet.destination)) {
        Expected::Loopback
    } else {
        Expected::AlreadyHandled
    }
}

struct Decider<'a> {
    frame: &'a [u8],
    world: &'a World,
    config: Config,
    memory: &'a State,
    first: Option<(Datagram, FragCacheEntry)>,
    host_flow: Option<HostFlowKey>,
    charges: Option<NeighbourKey>,
}

impl<'a> Decider<'a> {
    /// Parses a packet and returns it with the host's shared address of its IP version, if the host has one.
    fn packet(&self) -> Option<(Packet<'a>, [u8; 16])> {
        let packet = reader::packet(self.frame)?;
        let shared =
            if packet.is_v6 { self.config.host_ip6.bytes } else { mapped(self.config.host_ip.bytes) };
        (shared != [0; 16]).then_some((packet, shared))
    }

    /// Returns the L4 content of a packet or of its first fragment.
    fn content(&mut self, packet: &Packet<'_>, scope: u16) -> Option<Content> {
        let behind = packet.behind()?;
        let key = |id| datagram(packet, behind, id, scope);
        match behind.part {
            Part::Whole => packet.content(behind),
            Part::First(id) => {
                let content = packet.content(behind)?;
                let (kind, source, destination) = match content {
                    Content::Ports(source, destination) => (FragCacheEntry::PORTS, source, destination),
                    Content::Echo { is_request: true, id, .. } => (FragCacheEntry::ECHO_REQUEST, id, 0),
                    Content::Echo { id, .. } => (FragCacheEntry::ECHO_REPLY, id, 0),
                    Content::Error { .. } => return None,
                };
                let says = FragCacheEntry { seen: self.world.now, kind, source, destination };
                let before = self.memory.fragments.get(&key(id)).copied().filter(|before| {
                    self.world.now.checked_sub(before.seen).is_some_and(|age| age <= CONFLICT_WINDOW)
                });
                let contradicted = FragCacheEntry { seen: says.seen, kind: 3, source: 0, destination: 0 };
                let is_same = |before: FragCacheEntry| FragCacheEntry { seen: says.seen, ..before } == says;
                self.first = Some((
                    key(id),
                    match before {
                        Some(before) if before.kind == 3 => before,
                        Some(before) if !is_same(before) => contradicted,
                        _ => says,
                    },
                ));
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

    fn owner(&self, port: u16) -> Option<PortEntry> {
        let owner = self.world.port(port);
        (owner.slot != HOST_SLOT).then_some(owner)
    }

    /// Returns the container that owns an identifier, and its own identifier.
    fn id_owner(&self, peer: Peer, id: u16) -> Option<(PortEntry, u16)> {
        let echo = self.memory.echo(peer, id)?;
        is_live(self.world, echo).then(|| (self.world.endpoint(echo.slot).entry(echo.slot), echo.id))
    }

    fn uplink(&mut self, tag: Option<u16>) -> Option<Expected> {
        if tag.is_some_and(|tag| tag % 4096 != 0) {
            return None;
        }
        let (packet, shared) = self.packet()?;
        if is_loopback(packet.destination) {
            return Some(Expected::Dropped(HOST_SLOT));
        }
        if packet.destination != shared {
            return None;
        }
        let is_v4_mapped = packet.is_v6 && packet.source.starts_with(&mapped([0; 4])[..12]);
        if packet.source == shared || is_loopback(packet.source) || is_v4_mapped {
            return Some(Expected::Dropped(HOST_SLOT));
        }
        let offset = |at: usize| Packet::START + at;
        let (owner, rewrite) = match self.content(&packet, HOST_SLOT)? {
            Content::Echo { is_request: true, .. } => return None,
            Content::Echo { id, at, .. } => {
                let (owner, own) = self.id_owner((packet.is_v6, packet.source), id)?;
                (owner, at.map_or(IcmpIdRewrite::NONE, |at| change(offset(at), id, own)))
            }
            Content::Error { source, destination, .. }
                if source != shared || destination == shared || is_loopback(destination) =>
            {
                return None;
            }
            Content::Ports(_, port) | Content::Error { quote: Inner::Ports(port, _), .. } => {
                (self.owner(port)?, IcmpIdRewrite::NONE)
            }
            Content::Error { quote: Inner::Request(id, at), destination, .. } => {
                let (owner, own) = self.id_owner((packet.is_v6, destination), id)?;
                (owner, change(offset(at), id, own))
            }
        };
        let delivery = Delivery { origin: Origin::Outside, owner, by_loopback: false, rewrite };
        self.frame.starts_with(&self.config.mac.octets()).then_some(Expected::Container(delivery))
    }

    fn veth(&mut self, ctx: &HookCtx, slot: u16) -> Option<Expected> {
        let (to, from): ([u8; 6], [u8; 6]) =
            (*self.frame.first_chunk()?, *self.frame.get(6..)?.first_chunk()?);
        let [high, low] = slot.to_be_bytes();
        if ctx.vlan_tag.is_some()
            || (from != self.config.mac.octets() && from != [0x02, 0x50, 0x4d, 0, high, low])
            || to[0] % 2 != 0
        {
            return None;
        }
        let (packet, shared) = self.packet()?;
        let is_local = packet.destination == shared || is_loopback(packet.destination);
        let is_allowed_source = |address| address == shared || (is_local && is_loopback(address));
        if !is_allowed_source(packet.source) {
            return None;
        }
        let is_own = |port| self.world.port(port).slot == slot;
        let content = self.content(&packet, slot)?;
        let target = match content {
            Content::Ports(source, destination) if is_own(source) => destination,
            Content::Echo { is_request: true, id, at } if !is_local => {
                let next_hop = next_hop(&self.config, &packet)?;
                if self.world.exceeds_limit(slot, false) || self.is_one_too_many(&packet, slot) {
                    return None;
                }
                let generation = self.world.endpoint(slot).generation;
                let owner = Echo { generation, slot, id, seen: self.world.now };
                // A subsequent fragment has the receiver and the identifier of the first one.
                let Some(at) = at else { return Some(Expected::Outside(slot, next_hop)) };
                let (peer, message) = ((packet.is_v6, packet.destination), Packet::START + at);
                return Some(Expected::Request(EchoRequest { owner, peer, next_hop, message }));
            }
            Content::Error { by_router: false, source, destination, quote: Inner::Ports(from, to) }
                if is_allowed_source(destination) && source == packet.destination && is_own(to) =>
            {
                from
            }
            _ => return None,
        };
        if is_local {
            let is_private = |slot| self.world.endpoint(slot).flags == 4;
            let owner = self.owner(target);
            if is_by_loopback(&packet)
                && (is_private(slot) || owner.is_some_and(|owner| is_private(owner.slot)))
            {
                return None;
            }
            if owner.is_none() && self.is_refused(&packet, slot, content) {
                return None;
            }
        }
        if self.world.exceeds_limit(slot, is_local) {
            return None;
        }
        if !is_local {
            let next_hop = next_hop(&self.config, &packet)?;
            return (!self.is_one_too_many(&packet, slot)).then_some(Expected::Outside(slot, next_hop));
        }
        Some(match self.owner(target) {
            None => Expected::Host(slot),
            Some(owner) => Expected::Container(Delivery {
                origin: Origin::Container(slot),
                owner,
                by_loopback: is_one(packet.source) || is_one(packet.destination),
                rewrite: IcmpIdRewrite::NONE,
            }),
        })
    }

    /// Returns whether a packet exceeds the neighbour policer; if not, records the charge.
    fn is_one_too_many(&mut self, packet: &Packet<'_>, slot: u16) -> bool {
        let Config { gateway, gateway6, .. } = self.config;
        let gateway = if packet.is_v6 { gateway6.bytes } else { mapped(gateway.bytes) };
        let hop = match next_hop(&self.config, packet) {
            Some(NextHop::V4(hop)) => mapped(hop),
            Some(NextHop::V6(hop)) => hop,
            None => return false,
        };
        let key = NeighbourKey {
            address: Address6::new(packet.destination),
            slot: slot.into(),
            version: if packet.is_v6 { 6 } else { 4 },
        };
        let charged = self.memory.neighbours.get(&key);
        let is_known = charged.is_some_and(|charged| self.world.now - charged <= NEIGHBOUR_LIFETIME);
        if hop == gateway || is_known {
            return false;
        }
        let is_enough = self.world.is_neighbour_limited(slot);
        if !is_enough {
            self.charges = Some(key);
        }
        is_enough
    }

    /// Returns protocol and offset of the transport header in a packet with ports.
    fn transport(packet: &Packet<'_>, content: Content) -> Option<(u16, u16, u8, usize)> {
        let Content::Ports(from, to) = content else { return None };
        let behind = packet.behind()?;
        let is_there = !matches!(behind.part, Part::Subsequent(_));
        is_there.then_some((from, to, behind.protocol, behind.at))
    }

    /// Returns whether a container must not send this packet to the host's port.
    fn is_refused(&self, packet: &Packet<'_>, slot: u16, content: Content) -> bool {
        let Some((from, to, protocol, at)) = Self::transport(packet, content) else { return false };
        let Config { listener, reach, .. } = self.config;
        let leads_there = packet.is_v6 || packet.destination == mapped([127, 0, 0, 1]);
        if protocol == 6 && u32::from(to) == listener.port && leads_there && to != 0 {
            return true;
        }
        if reach == 0 || self.world.is_host_port_allowed(to) {
            return false;
        }
        if protocol == 6 {
            // Flags are the fourteenth byte of sixteen; SYN is 2, ACK is 16.
            return packet.bytes.get(at..at + 16).is_none_or(|header| header[13] & 0x12 == 0x02);
        }
        let key = flow(packet, slot, (from, to), protocol);
        let seen = self.memory.host_flows.get(&key);
        seen.is_none_or(|seen| self.world.now - seen > FLOW_LIFETIME)
    }

    /// Returns the destination port of a local packet on a loopback device.
    fn target_on_loopback(&mut self, scope: u16) -> Option<(Packet<'a>, u16, Content)> {
        let (packet, shared) = self.packet()?;
        let is_local = |address| address == shared || is_loopback(address);
        if !is_local(packet.destination) {
            return None;
        }
        let content = self.content(&packet, scope)?;
        match content {
            Content::Ports(_, port) => Some((packet, port, content)),
            Content::Error { source, quote: Inner::Ports(port, _), .. } if is_local(source) => {
                Some((packet, port, content))
            }
            Content::Echo { .. } | Content::Error { .. } => None,
        }
    }

    fn host_lo(&mut self, tag: Option<u16>) -> Option<Expected> {
        if tag.is_some() {
            return None;
        }
        let (packet, port, content) = self.target_on_loopback(HOST_SLOT)?;
        let owner = self.owner(port)?;
        if is_by_loopback(&packet) && self.world.endpoint(owner.slot).flags == 4 {
            return None;
        }
        if let Some((from, to, protocol, _)) = Self::transport(&packet, content)
            && protocol != 6
            && self.config.reach != 0
            && !self.world.is_host_port_allowed(from)
        {
            self.host_flow = Some(flow(&packet, owner.slot, (to, from), protocol));
        }
        Some(Expected::Container(Delivery {
            origin: Origin::Host,
            owner,
            by_loopback: is_one(packet.source) || is_one(packet.destination),
            rewrite: IcmpIdRewrite::NONE,
        }))
    }

    fn container_lo(&mut self, tag: Option<u16>) -> Expected {
        let slot = match self.frame.get(6..14) {
            // There are 4,096 slots.
            Some(&[0x02, 0x50, 0x4d, 0, high @ 0..=15, low, _, _]) => u16::from_be_bytes([high, low]),
            _ => HOST_SLOT,
        };
        let target = if tag.is_none() { self.target_on_loopback(slot | 0x8000) } else { None };
        let eth0 = self.world.endpoint(slot).eth0_ifindex;
        let is_private = |slot| self.world.endpoint(slot).flags == 4;
        match target {
            Some((packet, port, _))
                if is_by_loopback(&packet)
                    && (is_private(slot) || is_private(self.world.port(port).slot)) =>
            {
                Expected::DeliverLocal(slot)
            }
            Some((_, port, _)) if eth0 != 0 && self.world.port(port).slot != slot => Expected::Eth0(eth0),
            _ => Expected::DeliverLocal(slot),
        }
    }

    fn uplink_egress(&self, ctx: &HookCtx) -> Expected {
        let is_in_flow = ctx.priority & 0xffff_0000 == 0x504d_0000;
        if self.config.uplink_flows == 0 || is_in_flow {
            return Expected::AlreadyHandled;
        }
        let is_own = ctx.ingress_ifindex == 0 && ctx.vlan_tag.is_none();
        let is_arp = self.frame.get(12..14) == Some(&[0x08, 0x06]);
        let is_icmp = reader::packet(self.frame)
            .is_some_and(|packet| if packet.is_v6 { packet.bytes[6] == 58 } else { packet.bytes[9] == 1 });
        Expected::AssignFlow(if is_own && (is_arp || is_icmp) { 2 } else { 1 })
    }

    /// Returns the identifier that a packet of the host reserves.
    fn reserves(&mut self, ctx: &HookCtx) -> Option<(Peer, u16)> {
        if ctx.ingress_ifindex != 0 || ctx.vlan_tag.is_some() {
            return None;
        }
        let (packet, shared) = self.packet()?;
        let behind = packet.behind()?;
        let is_request_of_host = packet.source == shared && !matches!(behind.part, Part::Subsequent(_));
        match packet.content(behind) {
            Some(Content::Echo { is_request: true, id, .. }) if is_request_of_host => {
                Some(((packet.is_v6, packet.destination), id))
            }
            _ => None,
        }
    }
}

fn is_by_loopback(packet: &Packet<'_>) -> bool {
    is_loopback(packet.source) || is_loopback(packet.destination)
}

/// Returns the key of a flow between a container's port and one of the host's.
fn flow(
    packet: &Packet<'_>,
    slot: u16,
    (container_port, host_port): (u16, u16),
    protocol: u8,
) -> HostFlowKey {
    let version = if packet.is_v6 { 6 } else { 4 };
    HostFlowKey { slot, container_port, host_port, protocol: protocol.into(), version }
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

fn change(message: usize, from: u16, to: u16) -> IcmpIdRewrite {
    if from == to { IcmpIdRewrite::NONE } else { IcmpIdRewrite { message, from, to } }
}

/// Returns the next hop to a unicast destination, if there is one.
fn next_hop(config: &Config, packet: &Packet<'_>) -> Option<NextHop> {
    let to = u128::from_be_bytes(packet.destination);
    if packet.is_v6 {
        let is_in = |network: u128, prefix: u32| (to ^ network) >> (128 - prefix) == 0;
        if to == 0 || is_in(0xff << 120, 8) || is_in(0xfe80 << 112, 10) || is_in(0xffff << 32, 96) {
            return None;
        }
        let prefix = u128::from_be_bytes(config.netmask6.bytes).count_ones();
        let is_near = prefix == 0 || is_in(u128::from_be_bytes(config.host_ip6.bytes), prefix);
        let hop = if is_near { packet.destination } else { config.gateway6.bytes };
        return (hop != [0; 16]).then_some(NextHop::V6(hop));
    }
    let [.., a, b, c, d] = packet.destination;
    let to = u32::from_be_bytes([a, b, c, d]);
    let is_broadcast = config.broadcasts != 0 && [a, b, c, d] == OTHER_BROADCAST;
    if a == 0 || a >= 224 || is_broadcast {
        return None;
    }
    let prefix = u32::from_be_bytes(config.netmask.bytes).count_ones();
    // In 64 bits, because a /0 network has more addresses than 32 bits can count.
    let size = 1_u64 << (32 - prefix);
    let (address, shared) = (u64::from(to), u64::from(u32::from_be_bytes(config.host_ip.bytes)));
    if address / size != shared / size {
        return (config.gateway.bytes != [0; 4]).then_some(NextHop::V4(config.gateway.bytes));
    }
    let is_broadcast = size > 2 && (address % size == 0 || address % size == size - 1);
    (!is_broadcast).then_some(NextHop::V4([a, b, c, d]))
}
