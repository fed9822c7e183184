//! Generator of hostile frames: valid in most fields, invalid in some.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use portmap_tests::{
    random::Random,
    sandbox::{FAR, FAR6, HOST, HOST_MAC, HOST6, OUTSIDE, OUTSIDE6},
};

use crate::{
    headers::{self, Header, HeaderFault, checksum, ipv4, ipv6},
    parser::{ETHERNET, ICMP, ICMP6, TCP, WITH_PORTS},
};

/// Ports of the sending container and of another one.
pub(crate) const OWN: std::ops::RangeInclusive<u16> = 31000..=31009;
pub(crate) const OTHERS: std::ops::RangeInclusive<u16> = 31010..=31019;
/// First destination port. Each frame of a batch has its own, which identifies it when nothing else does.
pub(crate) const FIRST_PORT: u16 = 9000;
/// Destination ports of fences (well-formed frames), and of the tunnel that the attacker's programs add.
pub(crate) const FENCE_PORT: u16 = 8999;
pub(crate) const TUNNEL_PORT: u16 = 8998;
/// Payload pattern, followed by the frame's number.
pub(crate) const PATTERN: [u8; 4] = *b"wire";
/// Lower than the initial TTL of any other packet.
const MAX_HOPS: usize = 60;
const UDP: u8 = 17;

/// A frame, and the offsets of its parts.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) bytes: Vec<u8>,
    /// Offset of the data after the IP headers.
    pub(crate) transport: usize,
    pub(crate) protocol: u8,
    pub(crate) is_ipv6: bool,
}

/// Emphasis of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Theme {
    /// Everything.
    Any,
    /// Fragments with segmentation offload.
    Fragments,
    /// Headers that move after the kernel has parsed them.
    MovedHeaders,
    /// Many small segments.
    TinySegments,
    /// Small segments with many headers.
    ManyHeaders,
}

/// Requirements on a generated frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FrameSpec {
    pub(crate) theme: Theme,
    /// Whether the frame has segmentation offload, and may exceed the uplink's MTU.
    pub(crate) is_large: bool,
}

impl FrameSpec {
    /// Returns whether fields outside the theme must be valid.
    fn is_right(self) -> bool {
        self.theme != Theme::Any
    }
}

/// Returns a well-formed frame.
pub(crate) fn well_formed(number: u32) -> Vec<u8> {
    let mut udp = Vec::new();
    udp.extend(OWN.start().to_be_bytes());
    udp.extend(FENCE_PORT.to_be_bytes());
    udp.extend([0, 16, 0, 0]);
    udp.extend(PATTERN);
    udp.extend(number.to_be_bytes());
    let header = Header { hops: 33, protocol: UDP, ..Header::default() };
    let mut bytes = [HOST_MAC, HOST_MAC].concat();
    bytes.extend([8, 0]);
    bytes.extend(ipv4(&header, HOST, OUTSIDE, &udp));
    bytes
}

