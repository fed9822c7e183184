//! The rows of the specification, hook by hook, in its order and in its words.
//!
//! A row is its text and what it says of a packet: a verdict if it applies.

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
    spec_parser::{self, Content, Quoted, QuotedContent, Reading, loopback_slot},
    spec_state::{Asker, SpecState},
    world::{Case, LONGEST, World},
};

/// `IPPROTO_TCP`.
pub(crate) const TCP: u8 = 6;
/// `IPPROTO_SCTP`, which alone has chains of packets in place of segments, told by this size.
const SCTP: u8 = 132;
const CHAIN: u32 = 0xffff;

/// All that a row may look at.
pub(crate) struct Situation<'a> {
    pub(crate) case: &'a Case<'a>,
    pub(crate) packet: &'a Reading,
    pub(crate) world: &'a World,
    pub(crate) memory: &'a SpecState,
    /// The identifiers that were tried for an echo request, which the specification leaves open.
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

/// What becomes of a packet, and the number of the row that says so.
pub(crate) fn decide(situation: &Situation<'_>) -> (usize, Verdict) {
    let mut rows = rows(situation.case.hook).iter().enumerate();
    rows.find_map(|(number, row)| (row.verdict)(situation).map(|verdict| (number, verdict)))
        .expect("the last row is for everything else")
}

/// The table of a hook.
pub(crate) const fn rows(hook: HookPoint) -> &'static [Row] {
    match hook {
        HookPoint::UplinkIngress => UPLINK,
        HookPoint::VethIngress(_) => VETH,
        HookPoint::HostLoIngress => HOST_LO,
        HookPoint::ContainerLoEgress => CONTAINER_LO,
        HookPoint::UplinkEgress => UPLINK_OUT,
        HookPoint::ContainerEth0Ingress => CONTAINER_ETH0,
    }
}

const UPLINK: &[Row] = &[
    row("unreadable (1-4)", |s| s.packet.unreadable_1_to_4().map(Verdict::Continue)),
    row("to a loopback address", |s| {
        s.packet.destination.is_loopback().then(|| drop_from_outside(Reason::Destination))
    }),
    row("not to the shared address", |s| {
        (!s.world.is_shared(s.packet.destination)).then_some(Verdict::Continue(Reason::OtherAddress))
    }),
    row("from the shared or a loopback address, or by IPv6 from an IPv4 address", |s| {
        let is_disguised = matches!(s.packet.source, IpAddr::V6(source) if source.to_ipv4_mapped().is_some());
        (s.world.is_local(s.packet.source) || is_disguised).then(|| drop_from_outside(Reason::SourceAddress))
    }),
    row("unreadable (5, 6)", |s| s.packet.unreadable_content.map(Verdict::Continue)),
    row("the destination port is the host's", |s| {
        let Content::Ports { destination, .. } = s.packet.content else { return None };
        s.is_hosts(destination).then_some(Verdict::Continue(Reason::HostPort))
    }),
    row("an echo request", |s| {
        matches!(s.packet.content, Content::EchoRequest { .. }).then_some(Verdict::Continue(Reason::Icmp))
    }),
    row("an echo reply that no container asked for", |s| {
        let Content::EchoReply { id, .. } = s.packet.content else { return None };
        s.asking_container(s.packet.source, id).is_none().then_some(Verdict::Continue(Reason::Icmp))
    }),
    row("an error: the quoted source is not the shared address", |s| {
        let quoted = s.packet.quoted()?;
        (!s.world.is_shared(quoted.source)).then_some(Verdict::Continue(Reason::Quoted))
    }),
    row("an error: the quoted destination is local", |s| {
        let quoted = s.packet.quoted()?;
        s.world.is_local(quoted.destination).then_some(Verdict::Continue(Reason::Quoted))
    }),
    row("an error: the quoted source port is the host's", |s| {
        let (source, _) = s.packet.quoted()?.ports()?;
        s.is_hosts(source).then_some(Verdict::Continue(Reason::HostPort))
    }),
    row("an error: quotes an echo request that no container sent", |s| {
        let quoted = s.packet.quoted()?;
        let QuotedContent::EchoRequest { id, .. } = quoted.content else { return None };
        s.asking_container(quoted.destination, id).is_none().then_some(Verdict::Continue(Reason::Icmp))
    }),
    row("the frame is for another MAC address", |s| {
        (s.packet.to_mac != s.world.config.mac.octets()).then_some(Verdict::Continue(Reason::OtherStation))
    }),
    row("everything else", |s| {
        let (slot, rewrite) = match s.packet.content {
            Content::EchoReply { id, at } => s.answer_to(s.packet.source, id, at),
            Content::Error { quoted: Quoted { destination, content, .. }, .. } => match content {
                QuotedContent::EchoRequest { id, at } => s.answer_to(destination, id, Some(at)),
                QuotedContent::Ports { source, .. } => (s.world.owner(source), IcmpIdRewrite::NONE),
            },
            _ => (s.deciding_owner()?, IcmpIdRewrite::NONE),
        };
        let (origin, owner) = (Origin::Outside, s.world.entry(slot));
        Some(Verdict::ToContainer { origin, owner, by_loopback: false, rewrite })
    }),
];

