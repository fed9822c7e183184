//! IPv4 and IPv6 headers, with options, extension headers and deliberate faults.

use std::net::{Ipv4Addr, Ipv6Addr};

use portmap_tests::random::Random;

use crate::frames::Theme;

/// A deliberate fault in an IP header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum HeaderFault {
    #[default]
    None,
    Checksum,
    Length(u16),
    Version(u8),
}

pub(crate) fn fault(random: &mut Random) -> HeaderFault {
    match random.below(40) {
        0..3 => HeaderFault::Checksum,
        3 => HeaderFault::Length(random.pick(&[0, 19, 20, 28, 29, 60, 1500, 65535])),
        4 => HeaderFault::Version(random.byte()),
        _ => HeaderFault::None,
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Header {
    pub(crate) hops: u8,
    pub(crate) protocol: u8,
    pub(crate) identification: u32,
    /// Flags and offset, in the format of IPv4.
    pub(crate) fragment: u16,
    pub(crate) fault: HeaderFault,
    /// IPv4 options, or IPv6 extension headers.
    pub(crate) options: Vec<u8>,
}

pub(crate) fn options(random: &mut Random, theme: Theme) -> Vec<u8> {
    let length = match theme {
        Theme::ManyHeaders => 40,
        Theme::Any if random.once_in(4) => 4 * (1 + random.below(10)),
        _ => return Vec::new(),
    };
    let kind = random.pick(&[1_u8, 1, 7, 131, 137, 148, 0x44]);
    let mut options = vec![1; length];
    if kind != 1 {
        options[..3].copy_from_slice(&[kind, u8::try_from(length).expect("short"), 4]);
    }
    options
}

/// Returns the type of the first extension header, and the chain, whose last element has the protocol of
/// `header`.
pub(crate) fn extensions(random: &mut Random, header: &Header, theme: Theme) -> (u8, Vec<u8>) {
    let kinds = match theme {
        Theme::ManyHeaders => 1,
        Theme::Any if random.once_in(3) => 1 + random.below(6),
        _ => 0,
    };
    let kind = |random: &mut Random| if theme == Theme::Any { random.pick(&[0, 43, 60, 60, 51]) } else { 60 };
    let mut kinds: Vec<u8> = (0..kinds).map(|_| kind(random)).collect();
    let is_fragment = header.fragment & 0x3fff != 0 || (theme == Theme::Any && random.once_in(20));
    if is_fragment {
        kinds.insert(random.below(kinds.len() + 1), 44);
    }
    let mut bytes = Vec::new();
    for (index, kind) in kinds.iter().enumerate() {
        bytes.push(kinds.get(index + 1).copied().unwrap_or(header.protocol));
        match kind {
            44 => {
                bytes.push(0);
                bytes.extend((header.fragment << 3 | u16::from(header.fragment & 0x2000 != 0)).to_be_bytes());
                bytes.extend(header.identification.to_be_bytes());
            }
            51 => {
                bytes.extend([1, 0, 0]);
                bytes.extend([0; 8]);
            }
            _ => {
                let is_long = theme == Theme::ManyHeaders || random.once_in(4);
                let units = if is_long { random.pick(&[20, 100, 160]) } else { 0 };
                bytes.push(u8::try_from(units).expect("a byte"));
                // Padding options of at most 257 bytes each.
                let mut left = 6 + 8 * units;
                while left > 0 {
                    let part = left.min(257);
                    let part = if left - part == 1 { part - 1 } else { part };
                    bytes.extend([1, u8::try_from(part - 2).expect("a byte")]);
                    bytes.resize(bytes.len() + part - 2, 0);
                    left -= part;
                }
            }
        }
    }
    (kinds.first().copied().unwrap_or(header.protocol), bytes)
}

pub(crate) fn ipv4(header: &Header, from: Ipv4Addr, to: Ipv4Addr, rest: &[u8]) -> Vec<u8> {
    let own = 20 + header.options.len();
    let (mut length, mut version) = (u16::try_from(own + rest.len()).unwrap_or(0), 0x40);
    match header.fault {
        HeaderFault::Length(other) => length = other,
        HeaderFault::Version(other) => version = other & 0xf0,
        _ => {}
    }
    let mut bytes = vec![version | u8::try_from(own / 4).expect("few options"), 0];
    bytes.extend(length.to_be_bytes());
    bytes.extend(&header.identification.to_be_bytes()[2..]);
    bytes.extend(header.fragment.to_be_bytes());
    bytes.extend([header.hops, header.protocol, 0, 0]);
    bytes.extend(from.octets());
    bytes.extend(to.octets());
    bytes.extend(&header.options);
    let mut sum = checksum(&bytes);
    if header.fault == HeaderFault::Checksum {
        sum[0] ^= 0x55;
    }
    bytes[10..12].copy_from_slice(&sum);
    bytes.extend(rest);
    bytes
}

pub(crate) fn ipv6(header: &Header, from: Ipv6Addr, to: Ipv6Addr, rest: &[u8], label: u32) -> Vec<u8> {
    let length = match header.fault {
        HeaderFault::Length(other) => other,
        _ => u16::try_from(header.options.len() + rest.len()).unwrap_or(0),
    };
    let version = if let HeaderFault::Version(other) = header.fault { u32::from(other >> 4) } else { 6 };
    let mut bytes = (version << 28 | label & 0xf_ffff).to_be_bytes().to_vec();
    bytes.extend(length.to_be_bytes());
    bytes.extend([header.protocol, header.hops]);
    bytes.extend(from.octets());
    bytes.extend(to.octets());
    bytes.extend(&header.options);
    bytes.extend(rest);
    bytes
}

/// Returns the Internet checksum (RFC 1071).
pub(crate) fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!u16::try_from(sum).expect("folded")).to_be_bytes()
}
