//! Header parsing: what the verdicts need from a frame, or the reason why it is not there.

use portmap_common::reason::Reason;

use crate::frame::Frame;

const ETHERNET: usize = 14;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// 802.1Q, 802.1ad and the older stacked tag, for frames whose tag the kernel has left in place.
const ETHERTYPES_VLAN: [u16; 3] = [0x8100, 0x88a8, 0x9100];

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Shortest transport header with ports: UDP's.
const SHORTEST_TRANSPORT: usize = 8;
/// The "more fragments" bit and the offset: either is set in every fragment, neither in a whole packet.
const FRAGMENT: u16 = 0x3fff;

/// The addresses of an IPv4 packet and where its ports are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4 {
    /// Source address.
    pub source: [u8; 4],
    /// Destination address.
    pub destination: [u8; 4],
    protocol: u8,
    header_length: usize,
    total_length: u16,
    fragment: bool,
}

/// Source and destination port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
}

impl Ipv4 {
    /// Reads the Ethernet and IPv4 headers. The error says what the frame is instead.
    #[inline(always)]
    pub fn parse(frame: &impl Frame) -> Result<Self, Reason> {
        if frame.has_vlan_tag() {
            return Err(Reason::Vlan);
        }
        let Some(head) = frame.head() else {
            return Err(kind_of_short_frame(frame));
        };
        let ether_type = u16::from_be_bytes([head[12], head[13]]);
        if ether_type != ETHERTYPE_IPV4 {
            return Err(kind_of(ether_type));
        }
        let header_length = usize::from(head[14] & 0x0f) * 4;
        if head[14] >> 4 != 4 || header_length < 20 {
            return Err(Reason::Malformed);
        }
        Ok(Self {
            source: [head[26], head[27], head[28], head[29]],
            destination: [head[30], head[31], head[32], head[33]],
            protocol: head[23],
            header_length,
            total_length: u16::from_be_bytes([head[16], head[17]]),
            fragment: u16::from_be_bytes([head[20], head[21]]) & FRAGMENT != 0,
        })
    }

    /// Reads the ports. The error says why the packet has none that could be trusted.
    #[inline(always)]
    pub fn ports(&self, frame: &impl Frame) -> Result<Ports, Reason> {
        if self.fragment {
            return Err(Reason::Fragment);
        }
        if self.protocol != TCP && self.protocol != UDP {
            return Err(if self.protocol == ICMP { Reason::Icmp } else { Reason::Protocol });
        }
        // Bytes behind the packet's own length are padding. A length of 0 stands for a super-packet of more
        // than 64 KiB (IPv4 BIG TCP).
        let total_length =
            if self.total_length == 0 { frame.length() as usize } else { usize::from(self.total_length) };
        if total_length < self.header_length + SHORTEST_TRANSPORT {
            return Err(Reason::Malformed);
        }
        let ports = if self.header_length == 20 {
            let head = frame.head().ok_or(Reason::Malformed)?;
            [head[34], head[35], head[36], head[37]]
        } else {
            frame.bytes::<4>(ETHERNET + self.header_length).ok_or(Reason::Malformed)?
        };
        Ok(Ports {
            source: u16::from_be_bytes([ports[0], ports[1]]),
            destination: u16::from_be_bytes([ports[2], ports[3]]),
        })
    }
}

/// The source MAC address; none if the frame is too short to have one.
#[inline(always)]
pub fn source_mac(frame: &impl Frame) -> Option<[u8; 6]> {
    match frame.head() {
        Some(head) => Some([head[6], head[7], head[8], head[9], head[10], head[11]]),
        None => frame.bytes(6),
    }
}

/// Whether an address is in 127.0.0.0/8.
#[inline(always)]
pub const fn is_loopback(address: [u8; 4]) -> bool {
    address[0] == 127
}

#[inline(always)]
const fn kind_of(ether_type: u16) -> Reason {
    match ether_type {
        ETHERTYPE_ARP => Reason::Arp,
        ETHERTYPE_IPV6 => Reason::Ipv6,
        tag if tag == ETHERTYPES_VLAN[0] || tag == ETHERTYPES_VLAN[1] || tag == ETHERTYPES_VLAN[2] => {
            Reason::Vlan
        }
        _ => Reason::EtherType,
    }
}

/// Frames too short for IPv4 with ports: still ARP and the like, or cut off.
#[inline(always)]
fn kind_of_short_frame(frame: &impl Frame) -> Reason {
    match frame.bytes::<2>(12) {
        None => Reason::Malformed,
        Some(ether_type) => match u16::from_be_bytes(ether_type) {
            ETHERTYPE_IPV4 => Reason::Malformed,
            other => kind_of(other),
        },
    }
}
