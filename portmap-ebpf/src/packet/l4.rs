//! L4: the ports or the ICMP message of a packet, or those of an ICMP error's inner packet.

use super::ip::{IpHeader, IpVersion};
use crate::frame::Frame;

pub(crate) const TCP: u32 = 6;
pub(crate) const UDP: u32 = 17;
pub(crate) const DCCP: u32 = 33;
pub(crate) const SCTP: u32 = 132;
const UDP_LITE: u32 = 136;

/// Bytes of a transport header that a packet must contain: the length of UDP's header, which is the shortest,
/// and the least that a first fragment of TCP contains. So no field that a verdict uses can lie in a
/// subsequent fragment.
pub(super) const MIN_TRANSPORT: usize = 8;

/// Source and destination port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
}

impl Ports {
    /// The value of packets without ports.
    pub(super) const NONE: Self = Self { source: 0, destination: 0 };
}

/// Kinds of L4 content.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L4Kind {
    /// A transport with ports.
    Ports,
    /// An ICMP echo request.
    EchoRequest,
    /// An ICMP echo reply.
    EchoReply,
    /// An ICMP error whose inner packet has ports.
    IcmpErrorPorts,
    /// An ICMP error whose inner packet is an echo request.
    IcmpErrorEcho,
}

/// L4 content of a packet.
///
/// Every field has a value for every kind: for enums with payloads LLVM merges the arms and reads registers
/// that one arm left uninitialised; the verifier rejects that.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct L4Info<V: IpVersion> {
    /// Its kind.
    pub kind: L4Kind,
    /// Ports of the packet or of the inner packet; 0 if there are none.
    pub ports: Ports,
    /// Identifier of the echo message in the packet or in the inner packet; 0 if there is none.
    pub id: u16,
    /// Offset of that message in the frame; 0 if there is none.
    pub message: usize,
    /// Whether the frame contains the start of that message. A subsequent fragment contains only its data.
    pub has_message: bool,
    /// For an error: whether only routers have reason to send it.
    pub by_router: bool,
    /// For an error: source address of the inner packet; else unspecified.
    pub inner_source: V::Address,
    /// For an error: destination address of the inner packet; else unspecified.
    pub inner_destination: V::Address,
}

impl<V: IpVersion> L4Info<V> {
    #[inline(always)]
    pub(super) fn of_ports(ports: Ports) -> Self {
        Self::new(L4Kind::Ports, ports, 0, 0)
    }

    #[inline(always)]
    pub(super) fn of_echo(is_request: bool, id: u16, message: usize) -> Self {
        let kind = if is_request { L4Kind::EchoRequest } else { L4Kind::EchoReply };
        Self::new(kind, Ports::NONE, id, message)
    }

    #[inline(always)]
    pub(crate) fn new(kind: L4Kind, ports: Ports, id: u16, message: usize) -> Self {
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

/// L4 content of a packet, the location of its L4 header, and its position in a fragmented datagram.
#[derive(Clone, Copy, Debug)]
pub struct ParsedL4<V: IpVersion> {
    /// The content.
    pub info: L4Info<V>,
    /// Protocol of the L4 header in the packet; 0 in a subsequent fragment, which has no such header.
    pub protocol: u32,
    /// Protocol of the datagram, also in a subsequent fragment.
    pub datagram_protocol: u32,
    /// Offset of that header in the frame.
    pub transport: usize,
    /// Whether the packet is a fragment, the first or a subsequent one.
    pub is_fragment: bool,
    /// Whether it is the first fragment.
    pub(super) is_first: bool,
    /// The datagram's identification; 0 if the packet is not a first fragment.
    pub(super) datagram: u32,
}

impl<V: IpVersion> ParsedL4<V> {
    /// Returns the parsed L4 of an unfragmented packet.
    #[inline(always)]
    pub(crate) const fn unfragmented(info: L4Info<V>, protocol: u32, transport: usize) -> Self {
        Self {
            info,
            protocol,
            datagram_protocol: protocol,
            transport,
            is_fragment: false,
            is_first: false,
            datagram: 0,
        }
    }

    /// Returns the offset of the transport header whose checksum the sender may offload to the interface:
    /// that of an unfragmented packet with ports. 0 if there is none: kernels compute the checksums of
    /// fragments and of ICMP themselves.
    #[inline(always)]
    pub fn offloadable_transport(&self) -> usize {
        // In a subsequent fragment it is 0 in any case.
        if self.is_first || self.info.kind != L4Kind::Ports { 0 } else { self.transport }
    }

    /// Returns whether the packet is SCTP.
    #[inline(always)]
    pub const fn is_sctp(&self) -> bool {
        self.protocol == SCTP
    }
}

/// Returns whether a protocol's header starts with ports.
#[inline(always)]
pub(crate) const fn has_ports(protocol: u32) -> bool {
    matches!(protocol, TCP | UDP | DCCP | SCTP | UDP_LITE)
}

/// Returns the ports of the transport header at `offset`, if the packet contains enough of it.
#[inline(always)]
pub(crate) fn ports<V: IpVersion>(frame: &impl Frame, ip: &IpHeader<V>, offset: usize) -> Option<Ports> {
    if offset + MIN_TRANSPORT > ip.end {
        return None;
    }
    frame.load_be32s(offset).map(|[word]| ports_of(word))
}

/// Returns the ports in the first word of a transport header.
#[inline(always)]
pub(super) fn ports_of(word: u32) -> Ports {
    Ports { source: high(word), destination: low(word) }
}

/// Returns the first two bytes of a word in network order.
#[inline(always)]
pub(super) const fn high(word: u32) -> u16 {
    let [a, b, _, _] = word.to_be_bytes();
    u16::from_be_bytes([a, b])
}

/// Returns the last two bytes of a word in network order.
#[inline(always)]
const fn low(word: u32) -> u16 {
    let [_, _, c, d] = word.to_be_bytes();
    u16::from_be_bytes([c, d])
}
