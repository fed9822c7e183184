//! Well-formed packets of every shape.

use portmap_common::hook_point::HookPoint;
use std::net::IpAddr;

use etherparse::{
    IpAuthHeader, IpFragOffset, IpNumber, Ipv4Header, Ipv6FragmentHeader, Ipv6Header, Ipv6RawExtHeader,
    ip_number,
};

use crate::{
    spec_state::{CachedContent, Datagram},
    world::{macs, scope},
};

/// Protocols with ports: TCP, UDP, DCCP, SCTP, UDP-Lite.
pub(crate) const WITH_PORTS: [u8; 5] = [6, 17, 33, 132, 136];
pub(crate) const UDP: u8 = 17;
pub(crate) const FRAGMENT: u8 = 44;
/// The identification of every datagram.
const ID: u16 = 0x1234;
const ETHERNET: usize = 14;

/// The shape of a packet, without addresses and ports.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) name: String,
    pub(crate) is_ipv6: bool,
    /// Length of IPv4 options in bytes.
    pub(crate) options: usize,
    /// IPv6 extension headers, including the fragment header of a fragment.
    pub(crate) extensions: Vec<u8>,
    pub(crate) part: Part,
    pub(crate) content: Content,
    /// Length in bytes to which the content is truncated.
    pub(crate) cut: usize,
}

/// Position of a packet in its datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Whole,
    First,
    Subsequent,
}

/// L4 content.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    Ports(u8),
    EchoRequest,
    EchoReply,
    /// A message of either version of ICMP with this type and code.
    Message(u8, u8),
    Error(u8, u8, Box<Shape>),
    Other(u8),
}

/// Addresses of a packet and of its inner packet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) inner_source: IpAddr,
    pub(crate) inner_destination: IpAddr,
}

/// A frame whose ports or identifier can be set.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    pub(crate) bytes: Vec<u8>,
    numbers: Numbers,
    /// Its datagram, if it is a first fragment.
    pub(crate) first: Option<(Datagram, CachedContent)>,
    /// Its datagram, if it is a subsequent fragment.
    pub(crate) subsequent: Option<(Datagram, CachedContent)>,
}

/// Offsets of the ports or the identifier.
#[derive(Clone, Copy, Debug)]
enum Numbers {
    None,
    Ports(usize),
    Id(usize),
}

impl Shape {
    pub(crate) fn new(name: &str, is_ipv6: bool, content: Content) -> Self {
        let name = format!("{} {name}", if is_ipv6 { "IPv6" } else { "IPv4" });
        Self {
            name,
            is_ipv6,
            options: 0,
            extensions: Vec::new(),
            part: Part::Whole,
            content,
            cut: usize::MAX,
        }
    }

    /// Returns whether the packet or its first fragment contains ports or an identifier.
    pub(crate) fn has_numbers(&self) -> bool {
        match &self.content {
            Content::Ports(_) | Content::EchoRequest | Content::EchoReply => true,
            Content::Error(_, _, inner) => inner.has_numbers(),
            Content::Message(..) | Content::Other(_) => false,
        }
    }

    /// Returns whether it has no optional parts.
    const fn is_bare(&self) -> bool {
        self.options == 0
            && self.extensions.is_empty()
            && self.cut == usize::MAX
            && matches!(self.part, Part::Whole)
    }

    /// Returns whether all ports are tested with it.
    pub(crate) fn is_among_the_first(&self) -> bool {
        let is_first = match &self.content {
            Content::Error(1 | 3, 1 | 4, inner) => {
                inner.is_bare() && matches!(inner.content, Content::Ports(UDP))
            }
            Content::Ports(_) | Content::EchoRequest | Content::EchoReply => true,
            _ => false,
        };
        is_first && self.is_bare()
    }

    pub(crate) const fn is_error(&self) -> bool {
        matches!(self.content, Content::Error(..))
    }

