//! What a packet carries: ports, an echo message, or an error about another packet.

use portmap_common::{
    memory::{CONTRADICTION, FRAGMENT_LIFETIME, Fragment},
    reason::Reason,
};

use super::ip::{Ip, Message, Place, Version};
use crate::{frame::Frame, tables::Tables};

pub(crate) const TCP: u32 = 6;
pub(crate) const UDP: u32 = 17;
const DCCP: u32 = 33;
pub(crate) const SCTP: u32 = 132;
const UDP_LITE: u32 = 136;

/// Bytes of a transport header that must be there: the whole of UDP's, which is the shortest, and what the first
/// fragment of a TCP segment has at least. Nothing that a verdict reads can then lie in a later fragment.
const SHORTEST_TRANSPORT: usize = 8;
/// Bytes of an ICMP message that must be there.
const ICMP_HEADER: usize = 8;

/// Most bytes of a frame that are read: an Ethernet header, twice an IPv6 header with as many extensions as are followed,
/// each as long as can be, and what is behind them.
const READ_AT_MOST: u32 = 14 + 2 * (40 + 6 * 256 * 8 + 8);

/// Source and destination port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
}

impl Ports {
    /// What takes the place of ports where there are none.
    const NONE: Self = Self { source: 0, destination: 0 };
}

/// What a packet can carry.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A transport with ports.
    Ports,
    /// An echo request.
    EchoRequest,
    /// An echo reply.
    EchoReply,
    /// An ICMP error that quotes a transport with ports.
    IcmpErrorPorts,
    /// An ICMP error that quotes an echo request.
    IcmpErrorEcho,
}

/// What a packet carries.
///
/// Every field always has a value, whatever the kind: of variants with fields of their own, the compiler makes code
/// that computes with registers which one variant has not set, and the verifier refuses that.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Content<V: Version> {
    /// What it is.
    pub kind: Kind,
    /// The ports, of the packet itself or of the quoted one; 0 if there are none.
    pub ports: Ports,
    /// The identifier of the echo message, the packet's own or the quoted one; 0 if there is none.
    pub id: u16,
    /// Where that message starts in the frame; 0 if it does not.
    pub message: usize,
    /// Whether it starts in the frame. It does not in a later fragment, which has only data of it.
    pub has_message: bool,
    /// For an error: whether only routers have reason to send it.
    pub by_router: bool,
    /// For an error: source of the quoted packet; else unspecified.
    pub inner_source: V::Address,
    /// For an error: destination of the quoted packet; else unspecified.
    pub inner_destination: V::Address,
}

impl<V: Version> Content<V> {
    #[inline(always)]
    fn of_ports(ports: Ports) -> Self {
        Self::new(Kind::Ports, ports, 0, 0)
    }

    #[inline(always)]
    fn of_echo(is_request: bool, id: u16, message: usize) -> Self {
        let kind = if is_request { Kind::EchoRequest } else { Kind::EchoReply };
        Self::new(kind, Ports::NONE, id, message)
    }

    #[inline(always)]
    pub(crate) fn new(kind: Kind, ports: Ports, id: u16, message: usize) -> Self {
        let (inner_source, inner_destination) = (V::Address::default(), V::Address::default());
        Self {
            kind,
            ports,
            id,
            message,
            has_message: false,
            by_router: false,
            inner_source,
            inner_destination,
        }
    }
}

/// What a packet carries, where, and what later fragments of it will need to know.
#[derive(Clone, Copy, Debug)]
pub struct Reading<V: Version> {
    /// What it carries.
    pub content: Content<V>,
    /// The protocol of the transport header that is in the packet, behind all extensions; 0 in a later fragment, which has none.
    pub protocol: u32,
    /// Where that header starts in the frame.
    pub transport: usize,
    /// Whether it is a fragment of a datagram, the first or a later one.
    pub is_fragment: bool,
    /// Whether it is the first one.
    is_first: bool,
    /// That datagram's identification; 0 if it is none.
    datagram: u32,
}

impl<V: Version> Reading<V> {
    /// What a whole packet with this transport carries.
    #[cfg(test)]
    pub(crate) fn whole(content: Content<V>, protocol: u32, transport: usize) -> Self {
        Self { content, protocol, transport, is_fragment: false, is_first: false, datagram: 0 }
    }

    /// Where the transport header starts whose checksum a sender can leave to the interface: that of a whole packet. 0 if
    /// there is none; of fragments and of ICMP, kernels compute it themselves.
    #[inline(always)]
    pub fn summed(&self) -> usize {
        // A later fragment has none in any case.
        if self.is_first || self.content.kind != Kind::Ports { 0 } else { self.transport }
    }

    /// Whether it is a packet of SCTP.
    #[inline(always)]
    pub const fn is_sctp(&self) -> bool {
        self.protocol == SCTP
    }

