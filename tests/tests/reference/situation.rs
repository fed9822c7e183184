//! A packet in its world, as the rows of the specification see it.

use std::net::IpAddr;

use portmap_common::{
    flow_state::{
        HOST_CONNECTION_LIFETIME, HOST_CONNECTION_REFRESH, HOST_FLOW_LIFETIME, HOST_TCP_LIFETIME,
        HostConnection, HostConnectionKey, HostFlowKey, NEIGHBOUR_CHECK_INTERVAL, NEIGHBOUR_LIFETIME,
    },
    hook_point::HookPoint,
    reason::Reason,
    slot::{HOST_SLOT, slot_of_veth},
};
use portmap_ebpf::{Verdict, verdict::IcmpIdRewrite};

use crate::{
    differential::NOW,
    spec_parser::{self, Content, InnerContent, InnerPacket, ParsedFrame, PortsHeader, loopback_slot},
    spec_state::{IdOwner, SpecState, in_map},
    world::{Case, LONGEST, World},
};

/// `IPPROTO_TCP`.
pub(crate) const TCP: u8 = 6;
/// `IPPROTO_SCTP`, the only protocol with lists of packets in place of segments, which have this size.
const SCTP: u8 = 132;
const GSO_BY_FRAGS: u32 = 0xffff;

/// The way of a packet out of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// To this neighbour.
    Known(IpAddr),
    /// To the destination, which is a neighbour that the kernel must resolve: the only answer of the FIB in
    /// this test.
    Asked,
}

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

impl ParsedFrame {
    pub(crate) fn error_1_to_4(&self) -> Option<Reason> {
        self.error_frame.or(self.error_header)
    }

    /// Returns whether the packet is ARP or ICMP, for which other traffic waits.
    pub(crate) fn is_control(&self) -> bool {
        let is_icmp = self.protocol == Some(spec_parser::icmp(self.source.is_ipv4()));
        is_icmp || self.error_frame == Some(Reason::Arp)
    }

    pub(crate) const fn is_echo(&self) -> bool {
        matches!(self.content, Content::EchoRequest { .. } | Content::EchoReply { .. })
    }

    pub(crate) const fn inner(&self) -> Option<InnerPacket> {
        let Content::Error { inner, .. } = self.content else { return None };
        Some(inner)
    }
}

impl InnerPacket {
    /// Returns source and destination port.
    pub(crate) const fn ports(&self) -> Option<(u16, u16)> {
        let InnerContent::Ports { source, destination } = self.content else { return None };
        Some((source, destination))
    }
}