const VETH: &[Row] = &[
    row("unreadable (1, 2)", |s| s.packet.unreadable_frame.map(|reason| s.drop(reason))),
    row("the source MAC is neither the host's nor that of the sender's loopback device", |s| {
        let allowed = [s.world.config.mac.octets(), loopback_mac(s.sender())];
        (!allowed.contains(&s.packet.from_mac)).then(|| s.drop(Reason::SourceMac))
    }),
    row("to a multicast or broadcast MAC address", |s| {
        (s.packet.to_mac[0] & 1 != 0).then(|| s.drop(Reason::Destination))
    }),
    row("unreadable (3, 4)", |s| s.packet.unreadable_header.map(|reason| s.drop(reason))),
    row("the source is not the shared address, or a loopback one to a local destination", |s| {
        let source = s.packet.source;
        let allowed = s.world.is_shared(source) || (s.is_to_local() && source.is_loopback());
        (!allowed).then(|| s.drop(Reason::SourceAddress))
    }),
    row("unreadable (5, 6)", |s| s.packet.unreadable_content.map(|reason| s.drop(reason))),
    row("to be cut, and it cannot be, or into too many segments", |s| {
        s.uncuttable().map(|reason| s.drop(reason))
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
        "an error: the quoted destination is not the shared address, or a loopback one to a local destination",
        |s| {
            let destination = s.packet.quoted()?.destination;
            let allowed = s.world.is_shared(destination) || (s.is_to_local() && destination.is_loopback());
            (!allowed).then(|| s.drop(Reason::Quoted))
        },
    ),
    row("an error: the quoted source is not the error's destination", |s| {
        (s.packet.quoted()?.source != s.packet.destination).then(|| s.drop(Reason::Quoted))
    }),
    row("an error: no ports are quoted", |s| {
        s.packet.quoted()?.ports().is_none().then(|| s.drop(Reason::Quoted))
    }),
    row("an error: the quoted destination port is not the sender's", |s| {
        let (_, destination) = s.packet.quoted()?.ports()?;
        (!s.is_senders(destination)).then(|| s.drop(Reason::Quoted))
    }),
    row("local, by a loopback address, and the sender or the port's owner is private", |s| {
        let is_private = s.world.is_private(s.sender()) || s.world.is_private(s.deciding_owner()?);
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
    row("local, and the destination port is the host's and not open, unless it answers", |s| {
        let Content::Ports { destination, .. } = s.packet.content else { return None };
        let is_refused = s.is_hosts(destination) && !s.world.is_open(destination) && !s.answers_the_host()?;
        (s.is_to_local() && is_refused).then(|| s.drop(Reason::HostAccess))
    }),
    row("local, and more than the container's limit", |s| {
        (s.is_to_local() && s.exceeds_limit()).then(|| s.drop(Reason::Rate))
    }),
    row("local, and the port is the host's", |s| {
        (s.is_to_local() && s.deciding_owner()? == HOST_SLOT).then(|| Verdict::ToHost(s.sender()))
    }),
    row("local, and the port is a container's", |s| {
        let (origin, owner) = (Origin::Container(s.sender()), s.world.entry(s.deciding_owner()?));
        let by_loopback = s.concerns_loopback6();
        s.is_to_local().then_some(Verdict::ToContainer {
            origin,
            owner,
            by_loopback,
            rewrite: IcmpIdRewrite::NONE,
        })
    }),
    row("the destination is no unicast address", |s| {
        s.world.is_no_unicast(s.packet.destination).then(|| s.drop(Reason::Destination))
    }),
    row("beyond the uplink's network, and the host has no gateway", |s| {
        s.next_hop().is_none().then(|| s.drop(Reason::NoRoute))
    }),
    row("larger than the uplink's MTU allows", |s| s.is_too_big().then(|| s.drop(Reason::TooBig))),
    row("more than the container's limit", |s| s.exceeds_limit().then(|| s.drop(Reason::Rate))),
    row("for a new neighbour, and the container has asked for enough", |s| {
        let has_enough = s.world.asked_enough.contains(&s.sender());
        (has_enough && s.is_for_new_neighbour()).then(|| s.drop(Reason::Neighbours))
    }),
    row("an echo request, and all identifiers that could be used are taken", |s| {
        // A later fragment has no identifier that could be taken.
        let Content::EchoRequest { id, at: Some(_) } = s.packet.content else { return None };
        s.outside_id(id).is_none().then(|| s.drop(Reason::EchoBusy))
    }),
    row("everything else", |s| {
        let next_hop = match s.next_hop()? {
            IpAddr::V4(address) => NextHop::V4(address.octets()),
            IpAddr::V6(address) => NextHop::V6(address.octets()),
        };
        let rewrite = match s.packet.content {
            Content::EchoRequest { id, at: Some(at) } => IcmpIdRewrite::new(at, id, s.outside_id(id)?),
            _ => IcmpIdRewrite::NONE,
        };
        Some(Verdict::ToOutside { slot: s.sender(), next_hop, rewrite })
    }),
];

const HOST_LO: &[Row] = &[
    row("put there by the program at the host veth", |s| {
        (s.case.mark == HANDLED_MARK).then_some(Verdict::AlreadyHandled)
    }),
    row("unreadable (1-4)", |s| s.packet.unreadable_1_to_4().map(Verdict::Continue)),
    row("not to a local address", |s| (!s.is_to_local()).then_some(Verdict::Continue(Reason::OtherAddress))),
    row("unreadable (5, 6)", |s| s.packet.unreadable_content.map(Verdict::Continue)),
    row("the destination port is the host's", |s| {
        let Content::Ports { destination, .. } = s.packet.content else { return None };
        s.is_hosts(destination).then_some(Verdict::Continue(Reason::HostPort))
    }),
    row("an echo message", |s| s.packet.is_echo().then_some(Verdict::Continue(Reason::Icmp))),
    row("an error: the quoted source is no local address", |s| {
        let quoted = s.packet.quoted()?;
        (!s.world.is_local(quoted.source)).then_some(Verdict::Continue(Reason::Quoted))
    }),
    row("an error: no ports are quoted", |s| {
        s.packet.quoted()?.ports().is_none().then_some(Verdict::Continue(Reason::Quoted))
    }),
    row("an error: the quoted source port is the host's", |s| {
        let (source, _) = s.packet.quoted()?.ports()?;
        s.is_hosts(source).then_some(Verdict::Continue(Reason::HostPort))
    }),
    row("by a loopback address, and the port's owner is private", |s| {
        let is_private = s.world.is_private(s.deciding_owner()?);
        (s.is_by_loopback() && is_private).then_some(Verdict::Continue(Reason::Loopback))
    }),
    row("everything else", |s| {
        let (origin, owner) = (Origin::Host, s.world.entry(s.deciding_owner()?));
        let by_loopback = s.concerns_loopback6();
        Some(Verdict::ToContainer { origin, owner, by_loopback, rewrite: IcmpIdRewrite::NONE })
    }),
];

const CONTAINER_LO: &[Row] = &[
    row("of a loopback device that no container has", |s| {
        s.world.eth0(s.sender()).is_none().then(|| s.stays())
    }),
    row("unreadable (1-6)", |s| {
        s.packet.unreadable_1_to_4().or(s.packet.unreadable_content).map(|_reason| s.stays())
    }),
    row("an echo message", |s| s.packet.is_echo().then(|| s.stays())),
    row("not to a local address", |s| (!s.is_to_local()).then(|| s.stays())),
    row("an error: the quoted source is no local address", |s| {
        let quoted = s.packet.quoted()?;
        (!s.world.is_local(quoted.source)).then(|| s.stays())
    }),
    row("an error: no ports are quoted", |s| s.packet.quoted()?.ports().is_none().then(|| s.stays())),
    row("the port is the container's", |s| (s.deciding_owner()? == s.sender()).then(|| s.stays())),
    row("by a loopback address, and the sender or the port's owner is private", |s| {
        let is_private = s.world.is_private(s.sender()) || s.world.is_private(s.deciding_owner()?);
        (s.is_by_loopback() && is_private).then(|| s.stays())
    }),
    row("everything else", |s| s.world.eth0(s.sender()).map(Verdict::ToEth0)),
];

const UPLINK_OUT: &[Row] = &[
    row("the uplink's queue is not portmap's", |s| {
        (s.world.config.uplink_flows == 0).then_some(Verdict::AlreadyHandled)
    }),
    row("in a flow of that queue already", |s| {
        (s.case.priority >> 16 == 0x504d).then_some(Verdict::AlreadyHandled)
    }),
    row("ARP or ICMP of the host's own", |s| {
        (s.case.ingress == 0 && s.packet.is_control()).then_some(Verdict::AssignFlow(2))
    }),
    row("everything else", |_| Some(Verdict::AssignFlow(1))),
];

const CONTAINER_ETH0: &[Row] = &[
    row("to or from ::1", |s| s.concerns_loopback6().then_some(Verdict::ToLoopback)),
    row("everything else", |_| Some(Verdict::AlreadyHandled)),
];

const fn drop_from_outside(reason: Reason) -> Verdict {
    Verdict::Drop { slot: HOST_SLOT, reason }
}

impl Reading {
    fn unreadable_1_to_4(&self) -> Option<Reason> {
        self.unreadable_frame.or(self.unreadable_header)
    }

    /// Whether other packets wait for it.
    fn is_control(&self) -> bool {
        let is_icmp = self.protocol == Some(spec_parser::icmp(self.source.is_ipv4()));
        is_icmp || self.unreadable_frame == Some(Reason::Arp)
    }

    const fn is_echo(&self) -> bool {
        matches!(self.content, Content::EchoRequest { .. } | Content::EchoReply { .. })
    }

    const fn quoted(&self) -> Option<Quoted> {
        let Content::Error { quoted, .. } = self.content else { return None };
        Some(quoted)
    }
}

impl Quoted {
    /// Source and destination port.
    const fn ports(&self) -> Option<(u16, u16)> {
        let QuotedContent::Ports { source, destination } = self.content else { return None };
        Some((source, destination))
    }
}

impl Situation<'_> {
    fn is_hosts(&self, port: u16) -> bool {
        self.world.owner(port) == HOST_SLOT
    }

    /// The container behind a veth or with a loopback device.
    pub(crate) fn sender(&self) -> u16 {
        if let HookPoint::VethIngress(slot) = self.case.hook { slot } else { loopback_slot(self.case) }
    }

    fn is_senders(&self, port: u16) -> bool {
        self.world.owner(port) == self.sender()
    }

    fn drop(&self, reason: Reason) -> Verdict {
        Verdict::Drop { slot: self.sender(), reason }
    }

    fn stays(&self) -> Verdict {
        Verdict::DeliverLocal(self.sender())
    }

    /// Whether the packet counts for the sender's limit.
    fn is_limited(&self) -> bool {
        let limit = self.world.limits.get(&self.sender());
        limit.is_some_and(|limit| limit.counts_local == 1 || !self.is_to_local())
    }

    fn exceeds_limit(&self) -> bool {
        self.is_limited() && self.world.limits[&self.sender()].tolerance == 0
    }

    /// What a packet with this verdict has used of the sender's limit, in bytes.
    pub(crate) fn spent(&self, verdict: Verdict) -> u64 {
        let is_at_veth = matches!(self.case.hook, HookPoint::VethIngress(_));
        // An echo request that finds no identifier has been let through by then, and what is for one
        // neighbour too many.
        let is_let_through = !matches!(
            verdict,
            Verdict::Drop { reason, .. } if !matches!(reason, Reason::EchoBusy | Reason::Neighbours)
        );
        if is_at_veth && is_let_through && self.is_limited() { self.bytes_on_wire() } else { 0 }
    }

    /// Why a frame cannot be cut, if it is to be.
    fn uncuttable(&self) -> Option<Reason> {
        let segment = self.case.segment;
        let transport = self.packet.transport?;
        if segment == 0 || (transport.protocol == SCTP && segment == CHAIN && !transport.is_fragment) {
            return None;
        }
        if transport.is_fragment || segment == CHAIN || self.headers().is_none() {
            return Some(Reason::Malformed);
        }
        (self.segments()? > 2048 || self.bytes_on_wire() > 1 << 24).then_some(Reason::TooBig)
    }

    /// Bytes of the headers that each segment has; none if it is neither TCP nor UDP, or is to stay whole.
    fn headers(&self) -> Option<usize> {
        const UDP: u8 = 17;
        let transport = self.packet.transport?;
        let bytes = match transport.protocol {
            // Where the length of a TCP header is, in words of four bytes. It is read as a word of the frame.
            TCP => usize::from(self.case.frame.get(transport.at + 12..transport.at + 16)?[0] >> 4) * 4,
            UDP => 8,
            _ => return None,
        };
        let is_whole = transport.protocol == UDP || bytes >= 20;
        (self.case.segment != 0 && is_whole).then_some(transport.at + bytes)
    }

    /// How many segments there are.
    fn segments(&self) -> Option<usize> {
        let payload = self.case.frame.len().saturating_sub(self.headers()?);
        Some(payload.div_ceil(usize::try_from(self.case.segment).ok()?))
    }

    /// All segments with their headers.
    fn bytes_on_wire(&self) -> u64 {
        let more = self
            .headers()
            .zip(self.segments())
            .map_or(0, |(headers, segments)| headers * segments.saturating_sub(1));
        (self.case.frame.len() + more) as u64
    }

    /// Whether the frame, or a segment of it, is larger than the uplink carries.
    fn is_too_big(&self) -> bool {
        let length = self.case.frame.len();
        let longest = match self.headers() {
            Some(headers) => length.min(headers + self.case.segment as usize),
            // The kernel knows how long the packets of a chain are; here, they fit.
            None if self.case.segment != 0 => 0,
            None => length,
        };
        longest > LONGEST as usize
    }

    fn is_to_local(&self) -> bool {
        self.world.is_local(self.packet.destination)
    }

    /// Whether a packet from a container is for a neighbour that is no gateway, and for which that container
    /// has not asked in the last minute.
    pub(crate) fn is_for_new_neighbour(&self) -> bool {
        let destination = self.packet.destination;
        let is_neighbour =
            self.world.is_on_link(destination) && self.world.gateway(destination) != Some(destination);
        let asked = self.memory.neighbours.get(&(self.sender(), destination));
        is_neighbour && asked.is_none_or(|seen| NOW - seen > NEIGHBOUR_LIFETIME)
    }

    /// Whether a packet is to or from a loopback address.
    fn is_by_loopback(&self) -> bool {
        self.packet.source.is_loopback() || self.packet.destination.is_loopback()
    }

    /// The key of what passes between a container's port and one of the host's.
    pub(crate) fn host_flow(&self, slot: u16, container_port: u16, host_port: u16) -> Option<HostFlowKey> {
        let protocol = self.packet.ports_header?.protocol.into();
        let version = if self.packet.source.is_ipv4() { 4 } else { 6 };
        Some(HostFlowKey { slot, container_port, host_port, protocol, version })
    }

    /// Whether a packet for the host's port belongs to what the host has begun; none of a later fragment.
    fn answers_the_host(&self) -> Option<bool> {
        let (transport, content) = (self.packet.ports_header?, self.packet.content);
        if transport.protocol == TCP {
            return Some(transport.flags.is_some_and(|(syn, ack)| !syn || ack));
        }
        let Content::Ports { source, destination } = content else { return None };
        let seen = self.memory.host_flows.get(&self.host_flow(self.sender(), source, destination)?);
        Some(seen.is_some_and(|seen| NOW - seen <= HOST_FLOW_LIFETIME))
    }

    /// Whether a packet is to or from `::1`.
    fn concerns_loopback6(&self) -> bool {
        let loopback = IpAddr::V6(std::net::Ipv6Addr::LOCALHOST);
        [self.packet.source, self.packet.destination].contains(&loopback)
    }

    /// The owner of the port by which a packet finds its way: the destination port, or the source port of
    /// what an error quotes.
    fn deciding_owner(&self) -> Option<u16> {
        match self.packet.content {
            Content::Ports { destination, .. } => Some(self.world.owner(destination)),
            Content::Error { quoted, .. } => quoted.ports().map(|(source, _)| self.world.owner(source)),
            _ => None,
        }
    }

    /// The neighbour that gets a packet for the outside.
    fn next_hop(&self) -> Option<IpAddr> {
        let destination = self.packet.destination;
        if self.world.is_on_link(destination) { Some(destination) } else { self.world.gateway(destination) }
    }

    /// The container that has asked `peer` for an echo.
    fn asking_container(&self, peer: IpAddr, id: u16) -> Option<Asker> {
        self.memory.asker(self.world, peer, id).filter(|asker| asker.slot != HOST_SLOT)
    }

    /// Who gets the answer to an echo request, and with which identifier.
    fn answer_to(&self, peer: IpAddr, id: u16, at: Option<usize>) -> (u16, IcmpIdRewrite) {
        let asker = self.asking_container(peer, id).expect("an earlier row has found it");
        (asker.slot, at.map_or(IcmpIdRewrite::NONE, |at| IcmpIdRewrite::new(at, id, asker.id)))
    }

    /// The identifier with which the sender's echo request leaves: of those that were tried the first that
    /// nobody keeps, or that it has already for this identifier of its own. None if at least eight were tried
    /// in vain.
    pub(crate) fn outside_id(&self, id: u16) -> Option<u16> {
        const TRIES: usize = 8;
        let peer = self.packet.destination;
        let generation = self.world.containers.get(&self.sender()).copied().unwrap_or_default();
        let own = Asker { slot: self.sender(), generation, id };
        let is_own = |tried: u16| self.memory.asker(self.world, peer, tried) == Some(own);
        let is_free =
            |tried: u16| is_own(tried) || self.memory.keeper(self.world, peer, tried, NOW).is_none();
        if is_free(id) {
            return Some(id);
        }
        let chosen = self.tried.iter().copied().find(|tried| is_free(*tried));
        // Who gives up earlier is wrong, whatever it says.
        chosen.or_else(|| (self.tried.len() < TRIES).then_some(!id))
    }
}
