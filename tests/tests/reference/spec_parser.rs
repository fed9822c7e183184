//! Parses frames with a packet library, in the order of the specification ("Parsing a frame").

use std::net::IpAddr;

use etherparse::{
    EtherType, Ethernet2HeaderSlice, IpAuthHeaderSlice, Ipv4HeaderSlice, Ipv6FragmentHeaderSlice,
    Ipv6HeaderSlice, Ipv6RawExtHeaderSlice, UdpHeaderSlice, ether_type, ip_number,
};
use portmap_common::{
    hook_point::HookPoint,
    reason::Reason,
    slot::{HOST_SLOT, slot_of_loopback},
};

use crate::{
    spec_state::{CachedContent, Datagram, SpecState},
    world::{Case, World, scope},
};

/// A parsed frame.
#[derive(Clone, Debug)]
pub(crate) struct ParsedFrame {
    /// Error of steps 1 and 2.
    pub(crate) error_frame: Option<Reason>,
    /// Error of steps 3 and 4.
    pub(crate) error_header: Option<Reason>,
    /// Error of steps 5 and 6.
    pub(crate) error_content: Option<Reason>,
    pub(crate) to_mac: [u8; 6],
    pub(crate) from_mac: [u8; 6],
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// Protocol field of the IP header.
    pub(crate) protocol: Option<u8>,
    /// L4 header behind all extension headers.
    pub(crate) transport: Option<Transport>,
    /// L4 content, if there is no error.
    pub(crate) content: Content,
    /// Transport header with ports, if the packet contains it.
    pub(crate) ports_header: Option<PortsHeader>,
    /// Datagram of a first fragment.
    pub(crate) first_of: Option<Datagram>,
}

/// A transport header with ports.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PortsHeader {
    pub(crate) protocol: u8,
    /// Flags of TCP, if the packet contains them and the two bytes behind them.
    pub(crate) flags: Option<Flags>,
    /// The type of the first chunk of SCTP, or of the packet of DCCP, if the packet contains its word.
    pub(crate) kind: Option<u8>,
}

/// Flags of a TCP segment.
#[expect(clippy::struct_excessive_bools, reason = "each is a bit of the header")]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flags {
    pub(crate) fin: bool,
    pub(crate) syn: bool,
    pub(crate) rst: bool,
    pub(crate) ack: bool,
}

impl PortsHeader {
    const TCP: u8 = 6;
    const DCCP: u8 = 33;
    const SCTP: u8 = 132;

    /// Returns whether a TCP segment opens a connection, or is too short to exclude that.
    pub(crate) fn opens(self) -> bool {
        self.protocol == Self::TCP && self.flags.is_none_or(|flags| flags.syn && !flags.ack)
    }

    /// Returns whether the packet accepts or refuses a connection.
    pub(crate) fn only_answers(self) -> bool {
        match self.protocol {
            Self::TCP => self.flags.is_some_and(|flags| flags.rst || flags.syn && flags.ack),
            Self::SCTP => matches!(self.kind, Some(2 | 6 | 14)),
            Self::DCCP => matches!(self.kind, Some(1 | 7)),
            _ => false,
        }
    }

    /// Returns whether a TCP segment ends a connection.
    pub(crate) fn ends(self) -> bool {
        self.protocol == Self::TCP && self.flags.is_some_and(|flags| flags.fin || flags.rst)
    }

    /// Returns whether a TCP segment aborts a connection.
    pub(crate) fn aborts(self) -> bool {
        self.protocol == Self::TCP && self.flags.is_some_and(|flags| flags.rst)
    }
}

/// The header behind the IP header and its extension headers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transport {
    pub(crate) protocol: u8,
    /// Its offset in the frame.
    pub(crate) at: usize,
    pub(crate) is_fragment: bool,
}

/// L4 content of a packet.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Content {
    None,
    Ports {
        source: u16,
        destination: u16,
    },
    /// Offset of the message, unless it is in another fragment.
    EchoRequest {
        id: u16,
        at: Option<usize>,
    },
    EchoReply {
        id: u16,
        at: Option<usize>,
    },
    Error {
        kind: u8,
        code: u8,
        inner: InnerPacket,
    },
}

/// Inner packet of an ICMP error.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InnerPacket {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) content: InnerContent,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum InnerContent {
    Ports { source: u16, destination: u16 },
    EchoRequest { id: u16, at: usize },
}

