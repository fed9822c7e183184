//! The expected verdict on a frame, from `docs/datapath.md`, "Verdicts by hook", row by row, without the
//! reasons.

mod access;
mod connections;
mod memory;
mod routes;

use portmap_common::{
    flow_state::{
        Echo, FragCacheEntry, HostConnection, HostConnectionKey, HostFlowKey, Neighbour, NeighbourKey,
    },
    hook_point::HookPoint,
    marks::HANDLED_MARK,
    slot::{HOST_SLOT, VETH_IFINDEX_BASE},
    tables::{Config, PortEntry},
};
use portmap_ebpf::{
    Tables as _,
    verdict::{IcmpIdRewrite, Origin},
};

use self::connections::Direction;
pub use self::memory::{datagram, is_live};
use crate::{
    expected::{Delivery, EchoRequest, Expected, Outcome, Question},
    hook_ctx::HookCtx,
    reader::{self, Content, Inner, Packet, is_loopback, is_one, mapped},
    state::{Datagram, Peer, State},
    values::UPLINK,
    world::World,
};

/// Returns the outcome that the specification demands.
pub fn of(ctx: &HookCtx, frame: &[u8], world: &World, memory: &State) -> Outcome {
    let mut decider = Decider::new(frame, world, memory);
    let expected = match ctx.hook {
        HookPoint::UplinkIngress => decider.uplink(ctx.vlan_tag).unwrap_or(Expected::Left),
        HookPoint::VethIngress(slot) => decider.veth(ctx, slot).unwrap_or(Expected::Dropped(slot)),
        HookPoint::HostLoIngress if ctx.mark == HANDLED_MARK => Expected::AlreadyHandled,
        HookPoint::HostLoIngress => decider.host_lo(ctx.vlan_tag).unwrap_or(Expected::Left),
        HookPoint::ContainerLoEgress => decider.container_lo(ctx.vlan_tag),
        HookPoint::ContainerEth0Ingress => container_eth0(frame, ctx.vlan_tag),
        HookPoint::UplinkEgress => decider.uplink_egress(ctx),
    };
    let Decider { first, reserves, host_flow, neighbour, host_connection, question, .. } = decider;
    // A dropped packet is not cached.
    let first = if matches!(expected, Expected::Dropped(_)) { None } else { first };
    Outcome { expected, first, reserves, host_flow, neighbour, host_connection, question }
}

/// Returns the connection of the host's to which a frame can belong.
pub fn connection_of(
    ctx: &HookCtx,
    frame: &[u8],
    world: &World,
    memory: &State,
) -> Option<HostConnectionKey> {
    let (scope, way) = match ctx.hook {
        HookPoint::UplinkIngress => (HOST_SLOT, Direction::In),
        HookPoint::UplinkEgress => (HOST_SLOT, Direction::Out),
        HookPoint::VethIngress(slot) => (slot, Direction::Out),
        _ => return None,
    };
    let packet = reader::packet(frame)?;
    let content = Decider::new(frame, world, memory).content(&packet, scope)?;
    connections::key(&packet, content, way)
}

fn container_eth0(frame: &[u8], tag: Option<u16>) -> Expected {
    let packet = if tag.is_none() { reader::packet(frame) } else { None };
    if packet.is_some_and(|packet| is_one(packet.source) || is_one(packet.destination)) {
        Expected::Loopback
    } else {
        Expected::AlreadyHandled
    }
}

/// A frame, what there is before it, and the changes that its rows make.
struct Decider<'a> {
    frame: &'a [u8],
    world: &'a World,
    config: Config,
    memory: &'a State,
    first: Option<(Datagram, FragCacheEntry)>,
    reserves: Option<(Peer, u16)>,
    host_flow: Option<HostFlowKey>,
    neighbour: Option<(NeighbourKey, Neighbour)>,
    host_connection: Option<(HostConnectionKey, HostConnection)>,
    question: Option<Question>,
}

impl<'a> Decider<'a> {
    fn new(frame: &'a [u8], world: &'a World, memory: &'a State) -> Self {
        Self {
            frame,
            world,
            config: *world.config(),
            memory,
            first: None,
            reserves: None,
            host_flow: None,
            neighbour: None,
            host_connection: None,
            question: None,
        }
    }