    /// Writes down what the first fragment of a datagram carried. To be done for those that may pass.
    #[inline(always)]
    pub fn remember(&self, tables: &impl Tables, ip: &Ip<V>, scope: u16) {
        if !self.is_first {
            return;
        }
        let content = &self.content;
        let (kind, source, destination) = match content.kind {
            Kind::Ports => (Fragment::PORTS, content.ports.source, content.ports.destination),
            Kind::EchoRequest => (Fragment::ECHO_REQUEST, content.id, 0),
            Kind::EchoReply => (Fragment::ECHO_REPLY, content.id, 0),
            Kind::IcmpErrorPorts | Kind::IcmpErrorEcho => return,
        };
        let mut fragment = Fragment { seen: tables.now(), kind, source, destination };
        // Of two that say different things, the receiver may take either, so neither speaks for later ones.
        if let Some(before) = V::fragment(tables, ip, self.datagram, scope)
            && fragment.seen.wrapping_sub(before.seen) <= CONTRADICTION
        {
            if before.kind == Fragment::CONTRADICTED {
                return;
            }
            if before.kind != kind || before.source != source || before.destination != destination {
                fragment =
                    Fragment { seen: fragment.seen, kind: Fragment::CONTRADICTED, source: 0, destination: 0 };
            }
        }
        V::set_fragment(tables, ip, self.datagram, scope, &fragment);
    }
}

/// How much of a packet is parsed: one decision serves both paths, and a program can decide on most packets without the code
/// that the others need.
pub trait ParsePath {
    /// Whether what [`Self::read`] reads can be changed by nobody any more: a container's root can have the kernel send
    /// memory that it goes on writing to. False if the kernel has no memory to see to that.
    fn linearize(frame: &impl Frame) -> bool;

    /// Reads what a packet carries. The error says why it carries nothing that could be trusted.
    ///
    /// `scope` is whose first fragments count, see
    /// [`FragmentKey4::scope`](portmap_common::memory::FragmentKey4::scope).
    fn read<V: Version>(
        frame: &impl Frame,
        tables: &impl Tables,
        ip: &Ip<V>,
        scope: u16,
    ) -> Result<Reading<V>, Reason>;

    /// The IP header once more, for what is decided after [`Self::read`].
    ///
    /// A verifier remembers what a program has found out about an address, and takes the ways through the packet once
    /// more for each thing that it may be. So what was found out before is forgotten instead: the header of a packet
    /// with many ways is read again.
    fn again<V: Version>(frame: &impl Frame, ip: Ip<V>) -> Option<Ip<V>>;
}

/// The fast path, for plain packets: [`Version::is_fast_path`].
#[derive(Clone, Copy, Debug)]
pub struct FastPath;

/// The slow path, for all packets.
#[derive(Clone, Copy, Debug)]
pub struct SlowPath;

impl ParsePath for FastPath {
    #[inline(always)]
    fn linearize(_frame: &impl Frame) -> bool {
        // All is read from the head.
        true
    }

    #[inline(always)]
    fn read<V: Version>(
        frame: &impl Frame,
        _tables: &impl Tables,
        ip: &Ip<V>,
        _scope: u16,
    ) -> Result<Reading<V>, Reason> {
        if V::PLAIN + SHORTEST_TRANSPORT > ip.end {
            return Err(Reason::Malformed);
        }
        let word = V::first_word(frame).ok_or(Reason::Malformed)?;
        Ok(Reading {
            content: Content::of_ports(ports_of(word)),
            protocol: ip.protocol,
            transport: V::PLAIN,
            is_fragment: false,
            is_first: false,
            datagram: 0,
        })
    }

    #[inline(always)]
    fn again<V: Version>(_frame: &impl Frame, ip: Ip<V>) -> Option<Ip<V>> {
        Some(ip)
    }
}

impl ParsePath for SlowPath {
    #[inline(always)]
    fn linearize(frame: &impl Frame) -> bool {
        frame.linearize(READ_AT_MOST)
    }

    #[inline(always)]
    fn read<V: Version>(
        frame: &impl Frame,
        tables: &impl Tables,
        ip: &Ip<V>,
        scope: u16,
    ) -> Result<Reading<V>, Reason> {
        read(frame, tables, ip, scope)
    }

    #[inline(always)]
    fn again<V: Version>(frame: &impl Frame, _ip: Ip<V>) -> Option<Ip<V>> {
        V::parse(frame).ok()
    }
}

#[inline(always)]
fn read<V: Version>(
    frame: &impl Frame,
    tables: &impl Tables,
    ip: &Ip<V>,
    scope: u16,
) -> Result<Reading<V>, Reason> {
    let place = V::place(frame, ip)?;
    let (protocol, transport) = (place.protocol, place.offset);
    if place.is_later() {
        let content = recall(tables, ip, place.datagram, scope).ok_or(Reason::Fragment)?;
        return Ok(Reading {
            content,
            protocol: 0,
            transport: 0,
            is_fragment: true,
            is_first: false,
            datagram: 0,
        });
    }
    let content = if has_ports(place.protocol) {
        Content::of_ports(ports(frame, ip, place.offset).ok_or(Reason::Malformed)?)
    } else if place.protocol == V::ICMP {
        icmp(frame, ip, &place)?
    } else {
        return Err(Reason::Protocol);
    };
    let is_first = place.is_first();
    Ok(Reading { content, protocol, transport, is_fragment: is_first, is_first, datagram: place.datagram })
}

