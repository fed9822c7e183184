//! IPv6 (RFC 8200) and its ICMP (RFC 4443).

use portmap_common::{
    memory::{Fragment, FragmentKey6},
    reason::Reason,
    tables::{Address6, Config, Listener},
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

/// Bytes of the fixed header.
const FIXED: usize = 40;
/// Ethernet header and fixed header.
const HEAD: usize = ethernet::HEADER + FIXED;
/// Most extension headers that are followed. A sender has use for four different ones at most; the kernel itself
/// follows any number, but a program must come to an end.
const MOST_EXTENSIONS: usize = 6;

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

/// The sixteen bytes in two halves, the first byte the most significant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Address {
    high: u64,
    low: u64,
}

impl Address {
    #[inline(always)]
    const fn from_words(a: u32, b: u32, c: u32, d: u32) -> Self {
        Self { high: (a as u64) << 32 | b as u64, low: (c as u64) << 32 | d as u64 }
    }

    #[inline(always)]
    const fn from_bytes(address: Address6) -> Self {
        let address = u128::from_be_bytes(address.bytes);
        #[expect(clippy::cast_possible_truncation, reason = "they are the two halves")]
        let (high, low) = ((address >> 64) as u64, address as u64);
        Self { high, low }
    }

    #[inline(always)]
    const fn to_bytes(self) -> Address6 {
        Address6 { bytes: ((self.high as u128) << 64 | self.low as u128).to_be_bytes() }
    }

    #[inline(always)]
    const fn is_zero(self) -> bool {
        self.high | self.low == 0
    }

    /// Whether it can be the destination of a packet that leaves the host: it is not unspecified, multicast,
    /// link-local or an IPv4 address in disguise.
    #[inline(always)]
    const fn is_destination(self) -> bool {
        let is_multicast = self.high >> 56 == 0xff;
        let is_link_local = self.high >> 54 == 0xfe80 >> 6;
        !(self.is_zero() || is_multicast || is_link_local || self.is_mapped())
    }

    /// Whether it is an IPv4 address in disguise.
    #[inline(always)]
    const fn is_mapped(self) -> bool {
        self.high == 0 && self.low >> 32 == 0xffff
    }
}

impl Version for V6 {
    type Address = Address;

    const NUMBER: u32 = 6;
    const ICMP: u32 = 58;
    const PLAIN: usize = HEAD;