    /// Returns the shape as a frame at a hook. `sender` is the sending container, if there is one.
    pub(crate) fn frame(&self, hook: HookPoint, sender: u16, ends: &Ends) -> Template {
        let (to, from) = macs(hook, sender);
        let mut bytes = [&to[..], &from[..]].concat();
        bytes.extend(if self.is_ipv6 { [0x86, 0xdd] } else { [0x08, 0x00] });
        let (packet, numbers) = self.packet(ends);
        bytes.extend(packet);
        let carried = match self.content {
            Content::EchoRequest => CachedContent::EchoRequest(0),
            Content::EchoReply => CachedContent::EchoReply(0),
            _ => CachedContent::Ports { source: 0, destination: 0 },
        };
        let datagram = Datagram {
            scope: scope(hook, sender),
            source: ends.source,
            destination: ends.destination,
            id: ID.into(),
            protocol: (!self.is_ipv6).then(|| self.content.protocol(false)),
        };
        let is = |part| (self.part == part && self.has_numbers()).then_some((datagram, carried));
        let (first, subsequent) = (is(Part::First), is(Part::Subsequent));
        Template { bytes, numbers: numbers.behind(ETHERNET), first, subsequent }
    }

    fn packet(&self, ends: &Ends) -> (Vec<u8>, Numbers) {
        let (mut content, numbers) = self.content.bytes(self.is_ipv6, ends);
        content.truncate(self.cut);
        let length = content.len();
        let protocol = IpNumber(self.content.protocol(self.is_ipv6));
        let packet = if self.is_ipv6 {
            self.ipv6(protocol, content, ends)
        } else {
            self.ipv4(protocol, content, ends)
        };
        // A subsequent fragment has its ports in the first one.
        let numbers =
            if self.part == Part::Subsequent { Numbers::None } else { numbers.behind(packet.len() - length) };
        (packet, numbers)
    }

    fn ipv4(&self, protocol: IpNumber, content: Vec<u8>, ends: &Ends) -> Vec<u8> {
        let mut header = Ipv4Header {
            identification: ID,
            more_fragments: self.part == Part::First,
            fragment_offset: self.offset(),
            time_to_live: 64,
            protocol,
            source: v4(ends.source),
            destination: v4(ends.destination),
            ..Ipv4Header::default()
        };
        // "No operation" options.
        header.options = vec![1; self.options].as_slice().try_into().expect("at most forty bytes");
        header.set_payload_len(content.len()).expect("a short packet");
        header.header_checksum = header.calc_header_checksum();
        [header.to_bytes().to_vec(), content].concat()
    }

    fn ipv6(&self, protocol: IpNumber, content: Vec<u8>, ends: &Ends) -> Vec<u8> {
        let (mut next, mut packet) = (protocol, content);
        for (index, extension) in self.extensions.iter().enumerate().rev() {
            // Headers of several lengths.
            let body = 6 + 8 * (index % 3);
            let header = match IpNumber(*extension) {
                ip_number::IPV6_FRAG => {
                    let more = self.part == Part::First;
                    Ipv6FragmentHeader::new(next, self.offset(), more, ID.into()).to_bytes().to_vec()
                }
                ip_number::AUTH => {
                    let value = vec![0xaa; 4 * (index % 4)];
                    IpAuthHeader::new(next, 1, 1, &value).expect("a short value").to_bytes().to_vec()
                }
                _ => {
                    let padding = vec![0; body];
                    Ipv6RawExtHeader::new_raw(next, &padding).expect("a short header").to_bytes().to_vec()
                }
            };
            next = IpNumber(*extension);
            packet = [header, packet].concat();
        }
        let header = Ipv6Header {
            payload_length: u16::try_from(packet.len()).expect("a short packet"),
            next_header: next,
            hop_limit: 64,
            source: v6(ends.source),
            destination: v6(ends.destination),
            ..Ipv6Header::default()
        };
        [header.to_bytes().to_vec(), packet].concat()
    }