/// Generates a frame. `number` identifies it, `index` is its position in the batch; frames of a batch share
/// a few IP identifications.
pub(crate) fn any(
    random: &mut Random,
    spec: FrameSpec,
    index: u16,
    number: u32,
    ephemeral: (u16, u16),
) -> Frame {
    let is_right = spec.is_right();
    let is_ipv6 = random.once_in(3);
    let protocol = protocol(random, spec, is_ipv6);
    let (from, to) = if is_right && is_ipv6 {
        (HOST6.into(), OUTSIDE6.into())
    } else if is_right {
        (HOST.into(), OUTSIDE.into())
    } else {
        addresses(random, is_ipv6)
    };
    let is_local = is_local(to);
    let from_port = if is_right { *OWN.start() } else { source_port(random, ephemeral) };
    let ports = (from_port, destination_port(random, is_local, index));
    let length = match (spec.is_large, spec.theme) {
        (false, _) => random.pick(&[0, 1, 7, 8, 20, 100, 500, 1200, 1400]),
        (true, Theme::Fragments) => random.pick(&[600, 3000]),
        (true, Theme::MovedHeaders) => random.pick(&[3000, 8000]),
        (true, Theme::TinySegments | Theme::ManyHeaders) => random.pick(&[20_000, 60_000]),
        (true, Theme::Any) => random.pick(&[600, 3000, 3000, 8000, 8000, 20_000, 60_000]),
    };
    let payload = payload(number, length);
    let mut rest = transport(random, protocol, ports, (from, to), &payload);
    let others = if spec.theme == Theme::Fragments { 1 } else { 4 };
    let identification = (number & !63) + u32::try_from(random.below(others)).expect("small");
    let fragment = match spec.theme {
        Theme::Any => fragment(random),
        Theme::Fragments if spec.is_large => u16::try_from(1 + random.below(90)).expect("small"),
        Theme::Fragments => 0x2000,
        _ => 0,
    };
    if fragment & 0x1fff != 0 && random.once_in(2) {
        // A subsequent fragment starts with payload, which must not be read as a header.
        rest = payload;
    }
    let hops = u8::try_from(1 + random.below(MAX_HOPS)).expect("small");
    let fault = if is_right { HeaderFault::None } else { headers::fault(random) };
    let header = Header { hops, protocol, identification, fragment, fault, ..Header::default() };
    let (packet, transport) = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let header = Header { options: headers::options(random, spec.theme), ..header };
            (ipv4(&header, from, to, &rest), 20 + header.options.len())
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let (first, extensions) = headers::extensions(random, &header, spec.theme);
            let header = Header { protocol: first, options: extensions, ..header };
            (ipv6(&header, from, to, &rest, number), 40 + header.options.len())
        }
        _ => unreachable!("both are of one kind"),
    };
    let mut bytes = if is_right { right_ethernet(is_ipv6) } else { ethernet(random, is_ipv6) };
    let transport = bytes.len() + transport;
    bytes.extend(packet);
    if !is_right && random.once_in(50) {
        let rest = bytes.len() - ETHERNET;
        bytes.truncate(ETHERNET + random.below(rest));
    }
    Frame { bytes, transport, protocol, is_ipv6 }
}

fn right_ethernet(is_ipv6: bool) -> Vec<u8> {
    let kind: [u8; 2] = if is_ipv6 { [0x86, 0xdd] } else { [8, 0] };
    [&HOST_MAC[..], &HOST_MAC, &kind].concat()
}

fn ethernet(random: &mut Random, is_ipv6: bool) -> Vec<u8> {
    let to = if random.once_in(30) { [0xff; 6] } else { HOST_MAC };
    let from = if random.once_in(30) { [2, 0, 0, 0, 9, 9] } else { HOST_MAC };
    let mut bytes = [to, from].concat();
    if random.once_in(30) {
        bytes.extend(random.pick(&[[0x81, 0], [0x88, 0xa8], [0x91, 0]]));
        bytes.extend([random.byte() & 0xe0, random.byte() & 3]);
    }
    let kind: [u8; 2] = if is_ipv6 { [0x86, 0xdd] } else { [8, 0] };
    let other = random.pick(&[[8, 6], [8, 0], [0x86, 0xdd], [0x88, 0xcc], [0, 100]]);
    bytes.extend(if random.once_in(40) { other } else { kind });
    bytes
}

fn protocol(random: &mut Random, spec: FrameSpec, is_ipv6: bool) -> u8 {
    let icmp = if is_ipv6 { ICMP6 } else { ICMP };
    match spec.theme {
        Theme::Any => {}
        Theme::Fragments => return UDP,
        Theme::MovedHeaders | Theme::ManyHeaders => return TCP,
        Theme::TinySegments => return random.pick(&[TCP, TCP, UDP]),
    }
    match (spec.is_large, random.below(20)) {
        (_, 0..8) => UDP,
        (true, _) | (_, 8..13) => TCP,
        (_, 13..15) => random.pick(&[33, 132, 136]),
        (_, 15..19) => icmp,
        _ => random.pick(&[0, ICMP, ICMP6, 4, 41, 47, 50, 51, 59, 89, 255]),
    }
}