impl Situation<'_> {
    pub(crate) fn is_hosts(&self, port: u16) -> bool {
        self.world.owner(port) == HOST_SLOT
    }

    /// Returns the container behind a veth or with a loopback device.
    pub(crate) fn sender(&self) -> u16 {
        if let HookPoint::VethIngress(slot) = self.case.hook { slot } else { loopback_slot(self.case) }
    }

    pub(crate) fn is_senders(&self, port: u16) -> bool {
        self.world.owner(port) == self.sender()
    }

    pub(crate) fn drop(&self, reason: Reason) -> Verdict {
        Verdict::Drop { slot: self.sender(), reason }
    }

    pub(crate) fn deliver_local(&self) -> Verdict {
        Verdict::DeliverLocal(self.sender())
    }

    /// Returns whether the sender's limit applies to the packet.
    pub(crate) fn is_limited(&self) -> bool {
        let limit = self.world.limits.get(&self.sender());
        limit.is_some_and(|limit| limit.counts_local == 1 || !self.is_to_local())
    }

    pub(crate) fn exceeds_limit(&self) -> bool {
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
    pub(crate) fn gso_error(&self) -> Option<Reason> {
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
    pub(crate) fn headers(&self) -> Option<usize> {
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
    pub(crate) fn segments(&self) -> Option<usize> {
        let payload = self.case.frame.len().saturating_sub(self.headers()?);
        Some(payload.div_ceil(usize::try_from(self.case.segment).ok()?))
    }

    /// Returns the bytes of all segments with their headers.
    pub(crate) fn bytes_on_wire(&self) -> u64 {
        let more = self
            .headers()
            .zip(self.segments())
            .map_or(0, |(headers, segments)| headers * segments.saturating_sub(1));
        (self.case.frame.len() + more) as u64
    }

    /// Returns the packets and bytes that are counted for the frame if it is delivered: those of its segments
    /// if they are known, else one packet.
    pub(crate) fn on_wire(&self) -> (u64, u64) {
        let has_error = self.packet.error_1_to_4().or(self.packet.error_content).or(self.gso_error());
        match self.segments() {
            Some(segments) if has_error.is_none() => (segments.max(1) as u64, self.bytes_on_wire()),
            _ => (1, self.case.frame.len() as u64),
        }
    }

    /// Returns whether the frame or one of its segments exceeds the uplink's MTU.
    pub(crate) fn is_too_big(&self) -> bool {
        let length = self.case.frame.len();
        let longest = match self.headers() {
            Some(headers) => length.min(headers + self.case.segment as usize),
            // Only the kernel knows the lengths of the packets in a list; in this test the MTU allows them.
            None if self.case.segment != 0 => 0,
            None => length,
        };
        longest > LONGEST as usize
    }

    pub(crate) fn is_to_local(&self) -> bool {
        self.world.is_local(self.packet.destination)
    }

    /// Returns the way of a packet out of the machine; `None` if there is no route.
    pub(crate) fn way(&self) -> Option<Way> {
        let destination = self.packet.destination;
        let gateway = self.world.gateway(destination);
        if self.world.is_direct(destination) {
            if !self.world.is_on_link(destination) {
                return gateway.map(Way::Known);
            }
            let used = self.memory.neighbours.get(&(self.sender(), destination));
            let is_checked = used.is_some_and(|(_, checked)| NOW - checked <= NEIGHBOUR_CHECK_INTERVAL);
            let opens = self.packet.ports_header.is_some_and(PortsHeader::opens);
            if gateway == Some(destination) || (is_checked && !opens) {
                return Some(Way::Known(destination));
            }
        }
        World::has_route(destination).then_some(Way::Asked)
    }

    /// Returns whether a packet from a container is to a neighbour for which the container has not been charged
    /// in the last minute.
    pub(crate) fn is_for_new_neighbour(&self) -> bool {
        let used = self.memory.neighbours.get(&(self.sender(), self.packet.destination));
        let is_charged = used.is_some_and(|(seen, _)| *seen != 0 && NOW - seen <= NEIGHBOUR_LIFETIME);
        self.way() == Some(Way::Asked) && !is_charged
    }

    /// Returns the connection to which a packet with ports, or an error about one, would belong if it were the
    /// host's.
    pub(crate) fn connection(&self, is_from_outside: bool) -> Option<HostConnectionKey> {
        let (sender, receiver) = match self.packet.content {
            Content::Ports { source, destination } => {
                ((self.packet.source, source), (self.packet.destination, destination))
            }
            // The receiver of a packet sends the error.
            Content::Error { inner, .. } => {
                let (source, destination) = inner.ports()?;
                ((inner.destination, destination), (inner.source, source))
            }
            _ => return None,
        };
        let ((local, local_port), (peer, peer_port)) =
            if is_from_outside { (receiver, sender) } else { (sender, receiver) };
        let ((local, version), (peer, _)) = (in_map(local), in_map(peer));
        Some(HostConnectionKey { peer, local, peer_port, local_port, version })
    }

    /// Returns whether a packet belongs to a connection of the host's.
    pub(crate) fn is_of_host_connection(&self, is_from_outside: bool) -> bool {
        let key = self.connection(is_from_outside);
        let found = key.and_then(|key| self.memory.host_connections.get(&key));
        found.is_some_and(|connection| NOW <= connection.until)
    }

    /// Returns the connection that a packet of the host's begins, continues or ends, with its new state.
    pub(crate) fn tracked(&self) -> Option<(HostConnectionKey, HostConnection)> {
        let Content::Ports { source, .. } = self.packet.content else { return None };
        let is_left_alone = self.packet.error_1_to_4().or(self.packet.error_content).is_some()
            || slot_of_veth(self.case.ingress) != HOST_SLOT
            || !self.world.is_shared(self.packet.source)
            || self.is_hosts(source);
        if is_left_alone {
            return None;
        }
        let key = self.connection(false)?;
        let before = self.memory.host_connections.get(&key).filter(|before| NOW <= before.until);
        if before.is_none() && self.packet.ports_header.is_some_and(PortsHeader::only_answers) {
            return None;
        }
        let was_closing = before.is_some_and(|before| before.closing == 1);
        let (opens, ends, is_tcp) = self
            .packet
            .ports_header
            .map_or((false, false, false), |header| (header.opens(), header.ends(), header.protocol == TCP));
        let closes = ends || (was_closing && !opens);
        let lifetime = if is_tcp && !closes { HOST_TCP_LIFETIME } else { HOST_CONNECTION_LIFETIME };
        let after = HostConnection { until: NOW + lifetime, closing: closes.into(), reserved: 0 };
        let is_known = before.is_some_and(|before| {
            was_closing == closes && after.until <= before.until + HOST_CONNECTION_REFRESH
        });
        (!is_known).then_some((key, after))
    }

    /// Returns whether a packet is from or to a loopback address.
    pub(crate) fn is_by_loopback(&self) -> bool {
        self.packet.source.is_loopback() || self.packet.destination.is_loopback()
    }

    /// Returns the key of a flow between a container's port and one of the host's.
    pub(crate) fn host_flow(&self, slot: u16, container_port: u16, host_port: u16) -> Option<HostFlowKey> {
        let protocol = self.packet.ports_header?.protocol.into();
        let version = if self.packet.source.is_ipv4() { 4 } else { 6 };
        Some(HostFlowKey { slot, container_port, host_port, protocol, version })
    }

    /// Returns whether a packet to a port of the host's is a reply; `None` for a subsequent fragment.
    pub(crate) fn is_reply_to_host(&self) -> Option<bool> {
        let (transport, content) = (self.packet.ports_header?, self.packet.content);
        if transport.protocol == TCP {
            return Some(!transport.opens());
        }
        let Content::Ports { source, destination } = content else { return None };
        let seen = self.memory.host_flows.get(&self.host_flow(self.sender(), source, destination)?);
        Some(seen.is_some_and(|seen| NOW - seen <= HOST_FLOW_LIFETIME))
    }

    /// Returns whether a packet is from or to `::1`.
    pub(crate) fn is_by_loopback6(&self) -> bool {
        let loopback = IpAddr::V6(std::net::Ipv6Addr::LOCALHOST);
        [self.packet.source, self.packet.destination].contains(&loopback)
    }

    /// Returns the owner of the port that determines the receiver: the destination port, or the source port
    /// of an error's inner packet.
    pub(crate) fn owner_of_target(&self) -> Option<u16> {
        match self.packet.content {
            Content::Ports { destination, .. } => Some(self.world.owner(destination)),
            Content::Error { inner, .. } => inner.ports().map(|(source, _)| self.world.owner(source)),
            _ => None,
        }
    }

    /// Returns the container that owns an identifier towards `peer`.
    pub(crate) fn owner_of_id(&self, peer: IpAddr, id: u16) -> Option<IdOwner> {
        self.memory.owner(self.world, peer, id).filter(|owner| owner.slot != HOST_SLOT)
    }

    /// Returns the receiver of the reply to an echo request, and the rewrite of its identifier.
    pub(crate) fn reply_to(&self, peer: IpAddr, id: u16, at: Option<usize>) -> (u16, IcmpIdRewrite) {
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
