//! The rows of the specification (`docs/datapath.md`), hook by hook, in its order and in its words.
//!
//! A row has a text and a function that returns the verdict if the row matches.

use std::net::IpAddr;

use portmap_common::{
    flow_state::{HOST_FLOW_LIFETIME, HostFlowKey, NEIGHBOUR_LIFETIME},
    hook_point::HookPoint,
    marks::HANDLED_MARK,
    reason::Reason,
    slot::{HOST_SLOT, loopback_mac},
};
use portmap_ebpf::{
    Verdict,
    verdict::{IcmpIdRewrite, NextHop, Origin},
};

use crate::{
    differential::NOW,
    spec_parser::{self, Content, InnerContent, InnerPacket, ParsedFrame, loopback_slot},
    spec_state::{IdOwner, SpecState},
    world::{Case, LONGEST, World},
};

/// `IPPROTO_TCP`.
pub(crate) const TCP: u8 = 6;
/// `IPPROTO_SCTP`, the only protocol with lists of packets in place of segments, which have this size.
const SCTP: u8 = 132;
const GSO_BY_FRAGS: u32 = 0xffff;

/// The input of a row.
pub(crate) struct Situation<'a> {
    pub(crate) case: &'a Case<'a>,
    pub(crate) packet: &'a ParsedFrame,
    pub(crate) world: &'a World,
    pub(crate) memory: &'a SpecState,
    /// Candidate identifiers that the decision code has tried for an echo request. The specification does not
    /// define them.
    pub(crate) tried: &'a [u16],
}

/// One row.
pub(crate) struct Row {
    pub(crate) packet: &'static str,
    verdict: fn(&Situation<'_>) -> Option<Verdict>,
}

const fn row(packet: &'static str, verdict: fn(&Situation<'_>) -> Option<Verdict>) -> Row {
    Row { packet, verdict }
}

/// Returns the verdict on a packet, and the index of the matching row.
pub(crate) fn decide(situation: &Situation<'_>) -> (usize, Verdict) {
    let mut rows = rows(situation.case.hook).iter().enumerate();
    rows.find_map(|(number, row)| (row.verdict)(situation).map(|verdict| (number, verdict)))
        .expect("the last row matches every packet")
}

/// Returns the table of a hook.
pub(crate) const fn rows(hook: HookPoint) -> &'static [Row] {
    match hook {
        HookPoint::UplinkIngress => UPLINK,
        HookPoint::VethIngress(_) => VETH,
        HookPoint::HostLoIngress => HOST_LO,
        HookPoint::ContainerLoEgress => CONTAINER_LO,
        HookPoint::UplinkEgress => UPLINK_EGRESS,
        HookPoint::ContainerEth0Ingress => CONTAINER_ETH0,
    }
}