fn addresses(random: &mut Random, is_ipv6: bool) -> (IpAddr, IpAddr) {
    let is_odd = random.once_in(12);
    if is_ipv6 {
        let mapped = OUTSIDE.to_ipv6_mapped();
        let odd = [
            Ipv6Addr::UNSPECIFIED,
            Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1),
            Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1),
            mapped,
            HOST.to_ipv6_mapped(),
        ];
        let to =
            random.pick(&[OUTSIDE6, OUTSIDE6, OUTSIDE6, OUTSIDE6, FAR6, HOST6, HOST6, Ipv6Addr::LOCALHOST]);
        let to = if is_odd { random.pick(&odd) } else { to };
        let local = if to.is_loopback() { Ipv6Addr::LOCALHOST } else { HOST6 };
        let from = if random.once_in(12) {
            random.pick(&[OUTSIDE6, FAR6, Ipv6Addr::LOCALHOST, odd[2], mapped])
        } else {
            local
        };
        (from.into(), to.into())
    } else {
        let odd = [
            Ipv4Addr::UNSPECIFIED,
            Ipv4Addr::BROADCAST,
            Ipv4Addr::new(10, 0, 0, 255),
            Ipv4Addr::new(10, 0, 0, 77),
            Ipv4Addr::new(224, 0, 0, 251),
        ];
        let loopback = Ipv4Addr::new(127, 9, 9, 9);
        let to = random.pick(&[
            OUTSIDE,
            OUTSIDE,
            OUTSIDE,
            OUTSIDE,
            FAR,
            HOST,
            HOST,
            Ipv4Addr::LOCALHOST,
            loopback,
        ]);
        let to = if is_odd { random.pick(&odd) } else { to };
        let local = if to.is_loopback() { random.pick(&[HOST, Ipv4Addr::LOCALHOST, loopback]) } else { HOST };
        let from = if random.once_in(12) {
            random.pick(&[OUTSIDE, FAR, loopback, Ipv4Addr::UNSPECIFIED])
        } else {
            local
        };
        (from.into(), to.into())
    }
}

fn is_local(address: IpAddr) -> bool {
    address.is_loopback() || address == HOST || address == HOST6
}

fn source_port(random: &mut Random, ephemeral: (u16, u16)) -> u16 {
    let among = |random: &mut Random, from: u16, to: u16| {
        from + u16::try_from(random.below(usize::from(to - from) + 1)).expect("a port")
    };
    match random.below(12) {
        0 => among(random, *OTHERS.start(), *OTHERS.end()),
        1 => random.pick(&[22, 53, 0, 65535]),
        2 => random.port(),
        3 => among(random, ephemeral.0, ephemeral.1),
        _ => among(random, *OWN.start(), *OWN.end()),
    }
}

fn destination_port(random: &mut Random, is_local: bool, index: u16) -> u16 {
    if is_local && random.once_in(2) {
        let first = random.pick(&[*OTHERS.start(), *OTHERS.start(), *OWN.start()]);
        return first + index % 10;
    }
    FIRST_PORT + index
}

/// Returns the pattern and the frame's number, repeated.
fn payload(number: u32, length: usize) -> Vec<u8> {
    [PATTERN, number.to_be_bytes()].concat().into_iter().cycle().take(length).collect()
}

