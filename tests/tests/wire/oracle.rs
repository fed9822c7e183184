//! The oracle: which packets of a container may be observed, by vantage point.

use std::{collections::HashSet, net::IpAddr, ops::RangeInclusive};

use portmap_tests::sandbox::{HOST, HOST_MAC, HOST6, OUTSIDE_MAC};

use crate::{
    frames::{FIRST_PORT, OTHERS, OWN, PATTERN},
    parser::{self, Datagram, ETHERNET, FragmentPosition, ICMP, ICMP6, Packet},
    send_path::MAX_FRAME,
    sockets::Received,
};

/// Maximum number of segments of one frame.
pub(crate) const MAX_SEGMENTS: usize = 2048;
/// Frames per batch.
pub(crate) const BATCH: usize = 64;

/// A vantage point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vantage {
    Outside,
    Host,
    Other,
}

impl Vantage {
    pub(crate) const ALL: [Self; 3] = [Self::Outside, Self::Host, Self::Other];
}

/// Totals of the observed packets of a container, for one batch and one vantage point.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) packets: u64,
    /// Bytes of frames.
    pub(crate) bytes: u64,
}

/// Checks that observed packets belong to the container.
#[derive(Debug)]
pub(crate) struct Oracle {
    ephemeral: RangeInclusive<u16>,
    /// Ephemeral ports of the other container.
    others: RangeInclusive<u16>,
    /// Datagrams whose first fragment was sent or observed with an owned port.
    first_fragment: HashSet<Datagram>,
    /// Totals of this batch, by vantage point.
    pub(crate) sums: [Totals; 3],
    /// Number of segments of each frame of this batch, observed outside.
    segments: [usize; BATCH],
    /// Bytes of all frames so far, at all vantage points.
    pub(crate) total: u64,
}

impl Oracle {
    /// Creates an oracle for the ephemeral ports of the attacker and of the other container.
    pub(crate) fn new(ephemeral: (u16, u16), others: (u16, u16)) -> Self {
        Self {
            ephemeral: ephemeral.0..=ephemeral.1,
            others: others.0..=others.1,
            first_fragment: HashSet::new(),
            sums: [Totals::default(); 3],
            segments: [0; BATCH],
            total: 0,
        }
    }

    /// Registers datagrams whose first fragments are sent with an owned port. Such a fragment may pass
    /// and then be lost.
    pub(crate) fn expect(&mut self, datagrams: impl Iterator<Item = Datagram>) {
        self.first_fragment.extend(datagrams);
    }

    pub(crate) fn begin(&mut self) {
        self.sums = [Totals::default(); 3];
        self.segments = [0; BATCH];
    }

    fn is_own(&self, port: u16) -> bool {
        OWN.contains(&port) || self.ephemeral.contains(&port)
    }

    /// Checks a frame; the error describes the violation.
    pub(crate) fn frame(&mut self, at: Vantage, frame: &Received) -> Result<(), String> {
        if frame.is_outgoing {
            return Ok(());
        }
        let bytes = &frame.bytes;
        let Some((header, rest)) = bytes.split_first_chunk::<ETHERNET>() else {
            return Err("no Ethernet header".to_owned());
        };
        let kind = u16::from_be_bytes([header[12], header[13]]);
        let is_ipv6 = kind == 0x86dd;
        let is_ours = bytes.windows(PATTERN.len()).any(|part| part == PATTERN);
        let packet = match kind {
            // The host's own ARP.
            0x0806 if !is_ours => return Ok(()),
            0x0800 | 0x86dd => parser::packet(rest, is_ipv6, false)?,
            other => return Err(format!("ethertype {other:#x}")),
        };
        // Neighbour discovery outside, and the host's replies, which have a higher TTL.
        let is_of_others =
            !is_ours && packet.protocol == ICMP6 && matches!(packet.rest, [130..=137 | 143, ..]);
        if is_of_others || (at != Vantage::Outside && packet.hops >= 64) {
            return Ok(());
        }
        if let Some(tag) = frame.tag {
            return Err(format!("VLAN tag {tag:#x}"));
        }
        if at == Vantage::Outside {
            if header[..6] != OUTSIDE_MAC || header[6..12] != HOST_MAC {
                return Err("MAC addresses that are not the host's and the neighbour's".to_owned());
            }
            if bytes.len() > MAX_FRAME {
                return Err(format!("{} bytes, of which the uplink carries {MAX_FRAME}", bytes.len()));
            }
        }
        self.packet(at, &packet)?;
        let sum = &mut self.sums[at as usize];
        sum.packets += 1;
        sum.bytes += bytes.len() as u64;
        self.total += bytes.len() as u64;
        self.segment(at, &packet)
    }