const UPLINK: &[Row] = &[
    row("parse error (1-4)", |s| s.packet.error_1_to_4().map(Verdict::Continue)),
    row("to a loopback address", |s| {
        s.packet.destination.is_loopback().then(|| drop_from_outside(Reason::Destination))
    }),
    row("not to the shared address", |s| {
        (!s.world.is_shared(s.packet.destination)).then_some(Verdict::Continue(Reason::OtherAddress))
    }),
    row("from the shared address, a loopback address or a mapped IPv4 address", |s| {
        let is_v4_mapped = matches!(s.packet.source, IpAddr::V6(source) if source.to_ipv4_mapped().is_some());
        (s.world.is_local(s.packet.source) || is_v4_mapped).then(|| drop_from_outside(Reason::SourceAddress))
    }),
    row("parse error (5, 6)", |s| s.packet.error_content.map(Verdict::Continue)),
    row("the destination port is the host's", |s| {
        let Content::Ports { destination, .. } = s.packet.content else { return None };
        s.is_hosts(destination).then_some(Verdict::Continue(Reason::HostPort))
    }),
    row("an echo request", |s| {
        matches!(s.packet.content, Content::EchoRequest { .. }).then_some(Verdict::Continue(Reason::Icmp))
    }),
    row("an echo reply whose request no container has sent", |s| {
        let Content::EchoReply { id, .. } = s.packet.content else { return None };
        s.owner_of_id(s.packet.source, id).is_none().then_some(Verdict::Continue(Reason::Icmp))
    }),
    row("an error: the inner source is not the shared address", |s| {
        let inner = s.packet.inner()?;
        (!s.world.is_shared(inner.source)).then_some(Verdict::Continue(Reason::Quoted))
    }),
    row("an error: the inner destination is local", |s| {
        let inner = s.packet.inner()?;
        s.world.is_local(inner.destination).then_some(Verdict::Continue(Reason::Quoted))
    }),
    row("an error: the inner source port is the host's", |s| {
        let (source, _) = s.packet.inner()?.ports()?;
        s.is_hosts(source).then_some(Verdict::Continue(Reason::HostPort))
    }),
    row("an error: the inner packet is an echo request that no container has sent", |s| {
        let inner = s.packet.inner()?;
        let InnerContent::EchoRequest { id, .. } = inner.content else { return None };
        s.owner_of_id(inner.destination, id).is_none().then_some(Verdict::Continue(Reason::Icmp))
    }),
    row("the frame is to another MAC address", |s| {
        (s.packet.to_mac != s.world.config.mac.octets()).then_some(Verdict::Continue(Reason::OtherStation))
    }),
    row("all others", |s| {
        let (slot, rewrite) = match s.packet.content {
            Content::EchoReply { id, at } => s.reply_to(s.packet.source, id, at),
            Content::Error { inner: InnerPacket { destination, content, .. }, .. } => match content {
                InnerContent::EchoRequest { id, at } => s.reply_to(destination, id, Some(at)),
                InnerContent::Ports { source, .. } => (s.world.owner(source), IcmpIdRewrite::NONE),
            },
            _ => (s.owner_of_target()?, IcmpIdRewrite::NONE),
        };
        let (origin, owner) = (Origin::Outside, s.world.entry(slot));
        Some(Verdict::ToContainer { origin, owner, by_loopback: false, rewrite })
    }),
];

