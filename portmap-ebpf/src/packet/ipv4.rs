//! IPv4 (RFC 791) and its ICMP (RFC 792).

use portmap_common::{
    flow_state::FragmentKey4,
    reason::Reason,
    tables::{Address4, Address6, Config, Listener},
};

use super::{
    ethernet,
    icmp_message::IcmpMessage,
    ip::{FragmentPosition, InnerHeader, IpHeader, IpVersion, L4Location, end_of_packet},
    l4::has_ports,
};
use crate::{
    frame::{Frame, Head as _},
    tables::Tables,
};

/// Length in bytes of the Ethernet header and an IPv4 header without options.
const HEAD: usize = ethernet::HEADER + MIN_HEADER;
/// Minimum length in bytes of the header.
const MIN_HEADER: usize = 20;
/// The "more fragments" bit and the fragment offset: zero in an unfragmented packet, nonzero in every
/// fragment.
const FRAGMENT: u16 = 0x3fff;
/// The fragment offset alone, which is zero in a first fragment.
const FRAGMENT_OFFSET: u16 = 0x1fff;
/// Code of "destination unreachable" with which routers report a path's MTU.
const FRAGMENTATION_NEEDED: u8 = 4;
/// Code of "time exceeded" that a receiver of fragments sends.
const REASSEMBLY: u8 = 1;

/// IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct V4;

impl IpVersion for V4 {
    /// The address as a number in host order.
    type Address = u32;

    type FragmentKey = FragmentKey4;

    const NUMBER: u32 = 4;
    const ICMP: u32 = 1;
    const MIN_L4_OFFSET: usize = HEAD;

    #[inline(always)]
    fn is_shared_at_all(_config: &Config) -> bool {
        true
    }

    #[inline(always)]
    fn is_shared(address: u32, tables: &impl Tables) -> bool {
        let config = tables.config();
        address == u32::from_be_bytes(config.host_ip.bytes)
            || (config.more_addresses4 != 0 && tables.is_address4(Address4 { bytes: address.to_be_bytes() }))
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
    fn is_v4_mapped(_address: u32) -> bool {
        false
    }

    #[inline(always)]
    fn to_mapped(address: u32) -> Address6 {
        let mapped = 0xffff << 32 | u128::from(address);
        Address6 { bytes: mapped.to_be_bytes() }
    }

    #[inline(always)]
    fn is_fast_path(frame: &impl Frame) -> bool {
        let Some(head) = frame.head::<HEAD>() else { return false };
        let is_unfragmented = head.be16::<20>() & FRAGMENT == 0;
        head.byte::<14>() == 0x45 && is_unfragmented && has_ports(u32::from(head.byte::<23>()))
    }

    #[inline(always)]
    fn parse(frame: &impl Frame) -> Result<IpHeader<Self>, Reason> {
        let head = frame.head::<HEAD>().ok_or(Reason::Malformed)?;
        let version_and_length = head.byte::<14>();
        let header_length = usize::from(version_and_length & 0x0f) * 4;
        let total_length = head.be16::<16>();
        let ip = IpHeader {
            source: head.be32::<26>(),
            destination: head.be32::<30>(),
            protocol: u32::from(head.byte::<23>()),
            payload: ethernet::HEADER + header_length,
            end: end_of_packet(frame, ethernet::HEADER, total_length),
            fragment: u32::from(head.be16::<20>() & FRAGMENT),
        };
        if version_and_length >> 4 != 4 || header_length < MIN_HEADER || ip.payload > ip.end {
            return Err(Reason::Malformed);
        }
        Ok(ip)
    }

    #[inline(always)]
    fn parse_inner(frame: &impl Frame, offset: usize, _end: usize) -> Option<InnerHeader<Self>> {
        let [first, id_and_fragment, ttl_and_protocol, source, destination] = frame.load_be32s(offset)?;
        let header_length = (first >> 24 & 0x0f) as usize * 4;
        let is_subsequent = id_and_fragment & u32::from(FRAGMENT_OFFSET) != 0;
        if first >> 28 != 4 || header_length < MIN_HEADER || is_subsequent {
            return None;
        }
        let [_, protocol, ..] = ttl_and_protocol.to_be_bytes();
        Some(InnerHeader {
            source,
            destination,
            protocol: u32::from(protocol),
            offset: offset + header_length,
        })
    }

    #[inline(always)]
    fn locate_l4(frame: &impl Frame, ip: &IpHeader<Self>) -> Result<L4Location, Reason> {
        let mut l4 = L4Location {
            protocol: ip.protocol,
            offset: ip.payload,
            position: FragmentPosition::Unfragmented,
            datagram: 0,
        };
        if ip.fragment != 0 {
            let [id_and_fragment] = frame.load_be32s(ethernet::HEADER + 4).ok_or(Reason::Malformed)?;
            l4.datagram = id_and_fragment >> 16;
            l4.position = if ip.fragment & u32::from(FRAGMENT_OFFSET) == 0 {
                FragmentPosition::First
            } else {
                FragmentPosition::Subsequent
            };
        }
        Ok(l4)
    }

    #[inline(always)]
    fn is_subsequent_fragment(ip: &IpHeader<Self>) -> bool {
        ip.fragment & u32::from(FRAGMENT_OFFSET) != 0
    }

    #[inline(always)]
    fn first_l4_word(frame: &impl Frame) -> Option<u32> {
        Some(frame.head::<{ HEAD + 4 }>()?.be32::<HEAD>())
    }

    #[inline(always)]
    fn classify_icmp(kind: u8, code: u8) -> IcmpMessage {
        match kind {
            0 => IcmpMessage::EchoReply,
            8 => IcmpMessage::EchoRequest,
            3 => IcmpMessage::Error { by_router: code == FRAGMENTATION_NEEDED },
            11 => IcmpMessage::Error { by_router: code != REASSEMBLY },
            12 => IcmpMessage::Error { by_router: false },
            _ => IcmpMessage::Other,
        }
    }

    #[inline(always)]
    fn fragment_key(ip: &IpHeader<Self>, id: u32, scope: u16) -> FragmentKey4 {
        FragmentKey4 {
            source: Address4 { bytes: ip.source.to_be_bytes() },
            destination: Address4 { bytes: ip.destination.to_be_bytes() },
            id,
            scope,
            protocol: low_half(ip.protocol),
        }
    }
}

/// Returns a protocol number as 16 bits.
#[inline(always)]
const fn low_half(protocol: u32) -> u16 {
    let [low, high, ..] = protocol.to_le_bytes();
    u16::from_le_bytes([low, high])
}
