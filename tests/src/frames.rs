//! Hand-made frames, in which every field can be wrong.

use std::net::Ipv4Addr;

/// `IPPROTO_ICMP`.
pub const ICMP: u8 = 1;
/// `IPPROTO_TCP`.
pub const TCP: u8 = 6;
/// `IPPROTO_UDP`.
pub const UDP: u8 = 17;

/// An IPv4 packet in an Ethernet frame; the fields can be changed before it is turned into
/// [`bytes`](Self::bytes).
#[derive(Clone, Debug)]
pub struct Frame {
    /// Destination MAC address.
    pub to_mac: [u8; 6],
    /// Source MAC address.
    pub from_mac: [u8; 6],
    /// Ethernet type.
    pub ether_type: u16,
    /// VLAN tag in front of the Ethernet type.
    pub vlan: Option<u16>,
    /// IP version.
    pub version: u8,
    /// IP options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// Total length of the packet; computed if there is none.
    pub total_length: Option<u16>,
    /// Flags and fragment offset.
    pub fragment: u16,
    /// Protocol.
    pub protocol: u8,
    /// Type and code of an ICMP message.
    pub icmp: [u8; 2],
    /// Source address.
    pub from: Ipv4Addr,
    /// Destination address.
    pub to: Ipv4Addr,
    /// Source port.
    pub from_port: u16,
    /// Destination port.
    pub to_port: u16,
    /// What follows the transport header.
    pub payload: Vec<u8>,
}

impl Frame {
    /// Returns a UDP packet.
    pub fn udp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> Self {
        Self {
            to_mac: [0; 6],
            from_mac: [0x02, 0, 0, 0, 9, 9],
            ether_type: 0x0800,
            vlan: None,
            version: 4,
            options: Vec::new(),
            total_length: None,
            fragment: 0,
            protocol: UDP,
            icmp: [8, 0],
            from: from.0,
            to: to.0,
            from_port: from.1,
            to_port: to.1,
            payload: b"portmap".to_vec(),
        }
    }

    /// Sets the protocol. The transport header stays that of UDP, except for TCP, whose header is longer.
    #[must_use]
    pub fn protocol(mut self, protocol: u8) -> Self {
        self.protocol = protocol;
        self
    }

    /// Returns the frame as bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.to_mac);
        bytes.extend(self.from_mac);
        if let Some(tag) = self.vlan {
            bytes.extend([0x81, 0]);
            bytes.extend(tag.to_be_bytes());
        }
        bytes.extend(self.ether_type.to_be_bytes());
        let transport = self.transport();
        let header_length = 20 + self.options.len();
        let total_length = self.total_length.unwrap_or_else(|| length(header_length + transport.len()));
        let mut header = vec![self.version << 4 | u8::try_from(header_length / 4).expect("few options"), 0];
        header.extend(total_length.to_be_bytes());
        header.extend([0, 1]);
        header.extend(self.fragment.to_be_bytes());
        header.extend([64, self.protocol, 0, 0]);
        header.extend(self.from.octets());
        header.extend(self.to.octets());
        header.extend(&self.options);
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum);
        bytes.extend(header);
        bytes.extend(transport);
        bytes
    }

    fn transport(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if self.protocol == ICMP {
            bytes.extend(self.icmp);
            bytes.extend([0, 0, 0, 1, 0, 1]);
            bytes.extend(&self.payload);
            let sum = checksum(&bytes);
            bytes[2..4].copy_from_slice(&sum);
            return bytes;
        }
        bytes.extend(self.from_port.to_be_bytes());
        bytes.extend(self.to_port.to_be_bytes());
        if self.protocol == TCP {
            bytes.extend([0, 0, 0, 1, 0, 0, 0, 0, 5 << 4, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
        } else {
            bytes.extend(length(8 + self.payload.len()).to_be_bytes());
            // No checksum, which IPv4 allows for UDP.
            bytes.extend([0, 0]);
        }
        bytes.extend(&self.payload);
        bytes
    }
}

fn length(bytes: usize) -> u16 {
    u16::try_from(bytes).expect("a packet")
}

/// Returns the Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!u16::try_from(sum).expect("folded")).to_be_bytes()
}