    /// Parses a packet, if the host has a primary address of its IP version.
    fn packet(&self) -> Option<Packet<'a>> {
        let packet = reader::packet(self.frame)?;
        (!packet.is_v6 || self.config.host_ip6.bytes != [0; 16]).then_some(packet)
    }

    fn is_shared(&self, is_v6: bool, address: [u8; 16]) -> bool {
        let primary = if is_v6 { self.config.host_ip6.bytes } else { mapped(self.config.host_ip.bytes) };
        address == primary || self.world.is_second(is_v6, address)
    }

    fn is_local(&self, is_v6: bool, address: [u8; 16]) -> bool {
        self.is_shared(is_v6, address) || is_loopback(is_v6, address)
    }

    fn owner(&self, port: u16) -> Option<PortEntry> {
        let owner = self.world.owner(port);
        (owner.slot != HOST_SLOT).then_some(owner)
    }

    fn uplink(&mut self, tag: Option<u16>) -> Option<Expected> {
        if tag.is_some_and(|tag| tag % 4096 != 0) {
            return None;
        }
        let packet = self.packet()?;
        let is_v6 = packet.is_v6;
        if is_loopback(is_v6, packet.destination) {
            return Some(Expected::Dropped(HOST_SLOT));
        }
        if !self.is_shared(is_v6, packet.destination) {
            return None;
        }
        let is_v4_mapped = is_v6 && packet.source.starts_with(&mapped([0; 4])[..12]);
        if self.is_local(is_v6, packet.source) || is_v4_mapped {
            return Some(Expected::Dropped(HOST_SLOT));
        }
        let offset = |at: usize| Packet::START + at;
        let content = self.content(&packet, HOST_SLOT)?;
        let (owner, rewrite) = match content {
            Content::Echo { is_request: true, .. } => return None,
            Content::Echo { id, at, .. } => {
                let (owner, own) = self.id_owner((is_v6, packet.source), id)?;
                (owner, at.map_or(IcmpIdRewrite::NONE, |at| change(offset(at), id, own)))
            }
            Content::Error { source, destination, .. }
                if !self.is_shared(is_v6, source) || self.is_local(is_v6, destination) =>
            {
                return None;
            }
            Content::Ports(_, port) | Content::Error { quote: Inner::Ports(port, _), .. } => {
                (self.owner(port)?, IcmpIdRewrite::NONE)
            }
            Content::Error { quote: Inner::Request(id, at), destination, .. } => {
                let (owner, own) = self.id_owner((is_v6, destination), id)?;
                (owner, change(offset(at), id, own))
            }
        };
        if self.is_hosts(&packet, content, Direction::In) {
            self.note_abort(&packet, content);
            return None;
        }
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
        let packet = self.packet()?;
        let is_v6 = packet.is_v6;
        let is_local = self.is_local(is_v6, packet.destination);
        let is_allowed_source =
            |address| self.is_shared(is_v6, address) || (is_local && is_loopback(is_v6, address));
        if !is_allowed_source(packet.source) {
            return None;
        }
        let content = self.content(&packet, slot)?;
        let is_allowed_source =
            |address| self.is_shared(is_v6, address) || (is_local && is_loopback(is_v6, address));
        let is_own = |port| self.world.owner(port).slot == slot;
        let target = match content {
            Content::Ports(source, destination) if is_own(source) => Some(destination),
            Content::Echo { is_request: true, .. } if !is_local => None,
            Content::Error { by_router: false, source, destination, quote: Inner::Ports(from, to) }
                if is_allowed_source(destination) && source == packet.destination && is_own(to) =>
            {
                Some(from)
            }
            _ => return None,
        };
        match target {
            Some(target) if is_local => self.inside(&packet, slot, content, target),
            _ => self.outside(&packet, slot, content),
        }
    }

    /// Returns the verdict on a container's packet to a local address. `target` is the port that gets it.
    fn inside(&self, packet: &Packet<'_>, slot: u16, content: Content, target: u16) -> Option<Expected> {
        let is_private = |slot| self.world.endpoint(slot).flags == 4;
        let owner = self.owner(target);
        if is_by_loopback(packet) && (is_private(slot) || owner.is_some_and(|owner| is_private(owner.slot))) {
            return None;
        }
        if owner.is_none() && self.is_refused(packet, slot, content) {
            return None;
        }
        if self.world.exceeds_limit(slot, true) {
            return None;
        }
        Some(match owner {
            None => Expected::Host(slot),
            Some(owner) => Expected::Container(Delivery {
                origin: Origin::Container(slot),
                owner,
                by_loopback: is_one(packet.source) || is_one(packet.destination),
                rewrite: IcmpIdRewrite::NONE,
            }),
        })
    }

    /// Returns the verdict on a container's packet to another address.
    fn outside(&mut self, packet: &Packet<'_>, slot: u16, content: Content) -> Option<Expected> {
        let route = self.route(packet, slot, content)?;
        if self.is_hosts(packet, content, Direction::Out)
            || self.world.exceeds_limit(slot, false)
            || self.is_one_too_many(packet, slot, &route)
        {
            return None;
        }
        // A subsequent fragment has the receiver and the identifier of the first one.
        let Content::Echo { id, at: Some(at), .. } = content else {
            return Some(Expected::Outside(slot, route.exit));
        };
        let generation = self.world.endpoint(slot).generation;
        let owner = Echo { generation, slot, id, seen: self.world.now };
        let (peer, message) = ((packet.is_v6, packet.destination), Packet::START + at);
        Some(Expected::Request(EchoRequest { owner, peer, exit: route.exit, message }))
    }

    /// Returns the destination port of a local packet on a loopback device.
    fn target_on_loopback(&mut self, scope: u16) -> Option<(Packet<'a>, u16, Content)> {
        let packet = self.packet()?;
        if !self.is_local(packet.is_v6, packet.destination) {
            return None;
        }
        let content = self.content(&packet, scope)?;
        match content {
            Content::Ports(_, port) => Some((packet, port, content)),
            Content::Error { source, quote: Inner::Ports(port, _), .. }
                if self.is_local(packet.is_v6, source) =>
            {
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
        self.allow_reply(&packet, owner.slot, content);
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
                    && (is_private(slot) || is_private(self.world.owner(port).slot)) =>
            {
                Expected::DeliverLocal(slot)
            }
            Some((_, port, _)) if eth0 != 0 && self.world.owner(port).slot != slot => Expected::Eth0(eth0),
            _ => Expected::DeliverLocal(slot),
        }
    }

    fn uplink_egress(&mut self, ctx: &HookCtx) -> Expected {
        let veths = VETH_IFINDEX_BASE + 1..VETH_IFINDEX_BASE + 4096;
        if !veths.contains(&ctx.ingress_ifindex) && ctx.vlan_tag.is_none() {
            self.track();
            // This hook has no use for first fragments.
            self.first = None;
        }
        let is_in_flow = ctx.priority & 0xffff_0000 == 0x504d_0000;
        let is_uplink = ctx.ifindex() == UPLINK || self.config.more_flows.contains(&ctx.ifindex());
        if self.config.uplink_flows == 0 || !is_uplink || is_in_flow {
            return Expected::AlreadyHandled;
        }
        let is_own = ctx.ingress_ifindex == 0 && ctx.vlan_tag.is_none();
        let is_arp = self.frame.get(12..14) == Some(&[0x08, 0x06]);
        let is_icmp = reader::packet(self.frame)
            .is_some_and(|packet| if packet.is_v6 { packet.bytes[6] == 58 } else { packet.bytes[9] == 1 });
        Expected::AssignFlow(if is_own && (is_arp || is_icmp) { 2 } else { 1 })
    }
}

fn is_by_loopback(packet: &Packet<'_>) -> bool {
    is_loopback(packet.is_v6, packet.source) || is_loopback(packet.is_v6, packet.destination)
}

fn change(message: usize, from: u16, to: u16) -> IcmpIdRewrite {
    if from == to { IcmpIdRewrite::NONE } else { IcmpIdRewrite { message, from, to } }
}
