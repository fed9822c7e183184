//! Parses frames as specified in `docs/datapath.md`, "Parsing a frame", without the reasons. It slices the
//! packet, so that no byte behind its end can be read.

/// An IP packet with a valid header (steps 1 to 4, except for tags that the kernel has removed).
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// Whether it is IPv6.
    pub is_v6: bool,
    /// Source address; an IPv4 address as `::ffff:a.b.c.d`.
    pub source: [u8; 16],
    /// Destination address, in the same form.
    pub destination: [u8; 16],
    /// The packet from its first byte to its own end.
    pub bytes: &'a [u8],
    /// Whether its own length field determines its end, rather than the frame.
    pub ends_by_itself: bool,
    /// Protocol of the payload, and its offset in `bytes`.
    next: (u8, usize),
}

/// The L4 header behind the IP header and its extension headers.
#[derive(Clone, Copy, Debug)]
pub struct Behind {
    /// Its protocol.
    pub protocol: u8,
    /// Its offset in the packet.
    pub at: usize,
    /// Position of the packet in its datagram.
    pub part: Part,
}

/// Position in a datagram, with the identification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The whole datagram.
    Whole,
    /// The first fragment.
    First(u32),
    /// A subsequent fragment.
    Subsequent(u32),
}

/// L4 content of a packet that is not a subsequent fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Source and destination port.
    Ports(u16, u16),
    /// An echo message.
    Echo {
        /// Whether it is a request.
        is_request: bool,
        /// Its identifier.
        id: u16,
        /// Its offset in the packet; `None` in a subsequent fragment.
        at: Option<usize>,
    },
    /// An ICMP error.
    Error {
        /// Whether only routers send it.
        by_router: bool,
        /// Source of the inner packet.
        source: [u8; 16],
        /// Destination of the inner packet.
        destination: [u8; 16],
        /// Content of the inner packet.
        quote: Inner,
    },
}

/// L4 content of an inner packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inner {
    /// Source and destination port.
    Ports(u16, u16),
    /// An echo request: its identifier and its offset in the packet.
    Request(u16, usize),
}

/// Returns an IPv4 address as `::ffff:a.b.c.d`.
pub fn mapped([a, b, c, d]: [u8; 4]) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

/// Returns whether an address of an IP version is in 127.0.0.0/8 or is `::1`.
pub fn is_loopback(is_v6: bool, address: [u8; 16]) -> bool {
    if is_v6 { is_one(address) } else { address[12] == 127 }
}

/// Returns whether an address is `::1`.
pub fn is_one(address: [u8; 16]) -> bool {
    u128::from_be_bytes(address) == 1
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Parses the Ethernet and the IP header.
pub fn packet(frame: &[u8]) -> Option<Packet<'_>> {
    let rest = frame.get(14..)?;
    match short(frame, 12)? {
        0x0800 => packet4(rest),
        0x86dd => packet6(rest),
        _ => None,
    }
}

fn packet4(rest: &[u8]) -> Option<Packet<'_>> {
    let (source, destination, next) = header4(rest)?;
    let (bytes, ends_by_itself) = cut(rest, 0, short(rest, 2)?);
    bytes.get(next.1..)?;
    Some(Packet { is_v6: false, source, destination, bytes, ends_by_itself, next })
}

fn packet6(rest: &[u8]) -> Option<Packet<'_>> {
    let (source, destination, next) = header6(rest)?;
    let (bytes, ends_by_itself) = cut(rest, 40, short(rest, 4)?);
    Some(Packet { is_v6: true, source, destination, bytes, ends_by_itself, next })
}

/// Returns the packet without padding, and whether its length field determines its end.
fn cut(rest: &[u8], header: usize, length: u16) -> (&[u8], bool) {
    match rest.get(..header + usize::from(length)) {
        Some(packet) if length != 0 => (packet, true),
        _ => (rest, false),
    }
}

type Header = ([u8; 16], [u8; 16], (u8, usize));

fn header4(bytes: &[u8]) -> Option<Header> {
    let header: &[u8; 20] = bytes.first_chunk()?;
    let length = usize::from(header[0] & 0x0f) * 4;
    if header[0] >> 4 != 4 || length < 20 {
        return None;
    }
    let address = |at: usize| Some(mapped(*header.get(at..)?.first_chunk()?));
    Some((address(12)?, address(16)?, (header[9], length)))
}

