//! The size of a frame on the wire: of the packets into which the kernel will cut it (GSO), or from which it
//! has been merged (GRO).
//!
//! It is computed from the length of the frame, the parsed headers and the size of a segment. The kernel's own
//! header offsets and its number of segments (`gso_segs`) can come from the sender: through a program of its
//! own that redirects the packet, or through a packet socket.

use core::num::NonZero;

use portmap_common::reason::Reason;

use crate::{
    frame::Frame,
    packet::{
        IpVersion, ParsedL4,
        l4::{SCTP, TCP, UDP},
    },
};

/// Most packets of one frame. The MSS of a TCP peer can be as low as 48 bytes (Linux's minimum,
/// `tcp_min_snd_mss`), of which the timestamp option leaves 36: a frame of 64 KiB then has 1,820 segments.
/// Frames of up to 512 KiB have segments of at least 536 bytes: 978.
const MAX_SEGMENTS: u32 = 2048;
/// Most bytes on the wire of one frame, far more than any useful segments have. The policer's arithmetic
/// relies on it.
const MAX_WIRE_BYTES: u32 = 1 << 24;
/// Length in bytes of a UDP header.
const UDP_HEADER: u32 = 8;
/// Minimum length in bytes of a TCP header.
const MIN_TCP_HEADER: u32 = 20;
/// Segment size of a frame that is a list of complete packets.
const GSO_BY_FRAGS: u32 = 0xffff;

/// Size of a frame on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireSize {
    /// Length in bytes of the longest packet, with its Ethernet header. 0 for a list of packets, whose lengths
    /// only the kernel knows.
    pub max_frame_len: u32,
    /// Number of packets.
    pub packets: u32,
    /// Sum of their lengths in bytes, each with all its headers from the Ethernet header on.
    pub bytes: u32,
}

impl WireSize {
    /// Returns the size of a frame that is one packet on the wire, or that counts as one because its segments
    /// are unknown.
    #[inline(always)]
    pub fn one_packet(frame: &impl Frame) -> Self {
        let length = frame.length();
        Self { max_frame_len: length, packets: 1, bytes: length }
    }

    /// Returns the size of a frame that no check has refused: that of its segments if they can be computed,
    /// else that of one packet.
    #[inline(always)]
    pub fn counted<V: IpVersion>(frame: &impl Frame, l4: &ParsedL4<V>) -> Self {
        match Self::of(frame, l4) {
            Ok(size) => size,
            Err(_unknown) => Self::one_packet(frame),
        }
    }

    /// Returns the size of a frame whose segments each have their own headers. The error is the reason to
    /// drop a frame that no honest sender sends.
    ///
    /// A list of packets (SCTP) counts as one packet, because only the kernel knows their lengths. Headers
    /// inside a tunnel count as payload, so their repetition is not included.
    #[inline(always)]
    pub fn of<V: IpVersion>(frame: &impl Frame, l4: &ParsedL4<V>) -> Result<Self, Reason> {
        let length = frame.length();
        let Some(gso_size) = NonZero::new(frame.gso_size()) else {
            return Ok(Self::one_packet(frame));
        };
        // Segmentation writes new fragment offsets from 0 on: data of a subsequent fragment would be read as
        // ports.
        if l4.is_fragment {
            return Err(Reason::Malformed);
        }
        let transport = match l4.protocol {
            SCTP if gso_size.get() == GSO_BY_FRAGS => {
                return Ok(Self { max_frame_len: 0, ..Self::one_packet(frame) });
            }
            _ if gso_size.get() == GSO_BY_FRAGS => return Err(Reason::Malformed),
            TCP => tcp_header(frame, l4.transport).ok_or(Reason::Malformed)?,
            UDP => UDP_HEADER,
            _ => return Err(Reason::Malformed),
        };
        #[expect(clippy::cast_possible_truncation, reason = "it is within the frame")]
        let headers = l4.transport as u32 + transport;
        let payload = length.saturating_sub(headers);
        // A frame without payload is one packet.
        let further = payload.saturating_sub(1) / gso_size;
        if further >= MAX_SEGMENTS {
            return Err(Reason::TooBig);
        }
        let whole = headers + gso_size.get();
        let bytes = length + further * headers;
        if bytes > MAX_WIRE_BYTES {
            return Err(Reason::TooBig);
        }
        let max_frame_len = if length < whole { length } else { whole };
        Ok(Self { max_frame_len, packets: further + 1, bytes })
    }
}