/// Whether a protocol's header starts with ports.
#[inline(always)]
pub(crate) const fn has_ports(protocol: u32) -> bool {
    matches!(protocol, TCP | UDP | DCCP | SCTP | UDP_LITE)
}

/// What the first fragment of a datagram carried, if it is known.
#[inline(always)]
fn recall<V: Version>(tables: &impl Tables, ip: &Ip<V>, datagram: u32, scope: u16) -> Option<Content<V>> {
    let fragment = V::fragment(tables, ip, datagram, scope)?;
    if tables.now().wrapping_sub(fragment.seen) > FRAGMENT_LIFETIME {
        return None;
    }
    if fragment.kind == Fragment::CONTRADICTED {
        return None;
    }
    Some(match fragment.kind {
        Fragment::ECHO_REQUEST => Content::of_echo(true, fragment.source, 0),
        Fragment::ECHO_REPLY => Content::of_echo(false, fragment.source, 0),
        _ => Content::of_ports(Ports { source: fragment.source, destination: fragment.destination }),
    })
}

/// The ports of a transport header, if enough of it is there.
#[inline(always)]
pub(crate) fn ports<V: Version>(frame: &impl Frame, ip: &Ip<V>, offset: usize) -> Option<Ports> {
    if offset + SHORTEST_TRANSPORT > ip.end {
        return None;
    }
    frame.words(offset).map(|[word]| ports_of(word))
}

#[inline(always)]
fn ports_of(word: u32) -> Ports {
    Ports { source: high(word), destination: low(word) }
}

#[inline(always)]
fn icmp<V: Version>(frame: &impl Frame, ip: &Ip<V>, place: &Place) -> Result<Content<V>, Reason> {
    if place.offset + ICMP_HEADER > ip.end {
        return Err(Reason::Malformed);
    }
    let [kind_and_sum, id_and_number] = frame.words(place.offset).ok_or(Reason::Malformed)?;
    let id = high(id_and_number);
    match message::<V>(kind_and_sum) {
        Message::EchoRequest => Ok(Content { has_message: true, ..Content::of_echo(true, id, place.offset) }),
        Message::EchoReply => Ok(Content { has_message: true, ..Content::of_echo(false, id, place.offset) }),
        // An error is smaller than any MTU; a fragment of one is a trick.
        Message::Error { .. } if place.is_first() => Err(Reason::Fragment),
        Message::Error { by_router } => {
            let quoted = quoted(frame, ip, place.offset + ICMP_HEADER).ok_or(Reason::Quoted)?;
            Ok(Content { by_router, ..quoted })
        }
        Message::Neighbour => Err(Reason::Neighbour),
        Message::Other => Err(Reason::Icmp),
    }
}

/// Reads the packet that an error quotes at `offset`.
#[inline(always)]
fn quoted<V: Version>(frame: &impl Frame, ip: &Ip<V>, offset: usize) -> Option<Content<V>> {
    let packet = V::quoted(frame, offset, ip.end)?;
    let (kind, ports, id, message) = if has_ports(packet.protocol) {
        // Eight bytes are guaranteed, but nothing behind the ports is looked at.
        if packet.offset + 4 > ip.end {
            return None;
        }
        (Kind::IcmpErrorPorts, ports_of(frame.words(packet.offset).map(|[word]| word)?), 0, 0)
    } else if packet.protocol == V::ICMP {
        if packet.offset + ICMP_HEADER > ip.end {
            return None;
        }
        let [kind_and_sum, id_and_number] = frame.words(packet.offset)?;
        if message::<V>(kind_and_sum) != Message::EchoRequest {
            return None;
        }
        (Kind::IcmpErrorEcho, Ports::NONE, high(id_and_number), packet.offset)
    } else {
        return None;
    };
    let (inner_source, inner_destination) = (packet.source, packet.destination);
    let has_message = kind == Kind::IcmpErrorEcho;
    Some(Content { kind, ports, id, message, has_message, by_router: false, inner_source, inner_destination })
}

/// What kind of ICMP message starts with this word.
#[inline(always)]
fn message<V: Version>(word: u32) -> Message {
    let [kind, code, ..] = word.to_be_bytes();
    V::message(kind, code)
}

/// The first two bytes of a word.
#[inline(always)]
const fn high(word: u32) -> u16 {
    let [a, b, _, _] = word.to_be_bytes();
    u16::from_be_bytes([a, b])
}

/// The last two bytes of a word.
#[inline(always)]
const fn low(word: u32) -> u16 {
    let [_, _, c, d] = word.to_be_bytes();
    u16::from_be_bytes([c, d])
}
