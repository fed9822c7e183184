//! What a frame becomes on the wire if the kernel has yet to cut it into segments.
//!
//! All is told from what was parsed. The kernel has its own idea of where headers are, but that comes from the sender: a
//! packet that its own programs redirect, or that a packet socket describes, has it where the sender likes.

use core::num::NonZero;

use portmap_common::reason::Reason;

use crate::{
    frame::Frame,
    packet::{
        Version,
        content::{Reading, SCTP, TCP, UDP},
    },
};

/// Most segments that a frame may be cut into. A peer of TCP may take no more than 48 bytes at once (Linux goes no lower,
/// `tcp_min_snd_mss`), of which a time stamp leaves 36: a frame of 64 KiB becomes 1,820 segments. Longer frames, of 512 KiB, are
/// for segments of 536 bytes and more: 978.
const MOST: u32 = 2048;
/// Most bytes that a frame may become, far more than segments with headers of any use: what a limit counts with.
const MOST_BYTES: u32 = 1 << 24;
/// Bytes of a UDP header.
const UDP_HEADER: u32 = 8;
/// Bytes of a TCP header without options.
const TCP_HEADER: u32 = 20;
/// In place of a segment's size: the frame is a chain of packets, which will be sent as they are (`GSO_BY_FRAGS`).
const CHAIN: u32 = 0xffff;

/// A frame on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnWire {
    /// Bytes of the longest frame that it becomes. 0 for a chain of packets, whose lengths only the kernel knows.
    pub longest: u32,
    /// Bytes of all of them.
    pub bytes: u32,
}

impl OnWire {
    /// What a frame becomes, each segment with headers of its own. The error says why nobody has reason to send it.
    ///
    /// What is inside of a tunnel is payload here, so its headers are not seen to be repeated.
    #[inline(always)]
    pub fn of<V: Version>(frame: &impl Frame, reading: &Reading<V>) -> Result<Self, Reason> {
        let length = frame.length();
        let Some(segment) = NonZero::new(frame.segment()) else {
            return Ok(Self { longest: length, bytes: length });
        };
        // Cutting writes new fragment offsets, from 0: what was data of a later fragment would be read as ports.
        if reading.is_fragment {
            return Err(Reason::Malformed);
        }
        let transport = match reading.protocol {
            SCTP if segment.get() == CHAIN => return Ok(Self { longest: 0, bytes: length }),
            _ if segment.get() == CHAIN => return Err(Reason::Malformed),
            TCP => tcp_header(frame, reading.transport).ok_or(Reason::Malformed)?,
            UDP => UDP_HEADER,
            _ => return Err(Reason::Malformed),
        };
        #[expect(clippy::cast_possible_truncation, reason = "it is within the frame")]
        let headers = reading.transport as u32 + transport;
        let payload = length.saturating_sub(headers);
        let segments = (payload + segment.get() - 1) / segment;
        if segments > MOST {
            return Err(Reason::TooBig);
        }
        let whole = headers + segment.get();
        let bytes = length + segments.saturating_sub(1) * headers;
        if bytes > MOST_BYTES {
            return Err(Reason::TooBig);
        }
        Ok(Self { longest: if length < whole { length } else { whole }, bytes })
    }
}

