//! Well-formed packets of every shape.

use portmap_common::hook_point::HookPoint;
use std::net::IpAddr;

use etherparse::{
    IpAuthHeader, IpFragOffset, IpNumber, Ipv4Header, Ipv6FragmentHeader, Ipv6Header, Ipv6RawExtHeader,
    ip_number,
};

use crate::{
    spec_state::{Carried, Datagram},
    world::{macs, scope},
};

/// Protocols with ports: TCP, UDP, DCCP, SCTP, UDP-Lite.
pub(crate) const WITH_PORTS: [u8; 5] = [6, 17, 33, 132, 136];
pub(crate) const UDP: u8 = 17;
pub(crate) const FRAGMENT: u8 = 44;
/// The identification of every datagram.
const ID: u16 = 0x1234;
const ETHERNET: usize = 14;

/// A kind of packet, without addresses and ports.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub(crate) name: String,
    pub(crate) is_ipv6: bool,
    /// Bytes of IPv4 options.
    pub(crate) options: usize,
    /// IPv6 extension headers, among them the fragment header of what is no whole packet.
    pub(crate) extensions: Vec<u8>,
    pub(crate) piece: Piece,
    pub(crate) content: Content,
    /// How many bytes are left of the content.
    pub(crate) cut: usize,
}

/// How much of a datagram there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    Whole,
    First,
    Later,
}

/// What follows the headers.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    Ports(u8),
    EchoRequest,
    EchoReply,
    /// A message of ICMP of either version with this type and code.
    Message(u8, u8),
    Error(u8, u8, Box<Shape>),
    Other(u8),
}

/// The ends of a packet and of the packet that it quotes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) quoted_source: IpAddr,
    pub(crate) quoted_destination: IpAddr,
}

/// A frame in which ports or an identifier can be put.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    pub(crate) bytes: Vec<u8>,
    numbers: Numbers,
    /// Of which datagram it is the first fragment.
    pub(crate) first: Option<(Datagram, Carried)>,
    /// Of which datagram it is a later fragment.
    pub(crate) later: Option<(Datagram, Carried)>,
}