const VETH: &[Row] = &[
    row("parse error (1, 2)", |s| s.packet.error_frame.map(|reason| s.drop(reason))),
    row("the source MAC address is neither the host's nor that of the sender's loopback device", |s| {
        let allowed = [s.world.config.mac.octets(), loopback_mac(s.sender())];
        (!allowed.contains(&s.packet.from_mac)).then(|| s.drop(Reason::SourceMac))
    }),
    row("to a multicast or broadcast MAC address", |s| {
        (s.packet.to_mac[0] & 1 != 0).then(|| s.drop(Reason::Destination))
    }),
    row("parse error (3, 4)", |s| s.packet.error_header.map(|reason| s.drop(reason))),
    row(
        "the source is not the shared address, nor a loopback address of a packet to a local destination",
        |s| {
            let source = s.packet.source;
            let allowed = s.world.is_shared(source) || (s.is_to_local() && source.is_loopback());
            (!allowed).then(|| s.drop(Reason::SourceAddress))
        },
    ),
    row("parse error (5, 6)", |s| s.packet.error_content.map(|reason| s.drop(reason))),
    row("GSO frame that cannot be segmented, or has too many segments", |s| {
        s.gso_error().map(|reason| s.drop(reason))
    }),
    row("the source port is not the sender's", |s| {
        let Content::Ports { source, .. } = s.packet.content else { return None };
        (!s.is_senders(source)).then(|| s.drop(Reason::SourcePort))
    }),
    row("an echo reply", |s| {
        matches!(s.packet.content, Content::EchoReply { .. }).then(|| s.drop(Reason::Icmp))
    }),
    row("an echo request to a local address", |s| {
        let is_request = matches!(s.packet.content, Content::EchoRequest { .. });
        (is_request && s.is_to_local()).then(|| s.drop(Reason::Icmp))
    }),
    row("an error that only routers send", |s| {
        let Content::Error { kind, code, .. } = s.packet.content else { return None };
        let is_routers = match s.packet.source {
            IpAddr::V4(_) => (kind, code) == (3, 4) || (kind == 11 && code != 1),
            IpAddr::V6(_) => kind == 2 || (kind == 3 && code != 1),
        };
        is_routers.then(|| s.drop(Reason::Icmp))
    }),
    row(
        "an error: the inner destination is not the shared address, or a loopback one to a local destination",
        |s| {
            let destination = s.packet.inner()?.destination;
            let allowed = s.world.is_shared(destination) || (s.is_to_local() && destination.is_loopback());
            (!allowed).then(|| s.drop(Reason::Quoted))
        },
    ),
    row("an error: the inner source is not the error's destination", |s| {
        (s.packet.inner()?.source != s.packet.destination).then(|| s.drop(Reason::Quoted))
    }),
    row("an error: the inner packet has no ports", |s| {
        s.packet.inner()?.ports().is_none().then(|| s.drop(Reason::Quoted))
    }),
    row("an error: the inner destination port is not the sender's", |s| {
        let (_, destination) = s.packet.inner()?.ports()?;
        (!s.is_senders(destination)).then(|| s.drop(Reason::Quoted))
    }),
    row("local, by a loopback address, and the sender or the port's owner is private", |s| {
        let is_private = s.world.is_private(s.sender()) || s.world.is_private(s.owner_of_target()?);
        (s.is_to_local() && s.is_by_loopback() && is_private).then(|| s.drop(Reason::Loopback))
    }),
    row("local, TCP, and the destination port is the daemon's listener", |s| {
        let (Content::Ports { destination, .. }, TCP) = (s.packet.content, s.packet.ports_header?.protocol)
        else {
            return None;
        };
        let is_listener = s.is_hosts(destination) && s.world.is_listener(s.packet.destination, destination);
        (s.is_to_local() && is_listener).then(|| s.drop(Reason::Listener))
    }),
    row("local, the destination port is the host's and not open, and the packet is not a reply", |s| {
        let Content::Ports { destination, .. } = s.packet.content else { return None };
        let is_refused = s.is_hosts(destination) && !s.world.is_open(destination) && !s.is_reply_to_host()?;
        (s.is_to_local() && is_refused).then(|| s.drop(Reason::HostAccess))
    }),
    row("local, and exceeds the container's rate limit", |s| {
        (s.is_to_local() && s.exceeds_limit()).then(|| s.drop(Reason::Rate))
    }),
    row("local, and the port is the host's", |s| {
        (s.is_to_local() && s.owner_of_target()? == HOST_SLOT).then(|| Verdict::ToHost(s.sender()))
    }),
    row("local, and the port is a container's", |s| {
        let (origin, owner) = (Origin::Container(s.sender()), s.world.entry(s.owner_of_target()?));
        let by_loopback = s.is_by_loopback6();
        s.is_to_local().then_some(Verdict::ToContainer {
            origin,
            owner,
            by_loopback,
            rewrite: IcmpIdRewrite::NONE,
        })
    }),
    row("the destination is not a unicast address", |s| {
        s.world.is_not_unicast(s.packet.destination).then(|| s.drop(Reason::Destination))
    }),
    row("beyond the uplink's network, and the host has no gateway", |s| {
        s.next_hop().is_none().then(|| s.drop(Reason::NoRoute))
    }),
    row("exceeds the uplink's MTU", |s| s.is_too_big().then(|| s.drop(Reason::TooBig))),
    row("exceeds the container's rate limit", |s| s.exceeds_limit().then(|| s.drop(Reason::Rate))),
    row("to a new neighbour, and the container has used too many", |s| {
        let has_enough = s.world.neighbour_limited.contains(&s.sender());
        (has_enough && s.is_for_new_neighbour()).then(|| s.drop(Reason::Neighbours))
    }),
    row("an echo request, and all candidate identifiers are taken", |s| {
        // A subsequent fragment contains no identifier.
        let Content::EchoRequest { id, at: Some(_) } = s.packet.content else { return None };
        s.allocated_id(id).is_none().then(|| s.drop(Reason::EchoBusy))
    }),
    row("all others", |s| {
        let next_hop = match s.next_hop()? {
            IpAddr::V4(address) => NextHop::V4(address.octets()),
            IpAddr::V6(address) => NextHop::V6(address.octets()),
        };
        let rewrite = match s.packet.content {
            Content::EchoRequest { id, at: Some(at) } => IcmpIdRewrite::new(at, id, s.allocated_id(id)?),
            _ => IcmpIdRewrite::NONE,
        };
        Some(Verdict::ToOutside { slot: s.sender(), next_hop, rewrite })
    }),
];

