//! TCP segments that open, end or abort a connection.

use crate::reader::{Behind, Packet, Part};

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// A TCP segment, or its first fragment.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// `None` if the packet contains fewer than sixteen bytes of the header.
    flags: Option<u8>,
}

impl Segment {
    /// Returns the segment in a packet.
    pub fn of(packet: &Packet<'_>, behind: Behind) -> Option<Self> {
        let is_there = behind.protocol == 6 && !matches!(behind.part, Part::Subsequent(_));
        let header = packet.bytes.get(behind.at..behind.at + 16);
        is_there.then(|| Self { flags: header.map(|header| header[13]) })
    }

    /// Returns whether it opens a connection.
    pub fn opens(self) -> bool {
        self.flags.is_none_or(|flags| flags & (SYN | ACK) == SYN)
    }

    /// Returns whether it ends a connection.
    pub fn ends(self) -> bool {
        self.has(FIN | RST)
    }

    /// Returns whether it aborts a connection.
    pub fn aborts(self) -> bool {
        self.has(RST)
    }

    fn has(self, any: u8) -> bool {
        self.flags.is_some_and(|flags| flags & any != 0)
    }
}
