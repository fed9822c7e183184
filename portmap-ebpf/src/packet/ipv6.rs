//! IPv6 (RFC 8200) and its ICMP (RFC 4443).

use portmap_common::{
    flow_state::FragmentKey6,
    reason::Reason,
    tables::{Address6, Config, Listener},
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

/// Length in bytes of the fixed header.
const FIXED: usize = 40;
/// Length in bytes of the Ethernet header and the fixed header.
const HEAD: usize = ethernet::HEADER + FIXED;
/// Most extension headers that are skipped. A sender needs four different ones at most. The kernel itself has
/// no limit, but a program must terminate.
const MAX_EXT_HEADERS: usize = 6;

const HOP_BY_HOP: u32 = 0;
const ROUTING: u32 = 43;
const FRAGMENT: u32 = 44;
const AUTHENTICATION: u32 = 51;
const DESTINATION_OPTIONS: u32 = 60;

/// Code of "time exceeded" that a receiver of fragments sends.
const REASSEMBLY: u8 = 1;

/// IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct V6;

/// An address as two numbers in host order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Address {
    /// First eight bytes.
    pub(crate) high: u64,
    /// Last eight bytes.
    pub(crate) low: u64,
}

impl Address {
    #[inline(always)]
    const fn from_words(a: u32, b: u32, c: u32, d: u32) -> Self {
        Self { high: (a as u64) << 32 | b as u64, low: (c as u64) << 32 | d as u64 }
    }

    #[inline(always)]
    pub(crate) const fn from_bytes(address: Address6) -> Self {
        let address = u128::from_be_bytes(address.bytes);
        #[expect(clippy::cast_possible_truncation, reason = "they are the two halves")]
        let (high, low) = ((address >> 64) as u64, address as u64);
        Self { high, low }
    }

    #[inline(always)]
    pub(crate) const fn to_bytes(self) -> Address6 {
        Address6 { bytes: ((self.high as u128) << 64 | self.low as u128).to_be_bytes() }
    }

    #[inline(always)]
    pub(crate) const fn is_zero(self) -> bool {
        self.high | self.low == 0
    }

    /// Returns whether it is a mapped IPv4 address.
    #[inline(always)]
    pub(crate) const fn is_mapped(self) -> bool {
        self.high == 0 && self.low >> 32 == 0xffff
    }
}

impl IpVersion for V6 {
    type Address = Address;

    type FragmentKey = FragmentKey6;

    const NUMBER: u32 = 6;
    const ICMP: u32 = 58;
    const MIN_L4_OFFSET: usize = HEAD;

    #[inline(always)]
    fn is_shared_at_all(config: &Config) -> bool {
        !Address::from_bytes(config.host_ip6).is_zero()
    }

    #[inline(always)]
    fn is_shared(address: Address, tables: &impl Tables) -> bool {
        let config = tables.config();
        address == Address::from_bytes(config.host_ip6)
            || (config.more_addresses6 != 0 && tables.is_address6(address.to_bytes()))
    }

    #[inline(always)]
    fn is_loopback(address: Address) -> bool {
        address.high == 0 && address.low == 1
    }

    #[inline(always)]
    fn is_loopback_only(address: Address) -> bool {
        Self::is_loopback(address)
    }

    #[inline(always)]
    fn is_listener(address: Address, listener: &Listener) -> bool {
        let (mask, wanted) = (Address::from_bytes(listener.mask6), Address::from_bytes(listener.address6));
        Address { high: address.high & mask.high, low: address.low & mask.low } == wanted
    }

    #[inline(always)]
    fn is_v4_mapped(address: Address) -> bool {
        address.is_mapped()
    }

    #[inline(always)]
    fn to_mapped(address: Address) -> Address6 {
        address.to_bytes()
    }

    #[inline(always)]
    fn is_fast_path(frame: &impl Frame) -> bool {
        frame.head::<HEAD>().is_some_and(|head| has_ports(u32::from(head.byte::<20>())))
    }

    #[inline(always)]
    fn parse(frame: &impl Frame) -> Result<IpHeader<Self>, Reason> {
        let head = frame.head::<HEAD>().ok_or(Reason::Malformed)?;
        if head.byte::<14>() >> 4 != 6 {
            return Err(Reason::Malformed);
        }
        Ok(IpHeader {
            source: Address { high: head.be64::<22>(), low: head.be64::<30>() },
            destination: Address { high: head.be64::<38>(), low: head.be64::<46>() },
            protocol: u32::from(head.byte::<20>()),
            payload: HEAD,
            end: end_of_packet(frame, HEAD, head.be16::<18>()),
            fragment: 0,
        })
    }