    fn packet(&mut self, at: Vantage, packet: &Packet<'_>) -> Result<(), String> {
        let shared: IpAddr = if packet.source.is_ipv4() { HOST.into() } else { HOST6.into() };
        let is_local = |address: IpAddr| address == shared || address.is_loopback();
        let is_local_dst = is_local(packet.destination);
        if is_local_dst == (at == Vantage::Outside) {
            return Err(format!("destination {}", packet.destination));
        }
        if packet.source != shared && !(is_local_dst && packet.source.is_loopback()) {
            return Err(format!("source {}", packet.source));
        }
        if at == Vantage::Outside && is_group(packet.destination) {
            return Err(format!("destination {}", packet.destination));
        }
        if packet.part == FragmentPosition::Subsequent {
            let known = self.first_fragment.contains(&packet.datagram());
            return if known { Ok(()) } else { Err("a later fragment of nothing".to_owned()) };
        }
        let icmp = if packet.source.is_ipv4() { ICMP } else { ICMP6 };
        if packet.protocol == icmp {
            self.icmp(at, packet, shared)?;
        } else if packet.has_ports() {
            let (from, to) = packet.ports().ok_or("no ports")?;
            if packet.rest.len() < 8 {
                return Err(format!("{} bytes of a transport header", packet.rest.len()));
            }
            if !self.is_own(from) {
                return Err(format!("source port {from}"));
            }
            self.destination(at, to)?;
        } else {
            return Err(format!("protocol {}", packet.protocol));
        }
        if packet.part == FragmentPosition::First {
            self.first_fragment.insert(packet.datagram());
        }
        Ok(())
    }

    /// Checks that packets to a port may be observed here.
    fn destination(&self, at: Vantage, port: u16) -> Result<(), String> {
        let is_others = OTHERS.contains(&port) || self.others.contains(&port);
        let is_right = match at {
            Vantage::Outside => true,
            Vantage::Host => !is_others && !self.is_own(port),
            Vantage::Other => is_others,
        };
        if is_right { Ok(()) } else { Err(format!("destination port {port}")) }
    }

    fn icmp(&self, at: Vantage, packet: &Packet<'_>, shared: IpAddr) -> Result<(), String> {
        let [kind, code, ..] = packet.rest else { return Err("no ICMP message".to_owned()) };
        let is_ipv6 = packet.source.is_ipv6();
        let wrong = || format!("ICMP type {kind}, code {code}");
        let is_error = match (is_ipv6, kind, code) {
            (false, 8, _) | (true, 128, _) => false,
            (false, 3, code) if *code != 4 => true,
            (false, 11, 1) | (true, 3, 1) | (false, 12, _) | (true, 1 | 4, _) => true,
            _ => return Err(wrong()),
        };
        if !is_error {
            return if at == Vantage::Outside { Ok(()) } else { Err(wrong()) };
        }
        if packet.part != FragmentPosition::Unfragmented {
            return Err("a part of an ICMP error".to_owned());
        }
        let embedded = packet.rest.get(8..).ok_or("an ICMP error that quotes nothing")?;
        let embedded = parser::packet(embedded, is_ipv6, true)?;
        let (from, to) = embedded.ports().ok_or("an ICMP error that quotes no ports")?;
        let is_received =
            embedded.destination == shared || (at != Vantage::Outside && embedded.destination.is_loopback());
        if !embedded.has_ports()
            || embedded.part == FragmentPosition::Subsequent
            || !is_received
            || !self.is_own(to)
        {
            return Err(format!("an ICMP error about {embedded:?}"));
        }
        if embedded.source != packet.destination {
            return Err(format!(
                "an ICMP error to {} about a packet of {}",
                packet.destination, embedded.source
            ));
        }
        self.destination(at, from)
    }

    /// Counts the segments of each frame outside.
    fn segment(&mut self, at: Vantage, packet: &Packet<'_>) -> Result<(), String> {
        let to = packet.ports().map_or(0, |(_, to)| to);
        let index = usize::from(to.wrapping_sub(FIRST_PORT));
        if at != Vantage::Outside
            || !packet.has_ports()
            || packet.part != FragmentPosition::Unfragmented
            || index >= BATCH
        {
            return Ok(());
        }
        self.segments[index] += 1;
        // The frame may have been sent twice.
        if self.segments[index] > 2 * MAX_SEGMENTS {
            return Err(format!("more than {MAX_SEGMENTS} segments of one frame"));
        }
        Ok(())
    }

    /// Checks data from a raw socket, with or without IP header, after reassembly.
    pub(crate) fn whole(&self, at: Vantage, is_ipv6: bool, received: &Received) -> Result<(), String> {
        let (from, port) = if is_ipv6 {
            let port = received.bytes.first_chunk().map(|port| u16::from_be_bytes(*port));
            (received.from.ok_or("a packet without a sender")?, port)
        } else {
            let packet = parser::packet(&received.bytes, false, false)?;
            (packet.source, packet.ports().map(|(from, _)| from))
        };
        // A receiver takes a length of 0 literally, so there are no ports.
        if received.bytes.is_empty() {
            return Ok(());
        }
        let is_shared = from == HOST || from == HOST6;
        if !is_shared && (at == Vantage::Outside || !from.is_loopback()) {
            return Err(format!("a datagram of {from}"));
        }
        let port = port.ok_or("a datagram without ports")?;
        if !self.is_own(port) {
            return Err(format!("a datagram from port {port}"));
        }
        if received.mark != 0 {
            return Err(format!("mark {:#x}", received.mark));
        }
        Ok(())
    }
}

fn is_group(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            address.is_multicast()
                || address.is_broadcast()
                || address.is_unspecified()
                || address == std::net::Ipv4Addr::new(10, 0, 0, 255)
        }
        IpAddr::V6(address) => address.is_multicast() || address.is_unspecified(),
    }
}

/// Returns the frame's number from the payload pattern, if it belongs to this batch.
pub(crate) fn frame_number(bytes: &[u8], first: u32) -> Option<u32> {
    let after = bytes.windows(8).find(|part| part[..4] == PATTERN)?;
    let number = u32::from_be_bytes(after[4..].try_into().ok()?);
    (first..first + u32::try_from(BATCH).ok()?).contains(&number).then_some(number)
}