const HOST_LO: &[Row] = &[
    row("redirected here by the program at the host veth", |s| {
        (s.case.mark == HANDLED_MARK).then_some(Verdict::AlreadyHandled)
    }),
    row("parse error (1-4)", |s| s.packet.error_1_to_4().map(Verdict::Continue)),
    row("not to a local address", |s| (!s.is_to_local()).then_some(Verdict::Continue(Reason::OtherAddress))),
    row("parse error (5, 6)", |s| s.packet.error_content.map(Verdict::Continue)),
    row("the destination port is the host's", |s| {
        let Content::Ports { destination, .. } = s.packet.content else { return None };
        s.is_hosts(destination).then_some(Verdict::Continue(Reason::HostPort))
    }),
    row("an echo message", |s| s.packet.is_echo().then_some(Verdict::Continue(Reason::Icmp))),
    row("an error: the inner source is not a local address", |s| {
        let inner = s.packet.inner()?;
        (!s.world.is_local(inner.source)).then_some(Verdict::Continue(Reason::Quoted))
    }),
    row("an error: the inner packet has no ports", |s| {
        s.packet.inner()?.ports().is_none().then_some(Verdict::Continue(Reason::Quoted))
    }),
    row("an error: the inner source port is the host's", |s| {
        let (source, _) = s.packet.inner()?.ports()?;
        s.is_hosts(source).then_some(Verdict::Continue(Reason::HostPort))
    }),
    row("by a loopback address, and the port's owner is private", |s| {
        let is_private = s.world.is_private(s.owner_of_target()?);
        (s.is_by_loopback() && is_private).then_some(Verdict::Continue(Reason::Loopback))
    }),
    row("all others", |s| {
        let (origin, owner) = (Origin::Host, s.world.entry(s.owner_of_target()?));
        let by_loopback = s.is_by_loopback6();
        Some(Verdict::ToContainer { origin, owner, by_loopback, rewrite: IcmpIdRewrite::NONE })
    }),
];

const CONTAINER_LO: &[Row] = &[
    row("from a loopback device of no container", |s| {
        s.world.eth0(s.sender()).is_none().then(|| s.deliver_local())
    }),
    row("parse error (1-6)", |s| {
        s.packet.error_1_to_4().or(s.packet.error_content).map(|_reason| s.deliver_local())
    }),
    row("an echo message", |s| s.packet.is_echo().then(|| s.deliver_local())),
    row("not to a local address", |s| (!s.is_to_local()).then(|| s.deliver_local())),
    row("an error: the inner source is not a local address", |s| {
        let inner = s.packet.inner()?;
        (!s.world.is_local(inner.source)).then(|| s.deliver_local())
    }),
    row("an error: the inner packet has no ports", |s| {
        s.packet.inner()?.ports().is_none().then(|| s.deliver_local())
    }),
    row("the port is the container's", |s| (s.owner_of_target()? == s.sender()).then(|| s.deliver_local())),
    row("by a loopback address, and the sender or the port's owner is private", |s| {
        let is_private = s.world.is_private(s.sender()) || s.world.is_private(s.owner_of_target()?);
        (s.is_by_loopback() && is_private).then(|| s.deliver_local())
    }),
    row("all others", |s| s.world.eth0(s.sender()).map(Verdict::ToEth0)),
];

const UPLINK_EGRESS: &[Row] = &[
    row("the uplink's qdisc is not portmap's", |s| {
        (s.world.config.uplink_flows == 0).then_some(Verdict::AlreadyHandled)
    }),
    row("in a flow of that qdisc already", |s| {
        (s.case.priority >> 16 == 0x504d).then_some(Verdict::AlreadyHandled)
    }),
    row("ARP or ICMP of the host's own", |s| {
        (s.case.ingress == 0 && s.packet.is_control()).then_some(Verdict::AssignFlow(2))
    }),
    row("all others", |_| Some(Verdict::AssignFlow(1))),
];

const CONTAINER_ETH0: &[Row] = &[
    row("to or from ::1", |s| s.is_by_loopback6().then_some(Verdict::ToLoopback)),
    row("all others", |_| Some(Verdict::AlreadyHandled)),
];

const fn drop_from_outside(reason: Reason) -> Verdict {
    Verdict::Drop { slot: HOST_SLOT, reason }
}

impl ParsedFrame {
    fn error_1_to_4(&self) -> Option<Reason> {
        self.error_frame.or(self.error_header)
    }

    /// Returns whether the packet is ARP or ICMP, for which other traffic waits.
    fn is_control(&self) -> bool {
        let is_icmp = self.protocol == Some(spec_parser::icmp(self.source.is_ipv4()));
        is_icmp || self.error_frame == Some(Reason::Arp)
    }

    const fn is_echo(&self) -> bool {
        matches!(self.content, Content::EchoRequest { .. } | Content::EchoReply { .. })
    }