/// Returns the length in bytes of the TCP header at `offset`, from its data offset field.
#[inline(always)]
fn tcp_header(frame: &impl Frame, offset: usize) -> Option<u32> {
    let [word] = frame.load_be32s(offset + 12)?;
    let bytes = (word >> 28) * 4;
    if bytes < MIN_TCP_HEADER { None } else { Some(bytes) }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec;

    use super::*;
    use crate::{
        PacketBuf,
        packet::{
            V4, V6,
            l4::{L4Info, L4Kind, Ports},
        },
    };

    fn l4<V: IpVersion>(protocol: u32, transport: usize) -> ParsedL4<V> {
        let info = L4Info::new(L4Kind::Ports, Ports { source: 1, destination: 2 }, 0, 0);
        ParsedL4::unfragmented(info, protocol, transport)
    }

    /// Returns the size of a frame whose headers end with a TCP header of 32 bytes at `transport`.
    fn wire_size(protocol: u32, transport: usize, payload: usize, gso_size: u32) -> Result<WireSize, Reason> {
        let mut bytes = vec![0; transport + 32 + payload];
        bytes[transport + 12] = 8 << 4;
        let frame = PacketBuf { bytes: &bytes, gso_size, ..PacketBuf::default() };
        let of_v4 = WireSize::of::<V4>(&frame, &l4(protocol, transport));
        assert_eq!(of_v4, WireSize::of::<V6>(&frame, &l4(protocol, transport)));
        of_v4
    }

    #[test]
    fn wire_size_includes_headers_of_every_segment() {
        // Without options, with the most options of IPv4, and behind extension headers.
        for transport in [14 + 20, 14 + 60, 14 + 40 + 1312] {
            let segments = |number, rest| u32::try_from(number * (transport + rest)).expect("a short frame");
            let size = |max_frame_len, packets, bytes| Ok(WireSize { max_frame_len, packets, bytes });
            let whole = segments(1, 32 + 10_000);
            assert_eq!(wire_size(TCP, transport, 10_000, 0), size(whole, 1, whole));
            assert_eq!(
                wire_size(TCP, transport, 10_000, 1000),
                size(segments(1, 32 + 1000), 10, segments(10, 32 + 1000))
            );
            assert_eq!(
                wire_size(TCP, transport, 10_000, 999),
                size(segments(1, 32 + 999), 11, segments(11, 32) + 10_000)
            );
            // UDP: 24 bytes that were part of the TCP header are payload.
            assert_eq!(
                wire_size(UDP, transport, 10_000, 999),
                size(segments(1, 8 + 999), 11, segments(11, 8) + 10_024)
            );
            assert_eq!(wire_size(TCP, transport, 10_000, 20_000), size(whole, 1, whole));
            let empty = segments(1, 32);
            assert_eq!(wire_size(TCP, transport, 0, 1000), size(empty, 1, empty));
        }
    }

    #[test]
    fn wire_size_refuses_tiny_segments() {
        // The smallest segments that Linux itself sends, in frames of 64 KiB and of 512 KiB.
        for (payload, segment) in [(65_495, 536), (65_495, 36), (524_000, 536)] {
            assert!(wire_size(TCP, 14 + 20, payload, segment).is_ok(), "{segment}");
        }
        for protocol in [TCP, UDP] {
            for (payload, segment) in [(65_000, 1), (65_000, 31), (2073, 1)] {
                assert_eq!(wire_size(protocol, 14 + 20, payload, segment), Err(Reason::TooBig), "{segment}");
            }
        }
        assert!(wire_size(TCP, 14 + 20, 2048, 1).is_ok());
        // With the longest chain of headers in each segment.
        assert_eq!(wire_size(TCP, 14 + 40 + 6 * 2048, 2048, 1), Err(Reason::TooBig));
        assert!(wire_size(TCP, 14 + 40 + 6 * 2048, 1350, 1).is_ok());
    }

    #[test]
    fn wire_size_of_unknown_segments_is_one_packet() {
        let bytes = vec![0; 3000];
        // Too many segments, segments of ICMP, and a list of packets that are not SCTP.
        for (protocol, gso_size) in [(UDP, 1), (1, 1000), (UDP, GSO_BY_FRAGS)] {
            let frame = PacketBuf { bytes: &bytes, gso_size, ..PacketBuf::default() };
            assert_eq!(
                WireSize::counted::<V4>(&frame, &l4(protocol, 14 + 20)),
                WireSize { max_frame_len: 3000, packets: 1, bytes: 3000 }
            );
        }
    }

    #[test]
    fn wire_size_refuses_invalid_gso() {
        // ICMP, DCCP, UDP-Lite.
        for protocol in [1, 33, 58, 136] {
            assert_eq!(wire_size(protocol, 14 + 20, 3000, 1000), Err(Reason::Malformed), "{protocol}");
            assert_eq!(
                wire_size(protocol, 14 + 20, 3000, GSO_BY_FRAGS),
                Err(Reason::Malformed),
                "{protocol}"
            );
        }
        for protocol in [TCP, UDP] {
            assert_eq!(
                wire_size(protocol, 14 + 20, 3000, GSO_BY_FRAGS),
                Err(Reason::Malformed),
                "{protocol}"
            );
        }
        assert_eq!(wire_size(SCTP, 14 + 20, 3000, 1000), Err(Reason::Malformed));
        assert_eq!(
            wire_size(SCTP, 14 + 20, 3000, GSO_BY_FRAGS),
            Ok(WireSize { max_frame_len: 0, packets: 1, bytes: 14 + 20 + 32 + 3000 })
        );
        // TCP headers that are too short or missing.
        for length in [14 + 20 + 12, 14 + 20 + 1000] {
            let bytes = vec![0; length];
            let frame = PacketBuf { bytes: &bytes, gso_size: 100, ..PacketBuf::default() };
            assert_eq!(WireSize::of::<V4>(&frame, &l4(TCP, 14 + 20)), Err(Reason::Malformed));
        }
        let bytes = [0; 3000];
        let frame = PacketBuf { bytes: &bytes, gso_size: 1400, ..PacketBuf::default() };
        let mut fragment = l4::<V4>(UDP, 14 + 20);
        fragment.is_fragment = true;
        assert_eq!(WireSize::of(&frame, &fragment), Err(Reason::Malformed));
        let alone = PacketBuf { gso_size: 0, ..frame };
        assert!(WireSize::of(&alone, &fragment).is_ok());
    }
}