/// Bytes of the TCP header at `offset`: four times the upper half of its thirteenth byte.
#[inline(always)]
fn tcp_header(frame: &impl Frame, offset: usize) -> Option<u32> {
    let [word] = frame.words(offset + 12)?;
    let bytes = (word >> 28) * 4;
    if bytes < TCP_HEADER { None } else { Some(bytes) }
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
            content::{Content, Kind, Ports},
        },
    };

    fn reading<V: Version>(protocol: u32, transport: usize) -> Reading<V> {
        let content = Content::new(Kind::Ports, Ports { source: 1, destination: 2 }, 0, 0);
        Reading::whole(content, protocol, transport)
    }

    /// Of a frame whose headers end with a TCP header of 32 bytes at `transport`.
    fn on_wire(protocol: u32, transport: usize, payload: usize, segment: u32) -> Result<OnWire, Reason> {
        let mut bytes = vec![0; transport + 32 + payload];
        bytes[transport + 12] = 8 << 4;
        let frame = PacketBuf { bytes: &bytes, segment, ..PacketBuf::default() };
        let of_v4 = OnWire::of::<V4>(&frame, &reading(protocol, transport));
        assert_eq!(of_v4, OnWire::of::<V6>(&frame, &reading(protocol, transport)));
        of_v4
    }

    #[test]
    fn every_segment_has_headers() {
        // Without options, with as many as IPv4 can have, and behind extension headers.
        for transport in [14 + 20, 14 + 60, 14 + 40 + 1312] {
            let segments = |number, rest| u32::try_from(number * (transport + rest)).expect("a short frame");
            let becomes = |longest, bytes| Ok(OnWire { longest, bytes });
            let whole = segments(1, 32 + 10_000);
            assert_eq!(on_wire(TCP, transport, 10_000, 0), becomes(whole, whole));
            assert_eq!(
                on_wire(TCP, transport, 10_000, 1000),
                becomes(segments(1, 32 + 1000), segments(10, 32 + 1000))
            );
            assert_eq!(
                on_wire(TCP, transport, 10_000, 999),
                becomes(segments(1, 32 + 999), segments(11, 32) + 10_000)
            );
            // A datagram: 24 bytes that were the TCP header's are payload.
            assert_eq!(
                on_wire(UDP, transport, 10_000, 999),
                becomes(segments(1, 8 + 999), segments(11, 8) + 10_024)
            );
            assert_eq!(on_wire(TCP, transport, 10_000, 20_000), becomes(whole, whole));
        }
    }

    #[test]
    fn tcp_may_send_small_segments_but_not_crumbs() {
        // The smallest segments that Linux sends on its own account, in frames of the usual and of the largest size.
        for (payload, segment) in [(65_495, 536), (65_495, 36), (524_000, 536)] {
            assert!(on_wire(TCP, 14 + 20, payload, segment).is_ok(), "{segment}");
        }
        for protocol in [TCP, UDP] {
            for (payload, segment) in [(65_000, 1), (65_000, 31), (2073, 1)] {
                assert_eq!(on_wire(protocol, 14 + 20, payload, segment), Err(Reason::TooBig), "{segment}");
            }
        }
        assert!(on_wire(TCP, 14 + 20, 2048, 1).is_ok());
        // The longest chain of headers in front of each.
        assert_eq!(on_wire(TCP, 14 + 40 + 6 * 2048, 2048, 1), Err(Reason::TooBig));
        assert!(on_wire(TCP, 14 + 40 + 6 * 2048, 1350, 1).is_ok());
    }

    #[test]
    fn what_cannot_be_cut_is_malformed() {
        // ICMP, DCCP, UDP-Lite.
        for protocol in [1, 33, 58, 136] {
            assert_eq!(on_wire(protocol, 14 + 20, 3000, 1000), Err(Reason::Malformed), "{protocol}");
            assert_eq!(on_wire(protocol, 14 + 20, 3000, CHAIN), Err(Reason::Malformed), "{protocol}");
        }
        for protocol in [TCP, UDP] {
            assert_eq!(on_wire(protocol, 14 + 20, 3000, CHAIN), Err(Reason::Malformed), "{protocol}");
        }
        assert_eq!(on_wire(SCTP, 14 + 20, 3000, 1000), Err(Reason::Malformed));
        assert_eq!(
            on_wire(SCTP, 14 + 20, 3000, CHAIN),
            Ok(OnWire { longest: 0, bytes: 14 + 20 + 32 + 3000 })
        );
        // TCP headers that are shorter than any, or not there.
        for length in [14 + 20 + 12, 14 + 20 + 1000] {
            let bytes = vec![0; length];
            let frame = PacketBuf { bytes: &bytes, segment: 100, ..PacketBuf::default() };
            assert_eq!(OnWire::of::<V4>(&frame, &reading(TCP, 14 + 20)), Err(Reason::Malformed));
        }
        let bytes = [0; 3000];
        let frame = PacketBuf { bytes: &bytes, segment: 1400, ..PacketBuf::default() };
        let mut fragment = reading::<V4>(UDP, 14 + 20);
        fragment.is_fragment = true;
        assert_eq!(OnWire::of(&frame, &fragment), Err(Reason::Malformed));
        let alone = PacketBuf { segment: 0, ..frame };
        assert!(OnWire::of(&alone, &fragment).is_ok());
    }
}
