//! The fast path and the slow path: how much of a packet a program parses.

use portmap_common::reason::Reason;

use super::{
    frag_cache, icmp,
    ip::{IpHeader, IpVersion},
    l4::{L4Info, MIN_TRANSPORT, ParsedL4, has_ports, ports, ports_of},
};
use crate::{frame::Frame, tables::Tables};

/// Most bytes of a frame that the slow path reads: an Ethernet header, and twice an IPv6 header with the
/// longest chain of extension headers that is followed and eight bytes of L4.
const MAX_READ: u32 = 14 + 2 * (40 + 6 * 256 * 8 + 8);

/// How much of a packet is parsed. A hook has one decision for both paths, and its first program contains the
/// fast path only.
pub trait ParsePath {
    /// Ensures that nothing except the kernel can change the bytes that [`Self::parse_l4`] reads: a
    /// container's root can send pages that it continues to write to. Returns false if the kernel is out of
    /// memory.
    fn linearize(frame: &impl Frame) -> bool;

    /// Parses the L4 content of a packet. The error is the reason why the packet has none that can be
    /// trusted.
    ///
    /// `scope` selects the sender whose first fragments are used, see
    /// [`FragmentKey4::scope`](portmap_common::flow_state::FragmentKey4::scope).
    fn parse_l4<V: IpVersion>(
        frame: &impl Frame,
        tables: &impl Tables,
        ip: &IpHeader<V>,
        scope: u16,
    ) -> Result<ParsedL4<V>, Reason>;

    /// Returns the IP header for the code behind [`Self::parse_l4`].
    ///
    /// The slow path reads it from the packet once more, so that the verifier does not carry facts about the
    /// addresses across every chain of extension headers.
    fn reload_ip_header<V: IpVersion>(frame: &impl Frame, ip: IpHeader<V>) -> Option<IpHeader<V>>;

    /// Returns the same number. On the slow path the verifier does not know it any more, see [`Frame::forget`].
    fn forget(frame: &impl Frame, number: u32) -> u32;
}

/// The fast path, for packets that satisfy [`IpVersion::is_fast_path`].
#[derive(Clone, Copy, Debug)]
pub struct FastPath;

/// The slow path, for all packets.
#[derive(Clone, Copy, Debug)]
pub struct SlowPath;

impl ParsePath for FastPath {
    #[inline(always)]
    fn linearize(_frame: &impl Frame) -> bool {
        // `Frame::head`, which is all that this path reads, does that itself.
        true
    }

    #[inline(always)]
    fn parse_l4<V: IpVersion>(
        frame: &impl Frame,
        _tables: &impl Tables,
        ip: &IpHeader<V>,
        _scope: u16,
    ) -> Result<ParsedL4<V>, Reason> {
        if V::MIN_L4_OFFSET + MIN_TRANSPORT > ip.end {
            return Err(Reason::Malformed);
        }
        let word = V::first_l4_word(frame).ok_or(Reason::Malformed)?;
        Ok(ParsedL4::unfragmented(L4Info::of_ports(ports_of(word)), ip.protocol, V::MIN_L4_OFFSET))
    }

    #[inline(always)]
    fn reload_ip_header<V: IpVersion>(_frame: &impl Frame, ip: IpHeader<V>) -> Option<IpHeader<V>> {
        Some(ip)
    }

    #[inline(always)]
    fn forget(_frame: &impl Frame, number: u32) -> u32 {
        number
    }
}

impl ParsePath for SlowPath {
    #[inline(always)]
    fn linearize(frame: &impl Frame) -> bool {
        frame.linearize(MAX_READ)
    }

    #[inline(always)]
    fn parse_l4<V: IpVersion>(
        frame: &impl Frame,
        tables: &impl Tables,
        ip: &IpHeader<V>,
        scope: u16,
    ) -> Result<ParsedL4<V>, Reason> {
        let parsed = parse(frame, tables, ip, scope)?;
        // What follows would be verified for each of the protocols, in fragments and in whole packets.
        Ok(ParsedL4 {
            protocol: frame.forget(parsed.protocol),
            datagram_protocol: frame.forget(parsed.datagram_protocol),
            is_fragment: frame.forget(u32::from(parsed.is_fragment)) != 0,
            is_first: frame.forget(u32::from(parsed.is_first)) != 0,
            ..parsed
        })
    }

    #[inline(always)]
    fn reload_ip_header<V: IpVersion>(frame: &impl Frame, _ip: IpHeader<V>) -> Option<IpHeader<V>> {
        V::parse(frame).ok()
    }

    #[inline(always)]
    fn forget(frame: &impl Frame, number: u32) -> u32 {
        frame.forget(number)
    }
}

/// Parses the L4 content of any packet.
#[inline(always)]
fn parse<V: IpVersion>(
    frame: &impl Frame,
    tables: &impl Tables,
    ip: &IpHeader<V>,
    scope: u16,
) -> Result<ParsedL4<V>, Reason> {
    let l4 = V::locate_l4(frame, ip)?;
    let (protocol, transport) = (l4.protocol, l4.offset);
    if l4.is_subsequent() {
        let info = frag_cache::lookup(tables, ip, l4.datagram, scope).ok_or(Reason::Fragment)?;
        return Ok(ParsedL4 {
            info,
            protocol: 0,
            datagram_protocol: protocol,
            transport: 0,
            is_fragment: true,
            is_first: false,
            datagram: 0,
        });
    }
    let info = if has_ports(l4.protocol) {
        L4Info::of_ports(ports(frame, ip, l4.offset).ok_or(Reason::Malformed)?)
    } else if l4.protocol == V::ICMP {
        icmp::parse(frame, ip, &l4)?
    } else {
        return Err(Reason::Protocol);
    };
    let is_first = l4.is_first();
    Ok(ParsedL4 {
        info,
        protocol,
        datagram_protocol: protocol,
        transport,
        is_fragment: is_first,
        is_first,
        datagram: l4.datagram,
    })
}