fn header6(bytes: &[u8]) -> Option<Header> {
    let header: &[u8; 40] = bytes.first_chunk()?;
    let address = |at: usize| Some(*header.get(at..)?.first_chunk()?);
    if header[0] >> 4 == 6 { Some((address(8)?, address(24)?, (header[6], 40))) } else { None }
}

impl Packet<'_> {
    /// Offset of the packet in its frame.
    pub const START: usize = 14;

    /// Skips extension headers (step 5).
    pub fn behind(&self) -> Option<Behind> {
        behind(self.is_v6, self.bytes, self.next)
    }

    /// Parses the L4 content of a packet that is not a subsequent fragment (step 6).
    pub fn content(&self, behind: Behind) -> Option<Content> {
        let rest = self.bytes.get(behind.at..)?;
        if has_ports(behind.protocol) {
            let _eight = rest.get(..8)?;
            return Some(Content::Ports(short(rest, 0)?, short(rest, 2)?));
        }
        let (&[kind, code, _, _, i0, i1, ..], true) =
            (rest.first_chunk::<8>()?, self.is_icmp(behind.protocol))
        else {
            return None;
        };
        let echo =
            |is_request| Content::Echo { is_request, id: u16::from_be_bytes([i0, i1]), at: Some(behind.at) };
        let by_router = match (self.is_v6, kind) {
            (false, 8) | (true, 128) => return Some(echo(true)),
            (false, 0) | (true, 129) => return Some(echo(false)),
            (false, 3) => code == 4,
            (false, 11) | (true, 3) => code != 1,
            (false, 12) | (true, 1 | 4) => false,
            (true, 2) => true,
            _ => return None,
        };
        if behind.part != Part::Whole {
            return None;
        }
        self.inner(behind.at + 8, by_router)
    }

    fn inner(&self, start: usize, by_router: bool) -> Option<Content> {
        let bytes = self.bytes.get(start..)?;
        let (source, destination, next) = if self.is_v6 { header6(bytes)? } else { header4(bytes)? };
        let inner = behind(self.is_v6, bytes, next)?;
        if matches!(inner.part, Part::Subsequent(_)) {
            return None;
        }
        let rest = bytes.get(inner.at..)?;
        let quote = if has_ports(inner.protocol) {
            Inner::Ports(short(rest, 0)?, short(rest, 2)?)
        } else if self.is_icmp(inner.protocol) && rest.first() == Some(if self.is_v6 { &128 } else { &8 }) {
            let _eight = rest.get(..8)?;
            Inner::Request(short(rest, 4)?, start + inner.at)
        } else {
            return None;
        };
        Some(Content::Error { by_router, source, destination, quote })
    }

    fn is_icmp(&self, protocol: u8) -> bool {
        protocol == if self.is_v6 { 58 } else { 1 }
    }
}

/// Returns whether a protocol has ports.
pub fn has_ports(protocol: u8) -> bool {
    [6, 17, 33, 132, 136].contains(&protocol)
}

/// Locates the L4 header of the IP packet in `bytes`. `next` is the first header behind the fixed one.
fn behind(is_v6: bool, bytes: &[u8], next: (u8, usize)) -> Option<Behind> {
    let (mut protocol, mut at) = next;
    if !is_v6 {
        let id = u32::from(short(bytes, 4)?);
        let position = short(bytes, 6)?;
        let part = match (position & 0x1fff, position & 0x2000) {
            (0, 0) => Part::Whole,
            (0, _) => Part::First(id),
            _ => Part::Subsequent(id),
        };
        return Some(Behind { protocol, at, part });
    }
    let mut part = Part::Whole;
    let mut skipped = 0;
    while [0, 43, 44, 51, 60].contains(&protocol) {
        skipped += 1;
        let header: &[u8; 8] = bytes.get(at..)?.first_chunk()?;
        if skipped > 6 {
            return None;
        }
        let units = usize::from(header[1]);
        at += match protocol {
            44 => 8,
            51 => (units + 2) * 4,
            _ => (units + 1) * 8,
        };
        if protocol == 44 {
            let [_, _, p0, p1, id @ ..] = *header;
            let (position, id) = (u16::from_be_bytes([p0, p1]), u32::from_be_bytes(id));
            if position >> 3 != 0 {
                return Some(Behind { protocol: header[0], at, part: Part::Subsequent(id) });
            }
            if position & 1 != 0 {
                part = Part::First(id);
            }
        }
        protocol = header[0];
    }
    Some(Behind { protocol, at, part })
}