/// Where the numbers are by which a packet finds its way.
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
            piece: Piece::Whole,
            content,
            cut: usize::MAX,
        }
    }

    /// Whether ports or an identifier are in it or in its first fragment.
    pub(crate) fn has_numbers(&self) -> bool {
        match &self.content {
            Content::Ports(_) | Content::EchoRequest | Content::EchoReply => true,
            Content::Error(_, _, quoted) => quoted.has_numbers(),
            Content::Message(..) | Content::Other(_) => false,
        }
    }

    /// Whether nothing is in it that needs not be.
    const fn is_bare(&self) -> bool {
        self.options == 0
            && self.extensions.is_empty()
            && self.cut == usize::MAX
            && matches!(self.piece, Piece::Whole)
    }

    /// Whether it is among those of which no port is left out.
    pub(crate) fn is_among_the_first(&self) -> bool {
        let is_first = match &self.content {
            Content::Error(1 | 3, 1 | 4, quoted) => {
                quoted.is_bare() && matches!(quoted.content, Content::Ports(UDP))
            }
            Content::Ports(_) | Content::EchoRequest | Content::EchoReply => true,
            _ => false,
        };
        is_first && self.is_bare()
    }

    pub(crate) const fn is_error(&self) -> bool {
        matches!(self.content, Content::Error(..))
    }

    /// The shape as a frame at a hook; `sender` is the container that sends it, if one does.
    pub(crate) fn frame(&self, hook: HookPoint, sender: u16, ends: &Ends) -> Template {
        let (to, from) = macs(hook, sender);
        let mut bytes = [&to[..], &from[..]].concat();
        bytes.extend(if self.is_ipv6 { [0x86, 0xdd] } else { [0x08, 0x00] });
        let (packet, numbers) = self.packet(ends);
        bytes.extend(packet);
        let carried = match self.content {
            Content::EchoRequest => Carried::EchoRequest(0),
            Content::EchoReply => Carried::EchoReply(0),
            _ => Carried::Ports { source: 0, destination: 0 },
        };
        let datagram = Datagram {
            scope: scope(hook, sender),
            source: ends.source,
            destination: ends.destination,
            id: ID.into(),
            protocol: (!self.is_ipv6).then(|| self.content.protocol(false)),
        };
        let is = |piece| (self.piece == piece && self.has_numbers()).then_some((datagram, carried));
        let (first, later) = (is(Piece::First), is(Piece::Later));
        Template { bytes, numbers: numbers.behind(ETHERNET), first, later }
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
        // The numbers of a later fragment are in the first one.
        let numbers =
            if self.piece == Piece::Later { Numbers::None } else { numbers.behind(packet.len() - length) };
        (packet, numbers)
    }

    fn ipv4(&self, protocol: IpNumber, content: Vec<u8>, ends: &Ends) -> Vec<u8> {
        let mut header = Ipv4Header {
            identification: ID,
            more_fragments: self.piece == Piece::First,
            fragment_offset: self.offset(),
            time_to_live: 64,
            protocol,
            source: v4(ends.source),
            destination: v4(ends.destination),
            ..Ipv4Header::default()
        };
        // Options that do nothing.
        header.options = vec![1; self.options].as_slice().try_into().expect("at most forty bytes");
        header.set_payload_len(content.len()).expect("a short packet");
        header.header_checksum = header.calc_header_checksum();
        [header.to_bytes().to_vec(), content].concat()
    }

    fn ipv6(&self, protocol: IpNumber, content: Vec<u8>, ends: &Ends) -> Vec<u8> {
        let (mut next, mut packet) = (protocol, content);
        for (place, extension) in self.extensions.iter().enumerate().rev() {
            // Headers of several lengths.
            let body = 6 + 8 * (place % 3);
            let header = match IpNumber(*extension) {
                ip_number::IPV6_FRAG => {
                    let more = self.piece == Piece::First;
                    Ipv6FragmentHeader::new(next, self.offset(), more, ID.into()).to_bytes().to_vec()
                }
                ip_number::AUTH => {
                    let value = vec![0xaa; 4 * (place % 4)];
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
        let offset = if self.piece == Piece::Later { 185 } else { 0 };
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
            // One that opens a connection.
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
            Self::Error(kind, code, quoted) => {
                let (source, destination) = (ends.quoted_source, ends.quoted_destination);
                let (packet, numbers) = quoted.packet(&Ends { source, destination, ..*ends });
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
    /// Puts in source and destination port; the first of them is an echo message's identifier.
    pub(crate) fn set(&mut self, source: u16, destination: u16) {
        match self.numbers {
            Numbers::None => {}
            Numbers::Ports(at) => {
                put(&mut self.bytes, at, source);
                put(&mut self.bytes, at + 2, destination);
            }
            Numbers::Id(at) => put(&mut self.bytes, at, source),
        }
        for (_, carried) in self.first.iter_mut().chain(&mut self.later) {
            *carried = match carried {
                Carried::Ports { .. } => Carried::Ports { source, destination },
                Carried::EchoRequest(_) => Carried::EchoRequest(source),
                Carried::EchoReply(_) => Carried::EchoReply(source),
                Carried::Contradicted => Carried::Contradicted,
            };
        }
    }
}

/// Writes a number, as far as it is not cut off.
fn put(bytes: &mut [u8], at: usize, number: u16) {
    for (place, byte) in bytes.iter_mut().skip(at).zip(number.to_be_bytes()) {
        *place = byte;
    }
}

impl Ends {
    pub(crate) fn new(source: impl Into<IpAddr>, destination: impl Into<IpAddr>) -> Self {
        let (source, destination) = (source.into(), destination.into());
        // What is quoted was on its way in the other direction.
        Self { source, destination, quoted_source: destination, quoted_destination: source }
    }

    pub(crate) fn quoting(self, quoted_source: IpAddr, quoted_destination: IpAddr) -> Self {
        Self { quoted_source, quoted_destination, ..self }
    }
}
