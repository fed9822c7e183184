//! IP headers, and the differences between the two IP versions.

use core::fmt::Debug;

use portmap_common::{
    reason::Reason,
    tables::{Address6, Config, Listener},
};

use super::icmp_message::IcmpMessage;
use crate::{
    frame::Frame,
    tables::{FragmentKey, Tables},
};

/// An IP version.
pub trait IpVersion: Copy + Debug {
    /// An address, as integers: they are compared faster than byte arrays.
    type Address: Copy + Debug + Default + PartialEq;

    /// Its key of the fragment cache.
    type FragmentKey: FragmentKey;

    /// Version number.
    const NUMBER: u32;

    /// Protocol number of this version's ICMP.
    const ICMP: u32;

    /// Offset of the L4 header in a frame whose IP header has the minimum length.
    const MIN_L4_OFFSET: usize;

    /// Returns whether the host shares addresses of this version.
    fn is_shared_at_all(config: &Config) -> bool;

    /// Returns whether an address is one that the host shares with all containers.
    fn is_shared(address: Self::Address, tables: &impl Tables) -> bool;

    /// Returns whether an address is a shared one or a loopback address.
    #[inline(always)]
    fn is_local(address: Self::Address, tables: &impl Tables) -> bool {
        Self::is_shared(address, tables) || Self::is_loopback(address)
    }

    /// Returns whether an address is a loopback address.
    fn is_loopback(address: Self::Address) -> bool;

    /// Returns whether Linux accepts packets with this address on a loopback device only.
    fn is_loopback_only(address: Self::Address) -> bool;

    /// Returns whether an address is the daemon's listener's, which only the host may reach.
    fn is_listener(address: Self::Address, listener: &Listener) -> bool;

    /// Returns whether an address is a mapped IPv4 address (`::ffff:0:0/96`), which no valid packet carries:
    /// a dual-stack socket takes it for that IPv4 address.
    fn is_v4_mapped(address: Self::Address) -> bool;

    /// Returns the address as 16 bytes, an IPv4 address as `::ffff:a.b.c.d`.
    fn to_mapped(address: Self::Address) -> Address6;

    /// Returns whether a packet takes the fast path: it has the minimum header, no extensions, is not
    /// fragmented, and its transport has ports.
    fn is_fast_path(frame: &impl Frame) -> bool;

    /// Parses the IP header of a frame with this version's Ethertype.
    fn parse(frame: &impl Frame) -> Result<IpHeader<Self>, Reason>;

    /// Parses the header at `offset` of the inner packet of an ICMP error, and locates its L4 header. The
    /// outer packet ends at `end`. The caller must check that the L4 bytes that it reads lie before `end`;
    /// the header then lies before it, too.
    fn parse_inner(frame: &impl Frame, offset: usize, end: usize) -> Option<InnerHeader<Self>>;

    /// Locates the L4 header, behind all extension headers.
    fn locate_l4(frame: &impl Frame, ip: &IpHeader<Self>) -> Result<L4Location, Reason>;

    /// Returns whether the header alone, without extension headers, marks a fragment other than the first.
    fn is_subsequent_fragment(ip: &IpHeader<Self>) -> bool;

    /// Loads the first four bytes at [`MIN_L4_OFFSET`](Self::MIN_L4_OFFSET), if the frame has them.
    fn first_l4_word(frame: &impl Frame) -> Option<u32>;

    /// Classifies an ICMP message by type and code.
    fn classify_icmp(kind: u8, code: u8) -> IcmpMessage;

    /// Returns the key of a datagram with this identification in the fragment cache. For `scope` see
    /// [`FragmentKey4::scope`](portmap_common::flow_state::FragmentKey4::scope).
    fn fragment_key(ip: &IpHeader<Self>, id: u32, scope: u16) -> Self::FragmentKey;
}

/// An IP header.
#[derive(Clone, Copy, Debug)]
pub struct IpHeader<V: IpVersion> {
    /// Source address.
    pub source: V::Address,
    /// Destination address.
    pub destination: V::Address,
    /// Protocol of the payload. For IPv6 it may be an extension header.
    pub protocol: u32,
    /// Offset of the payload in the frame.
    pub payload: usize,
    /// Offset of the end of the packet in the frame. The bytes behind it are padding.
    pub end: usize,
    /// Flags and fragment offset of IPv4; 0 for IPv6, which has them in an extension header.
    pub fragment: u32,
}

/// Location of the L4 header. The fields are whole words, because the value lies on the stack, where the
/// kernel rejects the misaligned accesses with which LLVM would copy parts of words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct L4Location {
    /// Its protocol.
    pub protocol: u32,
    /// Its offset in the frame.
    pub offset: usize,
    /// Position of the packet in its datagram.
    pub position: FragmentPosition,
    /// The datagram's identification; 0 if it is not fragmented.
    pub datagram: u32,
}

/// Position of a packet in its datagram.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FragmentPosition {
    /// The whole datagram.
    Unfragmented,
    /// The first fragment, which contains the L4 header.
    First,
    /// A fragment other than the first.
    Subsequent,
}

impl L4Location {
    /// Returns whether the packet is a first fragment.
    #[inline(always)]
    pub fn is_first(&self) -> bool {
        self.position == FragmentPosition::First
    }

    /// Returns whether the packet is a fragment other than the first.
    #[inline(always)]
    pub fn is_subsequent(&self) -> bool {
        self.position == FragmentPosition::Subsequent
    }
}

/// The IP header of the inner packet of an ICMP error.
#[derive(Clone, Copy, Debug)]
pub struct InnerHeader<V: IpVersion> {
    /// Source address.
    pub source: V::Address,
    /// Destination address.
    pub destination: V::Address,
    /// L4 protocol.
    pub protocol: u32,
    /// Offset of the L4 header in the frame.
    pub offset: usize,
}

/// Returns the offset of the end of a packet in its frame, from the length in the IP header (0 if it has
/// none).
#[inline(always)]
pub fn end_of_packet(frame: &impl Frame, header: usize, length: u16) -> usize {
    let frame_end = frame.length() as usize;
    let claimed = header + length as usize;
    // A length of 0 is that of a super-packet of more than 64 KiB (BIG TCP).
    if length == 0 || claimed > frame_end { frame_end } else { claimed }
}