    #[inline(always)]
    fn parse_inner(frame: &impl Frame, offset: usize, end: usize) -> Option<InnerHeader<Self>> {
        let [first, length_and_next, s0, s1, s2, s3, d0, d1, d2, d3] = frame.load_be32s(offset)?;
        if first >> 28 != 6 {
            return None;
        }
        let [_, _, next, _] = length_and_next.to_be_bytes();
        let l4 = skip_ext_headers(frame, u32::from(next), offset + FIXED, end).ok()?;
        if l4.is_subsequent() {
            return None;
        }
        Some(InnerHeader {
            source: Address::from_words(s0, s1, s2, s3),
            destination: Address::from_words(d0, d1, d2, d3),
            protocol: l4.protocol,
            offset: l4.offset,
        })
    }

    #[inline(always)]
    fn locate_l4(frame: &impl Frame, ip: &IpHeader<Self>) -> Result<L4Location, Reason> {
        skip_ext_headers(frame, ip.protocol, ip.payload, ip.end)
    }

    #[inline(always)]
    fn is_subsequent_fragment(_ip: &IpHeader<Self>) -> bool {
        false
    }

    #[inline(always)]
    fn first_l4_word(frame: &impl Frame) -> Option<u32> {
        Some(frame.head::<{ HEAD + 4 }>()?.be32::<HEAD>())
    }

    #[inline(always)]
    fn classify_icmp(kind: u8, code: u8) -> IcmpMessage {
        match kind {
            1 | 4 => IcmpMessage::Error { by_router: false },
            2 => IcmpMessage::Error { by_router: true },
            3 => IcmpMessage::Error { by_router: code != REASSEMBLY },
            128 => IcmpMessage::EchoRequest,
            129 => IcmpMessage::EchoReply,
            133..=137 => IcmpMessage::Neighbour,
            _ => IcmpMessage::Other,
        }
    }

    #[inline(always)]
    fn fragment_key(ip: &IpHeader<Self>, id: u32, scope: u16) -> FragmentKey6 {
        FragmentKey6 {
            source: ip.source.to_bytes(),
            destination: ip.destination.to_bytes(),
            id,
            scope,
            reserved: 0,
        }
    }
}

/// Skips the extension headers from `offset` and locates the L4 header behind them.
#[inline(always)]
fn skip_ext_headers(
    frame: &impl Frame,
    protocol: u32,
    offset: usize,
    end: usize,
) -> Result<L4Location, Reason> {
    let mut l4 = L4Location { protocol, offset, position: FragmentPosition::Unfragmented, datagram: 0 };
    for skipped in 0..=MAX_EXT_HEADERS {
        if !matches!(l4.protocol, HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | AUTHENTICATION | FRAGMENT) {
            return Ok(l4);
        }
        if skipped == MAX_EXT_HEADERS {
            break;
        }
        if l4.offset + 8 > end {
            return Err(Reason::Malformed);
        }
        let [first, second] = frame.load_be32s(l4.offset).ok_or(Reason::Malformed)?;
        let [next, length, high, low] = first.to_be_bytes();
        if l4.protocol == FRAGMENT {
            let fragment = u16::from_be_bytes([high, low]);
            // The offset (all but the three lowest bits) and "more fragments". A packet with neither is
            // unfragmented.
            if fragment & 0xfff9 != 0 {
                l4.datagram = second;
                l4.position = if fragment & 0xfff8 == 0 {
                    FragmentPosition::First
                } else {
                    FragmentPosition::Subsequent
                };
            }
        }
        let length = match l4.protocol {
            // It has no length field.
            FRAGMENT => 8,
            // In units of four bytes, minus 2.
            AUTHENTICATION => (usize::from(length) + 2) * 4,
            _ => (usize::from(length) + 1) * 8,
        };
        l4.protocol = u32::from(next);
        l4.offset += length;
        if l4.offset > end {
            return Err(Reason::Malformed);
        }
        // The bytes behind the fragment header of a subsequent fragment are not a header.
        if l4.is_subsequent() {
            return Ok(l4);
        }
    }
    Err(Reason::ExtensionHeaders)
}