    #[inline(always)]
    fn shared(config: &Config) -> Option<Address> {
        let shared = Address::from_bytes(config.host_ip6);
        if shared.is_zero() { None } else { Some(shared) }
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
    fn is_disguised(address: Address) -> bool {
        address.is_mapped()
    }

    #[inline(always)]
    fn mapped(address: Address) -> Address6 {
        address.to_bytes()
    }

    #[inline(always)]
    fn next_hop(destination: Address, tables: &impl Tables) -> Result<NextHop, Reason> {
        let config = tables.config();
        if !destination.is_destination() {
            return Err(Reason::Destination);
        }
        if is_on_link(destination, config) {
            return Ok(NextHop::V6(destination.to_bytes().bytes));
        }
        let gateway = Address::from_bytes(config.gateway6);
        if gateway.is_zero() { Err(Reason::NoRoute) } else { Ok(NextHop::V6(gateway.to_bytes().bytes)) }
    }

    #[inline(always)]
    fn is_mere_neighbour(address: Address, config: &Config) -> bool {
        is_on_link(address, config) && address != Address::from_bytes(config.gateway6)
    }

    #[inline(always)]
    fn is_fast_path(frame: &impl Frame) -> bool {
        frame.head::<HEAD>().is_some_and(|head| has_ports(u32::from(head.byte::<20>())))
    }

    #[inline(always)]
    fn parse(frame: &impl Frame) -> Result<Ip<Self>, Reason> {
        let head = frame.head::<HEAD>().ok_or(Reason::Malformed)?;
        if head.byte::<14>() >> 4 != 6 {
            return Err(Reason::Malformed);
        }
        Ok(Ip {
            source: Address { high: head.double::<22>(), low: head.double::<30>() },
            destination: Address { high: head.double::<38>(), low: head.double::<46>() },
            protocol: u32::from(head.byte::<20>()),
            payload: HEAD,
            end: end_of_packet(frame, HEAD, head.half::<18>()),
            fragment: 0,
        })
    }

    #[inline(always)]
    fn quoted(frame: &impl Frame, offset: usize, end: usize) -> Option<Quoted<Self>> {
        let [first, length_and_next, s0, s1, s2, s3, d0, d1, d2, d3] = frame.words(offset)?;
        if first >> 28 != 6 {
            return None;
        }
        let [_, _, next, _] = length_and_next.to_be_bytes();
        let place = follow(frame, u32::from(next), offset + FIXED, end).ok()?;
        if place.is_later() {
            return None;
        }
        Some(Quoted {
            source: Address::from_words(s0, s1, s2, s3),
            destination: Address::from_words(d0, d1, d2, d3),
            protocol: place.protocol,
            offset: place.offset,
        })
    }

    #[inline(always)]
    fn place(frame: &impl Frame, ip: &Ip<Self>) -> Result<Place, Reason> {
        follow(frame, ip.protocol, ip.payload, ip.end)
    }

    #[inline(always)]
    fn is_later(_ip: &Ip<Self>) -> bool {
        false
    }

    #[inline(always)]
    fn first_word(frame: &impl Frame) -> Option<u32> {
        Some(frame.head::<{ HEAD + 4 }>()?.word::<HEAD>())
    }

    #[inline(always)]
    fn message(kind: u8, code: u8) -> Message {
        match kind {
            1 | 4 => Message::Error { by_router: false },
            2 => Message::Error { by_router: true },
            3 => Message::Error { by_router: code != REASSEMBLY },
            128 => Message::EchoRequest,
            129 => Message::EchoReply,
            133..=137 => Message::Neighbour,
            _ => Message::Other,
        }
    }

    #[inline(always)]
    fn fragment(tables: &impl Tables, ip: &Ip<Self>, id: u32, scope: u16) -> Option<Fragment> {
        tables.fragment6(&key(ip, id, scope))
    }

    #[inline(always)]
    fn set_fragment(tables: &impl Tables, ip: &Ip<Self>, id: u32, scope: u16, fragment: &Fragment) {
        tables.set_fragment6(&key(ip, id, scope), fragment);
    }
}

/// Follows extension headers from `offset` to what is behind them.
#[inline(always)]
fn follow(frame: &impl Frame, protocol: u32, offset: usize, end: usize) -> Result<Place, Reason> {
    let mut place = Place { protocol, offset, part: Part::Whole, datagram: 0 };
    for followed in 0..=MOST_EXTENSIONS {
        if !matches!(place.protocol, HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | AUTHENTICATION | FRAGMENT) {
            return Ok(place);
        }
        if followed == MOST_EXTENSIONS {
            break;
        }
        if place.offset + 8 > end {
            return Err(Reason::Malformed);
        }
        let [first, second] = frame.words(place.offset).ok_or(Reason::Malformed)?;
        let [next, length, high, low] = first.to_be_bytes();
        if place.protocol == FRAGMENT {
            let position = u16::from_be_bytes([high, low]);
            // Offset (all but the three lowest bits) and "more fragments"; a packet with neither is whole.
            if position & 0xfff9 != 0 {
                place.datagram = second;
                place.part = if position & 0xfff8 == 0 { Part::First } else { Part::Later };
            }
        }
        let length = match place.protocol {
            // It has no length of its own.
            FRAGMENT => 8,
            // In units of four bytes, two of them not counted.
            AUTHENTICATION => (usize::from(length) + 2) * 4,
            _ => (usize::from(length) + 1) * 8,
        };
        place.protocol = u32::from(next);
        place.offset += length;
        if place.offset > end {
            return Err(Reason::Malformed);
        }
        // What follows the fragment header of a later fragment is not a header.
        if place.is_later() {
            return Ok(place);
        }
    }
    Err(Reason::ExtensionHeaders)
}

#[inline(always)]
fn is_on_link(address: Address, config: &Config) -> bool {
    let (shared, mask) = (Address::from_bytes(config.host_ip6), Address::from_bytes(config.netmask6));
    (address.high ^ shared.high) & mask.high | (address.low ^ shared.low) & mask.low == 0
}

#[inline(always)]
fn key(ip: &Ip<V6>, id: u32, scope: u16) -> FragmentKey6 {
    FragmentKey6 {
        source: ip.source.to_bytes(),
        destination: ip.destination.to_bytes(),
        id,
        scope,
        reserved: 0,
    }
}