    fn offset(&self) -> IpFragOffset {
        let offset = if self.part == Part::Subsequent { 185 } else { 0 };
        IpFragOffset::try_new(offset).expect("a small offset")
    }
}

fn v4(address: IpAddr) -> [u8; 4] {
    let IpAddr::V4(address) = address else { panic!("{address} in an IPv4 packet") };
    address.octets()
}

fn v6(address: IpAddr) -> [u8; 16] {
    let IpAddr::V6(address) = address else { panic!("{address} in an IPv6 packet") };
    address.octets()
}

impl Content {
    const fn protocol(&self, is_ipv6: bool) -> u8 {
        match self {
            Self::Ports(protocol) | Self::Other(protocol) => *protocol,
            _ if is_ipv6 => 58,
            _ => 1,
        }
    }

    fn bytes(&self, is_ipv6: bool, ends: &Ends) -> (Vec<u8>, Numbers) {
        let message = |kind, code| vec![kind, code, 0, 0, 0, 0, 0, 1];
        match self {
            // A SYN segment.
            Self::Ports(6) => {
                let mut header = vec![0; 20];
                header[13] = 0x02;
                (header, Numbers::Ports(0))
            }
            Self::Ports(_) => (vec![0; 12], Numbers::Ports(0)),
            Self::EchoRequest => (message(if is_ipv6 { 128 } else { 8 }, 0), Numbers::Id(4)),
            Self::EchoReply => (message(if is_ipv6 { 129 } else { 0 }, 0), Numbers::Id(4)),
            Self::Message(kind, code) => (message(*kind, *code), Numbers::None),
            Self::Other(_) => (vec![0; 24], Numbers::None),
            Self::Error(kind, code, inner) => {
                let (source, destination) = (ends.inner_source, ends.inner_destination);
                let (packet, numbers) = inner.packet(&Ends { source, destination, ..*ends });
                ([message(*kind, *code), packet].concat(), numbers.behind(8))
            }
        }
    }
}

impl Numbers {
    const fn behind(self, bytes: usize) -> Self {
        match self {
            Self::None => Self::None,
            Self::Ports(at) => Self::Ports(at + bytes),
            Self::Id(at) => Self::Id(at + bytes),
        }
    }
}

impl Template {
    /// Sets source and destination port. For an echo message the source port is the identifier.
    pub(crate) fn set(&mut self, source: u16, destination: u16) {
        match self.numbers {
            Numbers::None => {}
            Numbers::Ports(at) => {
                put(&mut self.bytes, at, source);
                put(&mut self.bytes, at + 2, destination);
            }
            Numbers::Id(at) => put(&mut self.bytes, at, source),
        }
        for (_, carried) in self.first.iter_mut().chain(&mut self.subsequent) {
            *carried = match carried {
                CachedContent::Ports { .. } => CachedContent::Ports { source, destination },
                CachedContent::EchoRequest(_) => CachedContent::EchoRequest(source),
                CachedContent::EchoReply(_) => CachedContent::EchoReply(source),
                CachedContent::Conflict => CachedContent::Conflict,
            };
        }
    }
}

/// Writes a number, unless its position is truncated.
fn put(bytes: &mut [u8], at: usize, number: u16) {
    for (index, byte) in bytes.iter_mut().skip(at).zip(number.to_be_bytes()) {
        *index = byte;
    }
}

impl Ends {
    pub(crate) fn new(source: impl Into<IpAddr>, destination: impl Into<IpAddr>) -> Self {
        let (source, destination) = (source.into(), destination.into());
        // The inner packet had the opposite direction.
        Self { source, destination, inner_source: destination, inner_destination: source }
    }

    pub(crate) fn with_inner(self, inner_source: IpAddr, inner_destination: IpAddr) -> Self {
        Self { inner_source, inner_destination, ..self }
    }
}