const NOTHING: IpAddr = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);
const ETHERNET: usize = 14;
/// Most extension headers that are skipped.
const EXTENSION_HEADERS: usize = 6;
/// `IPPROTO_DCCP`, `IPPROTO_UDPLITE`.
const DCCP: u8 = 33;
const UDP_LITE: u8 = 136;

/// Parses a frame. `memory` contains the content of first fragments.
pub(crate) fn parse(case: &Case<'_>, world: &World, memory: &SpecState, now: u64) -> ParsedFrame {
    // The hook at `eth0` uses addresses only, and the one at the uplink's egress the content only.
    let is_ipv6_in_use =
        world.shares_ipv6() || matches!(case.hook, HookPoint::ContainerEth0Ingress | HookPoint::UplinkEgress);
    parse_either(case, is_ipv6_in_use, memory, now)
}

/// Parses a frame; step 3 depends on `is_ipv6_in_use`.
pub(crate) fn parse_either(
    case: &Case<'_>,
    is_ipv6_in_use: bool,
    memory: &SpecState,
    now: u64,
) -> ParsedFrame {
    let mut reading = ParsedFrame {
        error_frame: None,
        error_header: None,
        error_content: None,
        to_mac: [0; 6],
        from_mac: [0; 6],
        source: NOTHING,
        destination: NOTHING,
        protocol: None,
        transport: None,
        content: Content::None,
        ports_header: None,
        first_of: None,
    };
    let is_ipv6 = match read_ethernet(case, &mut reading) {
        Ok(is_ipv6) => is_ipv6,
        Err(reason) => {
            reading.error_frame = Some(reason);
            return reading;
        }
    };
    let header = match is_ipv6 {
        true if is_ipv6_in_use => read_ipv6(case.frame),
        true => Err(Reason::Ipv6),
        false => read_ipv4(case.frame),
    };
    let header = match header {
        Ok(header) => header,
        Err(reason) => {
            reading.error_header = Some(reason);
            return reading;
        }
    };
    reading.source = header.source;
    reading.destination = header.destination;
    reading.protocol = Some(match header.rest {
        Rest::V4 { protocol, .. } => protocol,
        Rest::V6 { next_header } => next_header,
    });
    match read_content(case, &header, memory, now, &mut reading) {
        Ok(content) => reading.content = content,
        Err(reason) => reading.error_content = Some(reason),
    }
    reading
}

/// Steps 1 and 2. Returns whether it is IPv6 rather than IPv4.
fn read_ethernet(case: &Case<'_>, reading: &mut ParsedFrame) -> Result<bool, Reason> {
    let is_from_outside = case.hook == HookPoint::UplinkIngress;
    if let Some(tag) = case.tag {
        let vlan = tag & 0xfff;
        if vlan != 0 || !is_from_outside {
            return Err(Reason::Vlan);
        }
    }
    let ethernet = Ethernet2HeaderSlice::from_slice(case.frame).map_err(|_short| Reason::Malformed)?;
    reading.to_mac = ethernet.destination();
    reading.from_mac = ethernet.source();
    match ethernet.ether_type() {
        // The kernel removes the first tag, so a tag in the frame is a second one.
        EtherType::VLAN_TAGGED_FRAME | EtherType::PROVIDER_BRIDGING | EtherType::VLAN_DOUBLE_TAGGED_FRAME => {
            Err(Reason::Vlan)
        }
        ether_type::ARP => Err(Reason::Arp),
        ether_type::IPV4 => Ok(false),
        ether_type::IPV6 => Ok(true),
        _ => Err(Reason::EtherType),
    }
}

/// An IP header. `packet` is the packet without padding.
struct Header<'a> {
    source: IpAddr,
    destination: IpAddr,
    packet: &'a [u8],
    rest: Rest,
}

enum Rest {
    V4 { length: usize, protocol: u8, piece: Option<Part> },
    V6 { next_header: u8 },
}

/// Datagram of a fragment.
#[derive(Clone, Copy)]
struct Part {
    id: u32,
    is_first: bool,
}

/// Returns a packet without padding.
fn without_padding(packet: &[u8], length: usize) -> &[u8] {
    packet.get(..length).unwrap_or(packet)
}

/// Step 4 for IPv4.
fn read_ipv4(frame: &[u8]) -> Result<Header<'_>, Reason> {
    let packet = &frame[ETHERNET..];
    let header = Ipv4HeaderSlice::from_slice(packet).map_err(|_wrong| Reason::Malformed)?;
    let length = header.slice().len();
    let packet = match header.total_len() {
        0 => packet,
        total => without_padding(packet, total.into()),
    };
    if packet.len() < length {
        return Err(Reason::Malformed);
    }
    let piece = header.is_fragmenting_payload().then(|| Part {
        id: header.identification().into(),
        is_first: header.fragments_offset().value() == 0,
    });
    Ok(Header {
        source: header.source_addr().into(),
        destination: header.destination_addr().into(),
        packet,
        rest: Rest::V4 { length, protocol: header.protocol().0, piece },
    })
}

