//! IPv4 (RFC 791) and its ICMP (RFC 792).

use portmap_common::{
    memory::{Fragment, FragmentKey4},
    reason::Reason,
    tables::{Address4, Address6, Config, Listener},
};

use super::{
    content::has_ports,
    ethernet,
    ip::{Ip, Message, Part, Place, Quoted, Version, end_of_packet},
};
use crate::{
    frame::{Frame, Head as _},
    tables::Tables,
    verdict::NextHop,
};

/// Ethernet header and IPv4 header without options.
const HEAD: usize = ethernet::HEADER + SHORTEST;
/// Shortest header.
const SHORTEST: usize = 20;
/// The "more fragments" bit and the offset: either is set in every fragment, neither in a whole packet.
const FRAGMENT: u16 = 0x3fff;
/// The offset alone, zero in a first fragment.
const FRAGMENT_OFFSET: u16 = 0x1fff;
/// Code of "destination unreachable" that routers send to report a path's MTU.
const FRAGMENTATION_NEEDED: u8 = 4;
/// Code of "time exceeded" that a receiver of fragments sends.
const REASSEMBLY: u8 = 1;

/// IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct V4;

impl Version for V4 {
    /// The four bytes, the first one the most significant.
    type Address = u32;

    const NUMBER: u32 = 4;
    const ICMP: u32 = 1;
    const PLAIN: usize = HEAD;

    #[inline(always)]
    fn shared(config: &Config) -> Option<u32> {
        Some(u32::from_be_bytes(config.host_ip.bytes))
    }

    #[inline(always)]
    fn is_loopback(address: u32) -> bool {
        address & 0xff00_0000 == 0x7f00_0000
    }

    #[inline(always)]
    fn is_loopback_only(_address: u32) -> bool {
        false
    }

    #[inline(always)]
    fn is_listener(address: u32, listener: &Listener) -> bool {
        let mask = u32::from_be_bytes(listener.mask4.bytes);
        address & mask == u32::from_be_bytes(listener.address4.bytes)
    }

    #[inline(always)]
    fn is_disguised(_address: u32) -> bool {
        false
    }

    #[inline(always)]
    fn mapped(address: u32) -> Address6 {
        let mapped = 0xffff << 32 | u128::from(address);
        Address6 { bytes: mapped.to_be_bytes() }
    }

    #[inline(always)]
    fn next_hop(destination: u32, tables: &impl Tables) -> Result<NextHop, Reason> {
        let config = tables.config();
        // 0.0.0.0/8 is no destination; 224.0.0.0/4 and above are multicast, reserved and the limited broadcast.
        let first = destination >> 24;
        if first == 0 || first >= 224 {
            return Err(Reason::Destination);
        }
        // Of a network that lies inside the shared one, the kernel would make it a broadcast of a frame.
        if config.broadcasts != 0 && tables.is_broadcast(Address4 { bytes: destination.to_be_bytes() }) {
            return Err(Reason::Destination);
        }
        let mask = u32::from_be_bytes(config.netmask.bytes);
        if !is_on_link(destination, config) {
            let gateway = u32::from_be_bytes(config.gateway.bytes);
            return if gateway == 0 { Err(Reason::NoRoute) } else { Ok(NextHop::V4(gateway.to_be_bytes())) };
        }
        // The lowest and the highest address of a network are broadcasts, except in networks of one or two.
        let host_bits = destination & !mask;
        if !mask > 1 && (host_bits == 0 || host_bits == !mask) {
            return Err(Reason::Destination);
        }
        Ok(NextHop::V4(destination.to_be_bytes()))
    }

    #[inline(always)]
    fn is_mere_neighbour(address: u32, config: &Config) -> bool {
        is_on_link(address, config) && address != u32::from_be_bytes(config.gateway.bytes)
    }

    #[inline(always)]
    fn is_fast_path(frame: &impl Frame) -> bool {
        let Some(head) = frame.head::<HEAD>() else { return false };
        let is_whole = head.half::<20>() & FRAGMENT == 0;
        head.byte::<14>() == 0x45 && is_whole && has_ports(u32::from(head.byte::<23>()))
    }