fn transport(
    random: &mut Random,
    protocol: u8,
    ports: (u16, u16),
    addresses: (IpAddr, IpAddr),
    payload: &[u8],
) -> Vec<u8> {
    let mut bytes = Vec::new();
    if WITH_PORTS.contains(&protocol) {
        bytes.extend(ports.0.to_be_bytes());
        bytes.extend(ports.1.to_be_bytes());
    }
    match protocol {
        TCP => {
            let options = if random.once_in(3) { 4 * random.below(11) } else { 0 };
            let length = u8::try_from(5 + options / 4).expect("small");
            bytes.extend([
                0,
                0,
                0,
                1,
                0,
                0,
                0,
                0,
                length << 4,
                random.pick(&[0x10, 0x18, 0x02, 0x90]),
                255,
                255,
            ]);
            bytes.extend([0; 4]);
            bytes.resize(20 + options, 1);
        }
        ICMP | ICMP6 => return icmp(random, addresses.0.is_ipv6(), ports, addresses, payload),
        _ if WITH_PORTS.contains(&protocol) => {
            let length = u16::try_from(8 + payload.len()).unwrap_or(0);
            bytes.extend(length.to_be_bytes());
            bytes.extend([0, 0]);
        }
        _ => {}
    }
    bytes.extend(payload);
    bytes
}

/// Returns an echo message, an error about a packet in the reverse direction, or any other message.
fn icmp(
    random: &mut Random,
    is_ipv6: bool,
    ports: (u16, u16),
    (from, to): (IpAddr, IpAddr),
    payload: &[u8],
) -> Vec<u8> {
    let errors = if is_ipv6 {
        [[1, 4], [2, 0], [3, 0], [3, 1], [4, 1]]
    } else {
        [[3, 3], [3, 4], [11, 0], [11, 1], [12, 0]]
    };
    let (kind, embedded) = match random.below(8) {
        0..2 => ([if is_ipv6 { 128 } else { 8 }, 0], None),
        2 => ([if is_ipv6 { 129 } else { 0 }, 0], None),
        3 => ([random.byte(), random.byte() & 3], None),
        _ => {
            let source = if random.once_in(6) { random.port() } else { ports.1 };
            let mut inner = source.to_be_bytes().to_vec();
            inner.extend(ports.0.to_be_bytes());
            inner.extend([0, 16, 0, 0]);
            inner.extend(&payload[..payload.len().min(64)]);
            let header = Header {
                hops: 9,
                protocol: random.pick(&[UDP, UDP, TCP, 132, 47]),
                fragment: if random.once_in(10) { 0x2001 } else { 0 },
                ..Header::default()
            };
            let to = if random.once_in(10) { if is_ipv6 { FAR6.into() } else { FAR.into() } } else { to };
            let embedded = match (to, from) {
                (IpAddr::V4(from), IpAddr::V4(to)) => ipv4(&header, from, to, &inner),
                (IpAddr::V6(from), IpAddr::V6(to)) => ipv6(&header, from, to, &inner, 0),
                _ => unreachable!("both are of one kind"),
            };
            (random.pick(&errors), Some(embedded))
        }
    };
    let mut bytes = kind.to_vec();
    bytes.extend([0, 0]);
    bytes.extend(random.pick(&[0_u32, 1, 0x0007_0001]).to_be_bytes());
    bytes.extend(embedded.as_deref().unwrap_or(payload));
    let sum = checksum(&bytes);
    bytes[2..4].copy_from_slice(&sum);
    bytes
}

fn fragment(random: &mut Random) -> u16 {
    let offset = u16::try_from(random.below(12)).expect("small");
    match random.below(12) {
        0 => 0x2000,
        1 => 0x2000 | offset,
        2 => offset,
        3 if random.once_in(4) => random.port(),
        4 => 0x4000,
        _ => 0,
    }
}

/// Returns the IPv4 and UDP headers of a tunnel, as 32-bit words. Segmentation recomputes length and
/// checksum.
pub(crate) fn tunnel() -> [u32; 7] {
    let mut udp = OWN.start().to_be_bytes().to_vec();
    udp.extend(TUNNEL_PORT.to_be_bytes());
    udp.extend([0, 8, 0, 0]);
    let header = Header { hops: 34, protocol: UDP, fault: HeaderFault::Length(1000), ..Header::default() };
    let bytes = ipv4(&header, HOST, OUTSIDE, &udp);
    std::array::from_fn(|word| u32::from_ne_bytes(bytes[4 * word..][..4].try_into().expect("four bytes")))
}
