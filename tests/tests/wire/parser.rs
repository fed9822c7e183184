//! Parser of frames from the receiver's point of view. It shares no code with the programs under test.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Protocols whose headers start with ports: TCP, UDP, DCCP, SCTP, UDP-Lite.
pub(crate) const WITH_PORTS: [u8; 5] = [6, 17, 33, 132, 136];
/// `IPPROTO_ICMP`, `IPPROTO_ICMPV6`, `IPPROTO_TCP`.
pub(crate) const ICMP: u8 = 1;
pub(crate) const ICMP6: u8 = 58;
pub(crate) const TCP: u8 = 6;

/// Bytes of an Ethernet header.
pub(crate) const ETHERNET: usize = 14;

/// Position of a packet in its datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FragmentPosition {
    Unfragmented,
    First,
    Subsequent,
}

/// The key by which a receiver reassembles a datagram.
pub(crate) type Datagram = (IpAddr, IpAddr, u32, u8);

/// A packet as its receiver parses it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packet<'a> {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// TTL or hop limit.
    pub(crate) hops: u8,
    pub(crate) protocol: u8,
    pub(crate) part: FragmentPosition,
    pub(crate) identification: u32,
    /// The data after the IP headers.
    pub(crate) rest: &'a [u8],
}

impl Packet<'_> {
    pub(crate) fn datagram(&self) -> Datagram {
        // IPv6 receivers ignore the protocol.
        let protocol = if self.source.is_ipv4() { self.protocol } else { 0 };
        (self.source, self.destination, self.identification, protocol)
    }

    pub(crate) fn has_ports(&self) -> bool {
        WITH_PORTS.contains(&self.protocol)
    }

    /// Returns source and destination port, if present.
    pub(crate) fn ports(&self) -> Option<(u16, u16)> {
        Some((half(self.rest, 0)?, half(self.rest, 2)?))
    }
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|half| u16::from_be_bytes(*half))
}

/// Parses an IP packet. With `is_embedded` it may be truncated, whatever its length field says.
pub(crate) fn packet(bytes: &[u8], is_ipv6: bool, is_embedded: bool) -> Result<Packet<'_>, &'static str> {
    if is_ipv6 { ipv6(bytes, is_embedded) } else { ipv4(bytes, is_embedded) }
}

fn ipv4(bytes: &[u8], is_embedded: bool) -> Result<Packet<'_>, &'static str> {
    let header: &[u8; 20] = bytes.first_chunk().ok_or("no whole IPv4 header")?;
    let length = usize::from(header[0] & 15) * 4;
    if header[0] >> 4 != 4 || length < 20 {
        return Err("no IPv4 header");
    }
    let mut end = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if is_embedded || end == 0 || end > bytes.len() {
        end = bytes.len();
    }
    let rest = bytes.get(length..end).ok_or("an IPv4 header that does not end in the packet")?;
    let address =
        |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]).into();
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    Ok(Packet {
        source: address(12),
        destination: address(16),
        hops: header[8],
        protocol: header[9],
        part: part(fragment & 0x1fff, fragment & 0x2000 != 0),
        identification: u16::from_be_bytes([header[4], header[5]]).into(),
        rest,
    })
}

fn part(offset: u16, more: bool) -> FragmentPosition {
    match (offset, more) {
        (0, false) => FragmentPosition::Unfragmented,
        (0, true) => FragmentPosition::First,
        _ => FragmentPosition::Subsequent,
    }
}

fn ipv6(bytes: &[u8], is_embedded: bool) -> Result<Packet<'_>, &'static str> {
    let header: &[u8; 40] = bytes.first_chunk().ok_or("no whole IPv6 header")?;
    if header[0] >> 4 != 6 {
        return Err("no IPv6 header");
    }
    let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    let mut end = 40 + length;
    if is_embedded || length == 0 || end > bytes.len() {
        end = bytes.len();
    }
    let address = |at: usize| {
        let octets: [u8; 16] = header[at..at + 16].try_into().expect("16 bytes");
        IpAddr::from(Ipv6Addr::from(octets))
    };
    let mut packet = Packet {
        source: address(8),
        destination: address(24),
        hops: header[7],
        protocol: header[6],
        part: FragmentPosition::Unfragmented,
        identification: 0,
        rest: &bytes[40..end],
    };
    loop {
        let next = packet.rest.first().copied();
        let units = packet.rest.get(1).copied().map(usize::from);
        let length = match packet.protocol {
            0 | 43 | 60 => units.map(|units| 8 + 8 * units),
            51 => units.map(|units| 8 + 4 * units),
            44 => {
                let fragment = half(packet.rest, 2).ok_or("a fragment header that is not whole")?;
                let [high, low] = [4, 6].map(|at| half(packet.rest, at).unwrap_or_default());
                let part = part(fragment >> 3, fragment & 1 != 0);
                if part != FragmentPosition::Unfragmented {
                    packet.part = part;
                    packet.identification = u32::from(high) << 16 | u32::from(low);
                }
                Some(8)
            }
            _ => return Ok(packet),
        };
        let length = length.ok_or("an extension header that is not whole")?;
        packet.protocol = next.ok_or("an extension header that is not whole")?;
        packet.rest =
            packet.rest.get(length..).ok_or("an extension header that does not end in the packet")?;
        if packet.part == FragmentPosition::Subsequent {
            return Ok(packet);
        }
    }
}