    #[inline(always)]
    fn parse(frame: &impl Frame) -> Result<Ip<Self>, Reason> {
        let head = frame.head::<HEAD>().ok_or(Reason::Malformed)?;
        let version_and_length = head.byte::<14>();
        let header_length = usize::from(version_and_length & 0x0f) * 4;
        let total_length = head.half::<16>();
        let ip = Ip {
            source: head.word::<26>(),
            destination: head.word::<30>(),
            protocol: u32::from(head.byte::<23>()),
            payload: ethernet::HEADER + header_length,
            end: end_of_packet(frame, ethernet::HEADER, total_length),
            fragment: u32::from(head.half::<20>() & FRAGMENT),
        };
        if version_and_length >> 4 != 4 || header_length < SHORTEST || ip.payload > ip.end {
            return Err(Reason::Malformed);
        }
        Ok(ip)
    }

    #[inline(always)]
    fn quoted(frame: &impl Frame, offset: usize, _end: usize) -> Option<Quoted<Self>> {
        let [first, id_and_fragment, time_and_protocol, source, destination] = frame.words(offset)?;
        let header_length = (first >> 24 & 0x0f) as usize * 4;
        let is_later = id_and_fragment & u32::from(FRAGMENT_OFFSET) != 0;
        if first >> 28 != 4 || header_length < SHORTEST || is_later {
            return None;
        }
        let [_, protocol, ..] = time_and_protocol.to_be_bytes();
        Some(Quoted { source, destination, protocol: u32::from(protocol), offset: offset + header_length })
    }

    #[inline(always)]
    fn place(frame: &impl Frame, ip: &Ip<Self>) -> Result<Place, Reason> {
        let mut place = Place { protocol: ip.protocol, offset: ip.payload, part: Part::Whole, datagram: 0 };
        if ip.fragment != 0 {
            let [id_and_fragment] = frame.words(ethernet::HEADER + 4).ok_or(Reason::Malformed)?;
            place.datagram = id_and_fragment >> 16;
            place.part =
                if ip.fragment & u32::from(FRAGMENT_OFFSET) == 0 { Part::First } else { Part::Later };
        }
        Ok(place)
    }

    #[inline(always)]
    fn is_later(ip: &Ip<Self>) -> bool {
        ip.fragment & u32::from(FRAGMENT_OFFSET) != 0
    }

    #[inline(always)]
    fn first_word(frame: &impl Frame) -> Option<u32> {
        Some(frame.head::<{ HEAD + 4 }>()?.word::<HEAD>())
    }

    #[inline(always)]
    fn message(kind: u8, code: u8) -> Message {
        match kind {
            0 => Message::EchoReply,
            8 => Message::EchoRequest,
            3 => Message::Error { by_router: code == FRAGMENTATION_NEEDED },
            11 => Message::Error { by_router: code != REASSEMBLY },
            12 => Message::Error { by_router: false },
            _ => Message::Other,
        }
    }

    #[inline(always)]
    fn fragment(tables: &impl Tables, ip: &Ip<Self>, id: u32, scope: u16) -> Option<Fragment> {
        tables.fragment4(&key(ip, id, scope))
    }

    #[inline(always)]
    fn set_fragment(tables: &impl Tables, ip: &Ip<Self>, id: u32, scope: u16, fragment: &Fragment) {
        tables.set_fragment4(&key(ip, id, scope), fragment);
    }
}

#[inline(always)]
fn is_on_link(address: u32, config: &Config) -> bool {
    let mask = u32::from_be_bytes(config.netmask.bytes);
    (address ^ u32::from_be_bytes(config.host_ip.bytes)) & mask == 0
}

#[inline(always)]
fn key(ip: &Ip<V4>, id: u32, scope: u16) -> FragmentKey4 {
    FragmentKey4 {
        source: Address4 { bytes: ip.source.to_be_bytes() },
        destination: Address4 { bytes: ip.destination.to_be_bytes() },
        id,
        scope,
        protocol: protocol_in_header(ip.protocol),
    }
}

/// A protocol's number as the key has it.
#[inline(always)]
const fn protocol_in_header(protocol: u32) -> u16 {
    let [low, high, ..] = protocol.to_le_bytes();
    u16::from_le_bytes([low, high])
}