/// Step 4 for IPv6.
fn read_ipv6(frame: &[u8]) -> Result<Header<'_>, Reason> {
    let packet = &frame[ETHERNET..];
    let header = Ipv6HeaderSlice::from_slice(packet).map_err(|_wrong| Reason::Malformed)?;
    let packet = match header.payload_length() {
        0 => packet,
        payload => without_padding(packet, header.slice().len() + usize::from(payload)),
    };
    Ok(Header {
        source: header.source_addr().into(),
        destination: header.destination_addr().into(),
        packet,
        rest: Rest::V6 { next_header: header.next_header().0 },
    })
}

/// Steps 5 and 6.
fn read_content(
    case: &Case<'_>,
    header: &Header<'_>,
    memory: &SpecState,
    now: u64,
    reading: &mut ParsedFrame,
) -> Result<Content, Reason> {
    let (protocol, offset, piece) = match header.rest {
        Rest::V4 { length, protocol, piece } => (protocol, length, piece),
        Rest::V6 { next_header } => skip_extension_headers(next_header, header.packet, 40)?,
    };
    reading.transport = Some(Transport { protocol, at: ETHERNET + offset, is_fragment: piece.is_some() });
    let is_ipv4 = header.source.is_ipv4();
    if let Some(piece) = piece {
        let datagram = Datagram {
            scope: scope(case.hook, loopback_slot(case)),
            source: header.source,
            destination: header.destination,
            id: piece.id,
            protocol: is_ipv4.then_some(protocol),
        };
        if !piece.is_first {
            return match memory.content(&datagram, now) {
                Some(CachedContent::Ports { source, destination }) => {
                    Ok(Content::Ports { source, destination })
                }
                Some(CachedContent::EchoRequest(id)) => Ok(Content::EchoRequest { id, at: None }),
                Some(CachedContent::EchoReply(id)) => Ok(Content::EchoReply { id, at: None }),
                Some(CachedContent::Conflict) | None => Err(Reason::Fragment),
            };
        }
        reading.first_of = Some(datagram);
    }
    let (message, at) = (&header.packet[offset..], ETHERNET + offset);
    if has_ports(protocol) {
        // All of them have the ports at UDP's offsets.
        let ports = UdpHeaderSlice::from_slice(message).map_err(|_short| Reason::Malformed)?;
        let flags = message.get(..16).map(|header| {
            let is_set = |bit: u8| header[13] & bit != 0;
            Flags { fin: is_set(0x01), syn: is_set(0x02), rst: is_set(0x04), ack: is_set(0x10) }
        });
        let kind = match protocol {
            PortsHeader::SCTP => message.get(..16).map(|header| header[12]),
            PortsHeader::DCCP => message.get(..12).map(|header| header[8] >> 1 & 0b1111),
            _ => None,
        };
        reading.ports_header = Some(PortsHeader { protocol, flags, kind });
        return Ok(Content::Ports { source: ports.source_port(), destination: ports.destination_port() });
    }
    if protocol != icmp(is_ipv4) {
        return Err(Reason::Protocol);
    }
    let [kind, code, _, _, id @ .., _, _] = *message.first_chunk::<8>().ok_or(Reason::Malformed)?;
    let (id, at_start) = (u16::from_be_bytes(id), Some(at));
    match (is_ipv4, kind) {
        (true, 8) | (false, 128) => Ok(Content::EchoRequest { id, at: at_start }),
        (true, 0) | (false, 129) => Ok(Content::EchoReply { id, at: at_start }),
        (true, 3 | 11 | 12) | (false, 1..=4) => {
            if piece.is_some() {
                return Err(Reason::Fragment);
            }
            let inner = parse_inner(is_ipv4, &message[8..], at + 8).ok_or(Reason::Quoted)?;
            Ok(Content::Error { kind, code, inner })
        }
        (false, 133..=137) => Err(Reason::Neighbour),
        _ => Err(Reason::Icmp),
    }
}