    const fn inner(&self) -> Option<InnerPacket> {
        let Content::Error { inner, .. } = self.content else { return None };
        Some(inner)
    }
}

impl InnerPacket {
    /// Returns source and destination port.
    const fn ports(&self) -> Option<(u16, u16)> {
        let InnerContent::Ports { source, destination } = self.content else { return None };
        Some((source, destination))
    }
}

impl Situation<'_> {
    fn is_hosts(&self, port: u16) -> bool {
        self.world.owner(port) == HOST_SLOT
    }

    /// Returns the container behind a veth or with a loopback device.
    pub(crate) fn sender(&self) -> u16 {
        if let HookPoint::VethIngress(slot) = self.case.hook { slot } else { loopback_slot(self.case) }
    }

    fn is_senders(&self, port: u16) -> bool {
        self.world.owner(port) == self.sender()
    }

    fn drop(&self, reason: Reason) -> Verdict {
        Verdict::Drop { slot: self.sender(), reason }
    }

    fn deliver_local(&self) -> Verdict {
        Verdict::DeliverLocal(self.sender())
    }

    /// Returns whether the sender's limit applies to the packet.
    fn is_limited(&self) -> bool {
        let limit = self.world.limits.get(&self.sender());
        limit.is_some_and(|limit| limit.counts_local == 1 || !self.is_to_local())
    }

    fn exceeds_limit(&self) -> bool {
        self.is_limited() && self.world.limits[&self.sender()].tolerance == 0
    }

    /// Returns the bytes that a packet with this verdict charges to the sender's limit.
    pub(crate) fn spent(&self, verdict: Verdict) -> u64 {
        let is_at_veth = matches!(self.case.hook, HookPoint::VethIngress(_));
        // The limit precedes the checks of identifiers and neighbours.
        let is_charged = !matches!(
            verdict,
            Verdict::Drop { reason, .. } if !matches!(reason, Reason::EchoBusy | Reason::Neighbours)
        );
        if is_at_veth && is_charged && self.is_limited() { self.bytes_on_wire() } else { 0 }
    }

    /// Returns the reason why a GSO frame is invalid.
    fn gso_error(&self) -> Option<Reason> {
        let segment = self.case.segment;
        let transport = self.packet.transport?;
        if segment == 0 || (transport.protocol == SCTP && segment == GSO_BY_FRAGS && !transport.is_fragment) {
            return None;
        }
        if transport.is_fragment || segment == GSO_BY_FRAGS || self.headers().is_none() {
            return Some(Reason::Malformed);
        }
        (self.segments()? > 2048 || self.bytes_on_wire() > 1 << 24).then_some(Reason::TooBig)
    }

    /// Returns the length of each segment's headers in bytes; `None` if the frame is neither TCP nor UDP, or
    /// not GSO.
    fn headers(&self) -> Option<usize> {
        const UDP: u8 = 17;
        let transport = self.packet.transport?;
        let bytes = match transport.protocol {
            // The data offset of TCP, in units of four bytes. The program reads it as a word of four bytes.
            TCP => usize::from(self.case.frame.get(transport.at + 12..transport.at + 16)?[0] >> 4) * 4,
            UDP => 8,
            _ => return None,
        };
        let is_whole = transport.protocol == UDP || bytes >= 20;
        (self.case.segment != 0 && is_whole).then_some(transport.at + bytes)
    }

    /// Returns the number of segments.
    fn segments(&self) -> Option<usize> {
        let payload = self.case.frame.len().saturating_sub(self.headers()?);
        Some(payload.div_ceil(usize::try_from(self.case.segment).ok()?))
    }

    /// Returns the bytes of all segments with their headers.
    fn bytes_on_wire(&self) -> u64 {
        let more = self
            .headers()
            .zip(self.segments())
            .map_or(0, |(headers, segments)| headers * segments.saturating_sub(1));
        (self.case.frame.len() + more) as u64
    }

    /// Returns whether the frame or one of its segments exceeds the uplink's MTU.
    fn is_too_big(&self) -> bool {
        let length = self.case.frame.len();
        let longest = match self.headers() {
            Some(headers) => length.min(headers + self.case.segment as usize),
            // Only the kernel knows the lengths of the packets in a list; in this test the MTU allows them.
            None if self.case.segment != 0 => 0,
            None => length,
        };
        longest > LONGEST as usize
    }

    fn is_to_local(&self) -> bool {
        self.world.is_local(self.packet.destination)
    }

    /// Returns whether a packet from a container is to a neighbour other than the gateway that the container
    /// has not used in the last minute.
    pub(crate) fn is_for_new_neighbour(&self) -> bool {
        let destination = self.packet.destination;
        let is_neighbour =
            self.world.is_on_link(destination) && self.world.gateway(destination) != Some(destination);
        let charged = self.memory.neighbours.get(&(self.sender(), destination));
        is_neighbour && charged.is_none_or(|seen| NOW - seen > NEIGHBOUR_LIFETIME)
    }

    /// Returns whether a packet is from or to a loopback address.
    fn is_by_loopback(&self) -> bool {
        self.packet.source.is_loopback() || self.packet.destination.is_loopback()
    }

    /// Returns the key of a flow between a container's port and one of the host's.
    pub(crate) fn host_flow(&self, slot: u16, container_port: u16, host_port: u16) -> Option<HostFlowKey> {
        let protocol = self.packet.ports_header?.protocol.into();
        let version = if self.packet.source.is_ipv4() { 4 } else { 6 };
        Some(HostFlowKey { slot, container_port, host_port, protocol, version })
    }

    /// Returns whether a packet to a port of the host's is a reply; `None` for a subsequent fragment.
    fn is_reply_to_host(&self) -> Option<bool> {
        let (transport, content) = (self.packet.ports_header?, self.packet.content);
        if transport.protocol == TCP {
            return Some(transport.flags.is_some_and(|(syn, ack)| !syn || ack));
        }
        let Content::Ports { source, destination } = content else { return None };
        let seen = self.memory.host_flows.get(&self.host_flow(self.sender(), source, destination)?);
        Some(seen.is_some_and(|seen| NOW - seen <= HOST_FLOW_LIFETIME))
    }

    /// Returns whether a packet is from or to `::1`.
    fn is_by_loopback6(&self) -> bool {
        let loopback = IpAddr::V6(std::net::Ipv6Addr::LOCALHOST);
        [self.packet.source, self.packet.destination].contains(&loopback)
    }

    /// Returns the owner of the port that determines the receiver: the destination port, or the source port
    /// of an error's inner packet.
    fn owner_of_target(&self) -> Option<u16> {
        match self.packet.content {
            Content::Ports { destination, .. } => Some(self.world.owner(destination)),
            Content::Error { inner, .. } => inner.ports().map(|(source, _)| self.world.owner(source)),
            _ => None,
        }
    }

    /// Returns the next hop of a packet to the outside.
    fn next_hop(&self) -> Option<IpAddr> {
        let destination = self.packet.destination;
        if self.world.is_on_link(destination) { Some(destination) } else { self.world.gateway(destination) }
    }

    /// Returns the container that owns an identifier towards `peer`.
    fn owner_of_id(&self, peer: IpAddr, id: u16) -> Option<IdOwner> {
        self.memory.owner(self.world, peer, id).filter(|owner| owner.slot != HOST_SLOT)
    }

    /// Returns the receiver of the reply to an echo request, and the rewrite of its identifier.
    fn reply_to(&self, peer: IpAddr, id: u16, at: Option<usize>) -> (u16, IcmpIdRewrite) {
        let owner = self.owner_of_id(peer, id).expect("an earlier row has found it");
        (owner.slot, at.map_or(IcmpIdRewrite::NONE, |at| IcmpIdRewrite::new(at, id, owner.id)))
    }

    /// Returns the identifier with which the sender's echo request leaves: the first candidate that has no
    /// current owner, or that the sender owns already. `None` if all of at least eight candidates are taken.
    pub(crate) fn allocated_id(&self, id: u16) -> Option<u16> {
        const TRIES: usize = 8;
        let peer = self.packet.destination;
        let generation = self.world.containers.get(&self.sender()).copied().unwrap_or_default();
        let own = IdOwner { slot: self.sender(), generation, id };
        let is_own = |tried: u16| self.memory.owner(self.world, peer, tried) == Some(own);
        let is_free =
            |tried: u16| is_own(tried) || self.memory.current_owner(self.world, peer, tried, NOW).is_none();
        if is_free(id) {
            return Some(id);
        }
        let chosen = self.tried.iter().copied().find(|tried| is_free(*tried));
        // Fewer candidates are a bug of the decision code: this value differs from its result.
        chosen.or_else(|| (self.tried.len() < TRIES).then_some(!id))
    }
}