/// Parses the inner packet of an ICMP error, without its length fields. `None` if it is not valid.
fn parse_inner(is_ipv4: bool, packet: &[u8], at: usize) -> Option<InnerPacket> {
    let (source, destination, protocol, offset, piece) = if is_ipv4 {
        let header = Ipv4HeaderSlice::from_slice(packet).ok()?;
        let is_first = header.fragments_offset().value() == 0;
        let piece = Part { id: 0, is_first };
        let offset = header.slice().len();
        let (source, destination) = (header.source_addr().into(), header.destination_addr().into());
        (source, destination, header.protocol().0, offset, Some(piece))
    } else {
        let header = Ipv6HeaderSlice::from_slice(packet).ok()?;
        let (protocol, offset, piece) = skip_extension_headers(header.next_header().0, packet, 40).ok()?;
        (header.source_addr().into(), header.destination_addr().into(), protocol, offset, piece)
    };
    if piece.is_some_and(|piece: Part| !piece.is_first) {
        return None;
    }
    let message = packet.get(offset..)?;
    let content = if has_ports(protocol) {
        let [s0, s1, d0, d1] = *message.first_chunk()?;
        InnerContent::Ports {
            source: u16::from_be_bytes([s0, s1]),
            destination: u16::from_be_bytes([d0, d1]),
        }
    } else if protocol == icmp(is_ipv4) {
        let [kind, _, _, _, id @ .., _, _] = *message.first_chunk::<8>()?;
        if kind != if is_ipv4 { 8 } else { 128 } {
            return None;
        }
        InnerContent::EchoRequest { id: u16::from_be_bytes(id), at: at + offset }
    } else {
        return None;
    };
    Some(InnerPacket { source, destination, content })
}

/// Skips IPv6 extension headers, and returns the protocol and offset of the header behind them, and the
/// fragment. Of several fragment headers the last one that marks a fragment is used.
fn skip_extension_headers(
    mut next: u8,
    packet: &[u8],
    mut offset: usize,
) -> Result<(u8, usize, Option<Part>), Reason> {
    let mut piece = None;
    for skipped in 0.. {
        let is_fragment_header = next == ip_number::IPV6_FRAG.0;
        let is_extension_header = matches!(next, 0 | 43 | 51 | 60) || is_fragment_header;
        if !is_extension_header {
            break;
        }
        if skipped == EXTENSION_HEADERS {
            return Err(Reason::ExtensionHeaders);
        }
        let rest = &packet[offset..];
        if is_fragment_header {
            let header = Ipv6FragmentHeaderSlice::from_slice(rest).map_err(|_short| Reason::Malformed)?;
            next = header.next_header().0;
            offset += header.slice().len();
            let is_first = header.fragment_offset().value() == 0;
            if header.is_fragmenting_payload() {
                piece = Some(Part { id: header.identification(), is_first });
            }
            if !is_first {
                break;
            }
            continue;
        }
        let length;
        (next, length) = if next == ip_number::AUTH.0 {
            authentication_header(rest)?
        } else {
            let header = Ipv6RawExtHeaderSlice::from_slice(rest).map_err(|_short| Reason::Malformed)?;
            (header.next_header().0, header.slice().len())
        };
        offset += length;
    }
    Ok((next, offset, piece))
}

/// Returns the next header and the length of an authentication header.
fn authentication_header(bytes: &[u8]) -> Result<(u8, usize), Reason> {
    match IpAuthHeaderSlice::from_slice(bytes) {
        Ok(header) => Ok((header.next_header().0, header.slice().len())),
        // A header without authentication data is too short for the library, but has a valid length field.
        Err(_) => match bytes {
            [next, 0, ..] if bytes.len() >= 8 => Ok((*next, 8)),
            _ => Err(Reason::Malformed),
        },
    }
}

fn has_ports(protocol: u8) -> bool {
    const TCP: u8 = ip_number::TCP.0;
    const UDP: u8 = ip_number::UDP.0;
    const SCTP: u8 = ip_number::SCTP.0;
    matches!(protocol, TCP | UDP | DCCP | SCTP | UDP_LITE)
}

/// Returns the protocol number of ICMP.
pub(crate) fn icmp(is_ipv4: bool) -> u8 {
    if is_ipv4 { ip_number::ICMP.0 } else { ip_number::IPV6_ICMP.0 }
}

/// Returns the slot in the MAC address of a frame from a container's loopback device; 0 if there is none.
pub(crate) fn loopback_slot(case: &Case<'_>) -> u16 {
    let ethernet = Ethernet2HeaderSlice::from_slice(case.frame).ok();
    ethernet.and_then(|ethernet| slot_of_loopback(ethernet.source())).unwrap_or(HOST_SLOT)
}
