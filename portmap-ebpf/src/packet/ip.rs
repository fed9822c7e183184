//! IP headers, and what differs between the two versions of IP.

use core::fmt::Debug;

use portmap_common::{
    memory::Fragment,
    reason::Reason,
    tables::{Address6, Config, Listener},
};

use crate::{frame::Frame, tables::Tables, verdict::NextHop};

/// A version of IP.
pub trait Version: Copy + Debug {
    /// An address; two of them are compared faster than byte arrays.
    type Address: Copy + Debug + Default + PartialEq;

    /// Its number.
    const NUMBER: u32;

    /// The protocol of ICMP for this version.
    const ICMP: u32;

    /// Where the payload of the shortest header starts in a frame.
    const PLAIN: usize;

    /// The address that the host shares; none if it shares none of this version.
    fn shared(config: &Config) -> Option<Self::Address>;

    /// Whether an address is one of a host's own, whatever the host.
    fn is_loopback(address: Self::Address) -> bool;

    /// Whether Linux accepts packets with this address on a loopback device only.
    fn is_loopback_only(address: Self::Address) -> bool;

    /// Whether an address leads to the daemon's listener, if that is there and for nobody but the host.
    fn is_listener(address: Self::Address, listener: &Listener) -> bool;

    /// Whether an address is an IPv4 address in disguise (`::ffff:0:0/96`), which no packet has reason to carry: a socket
    /// of both versions takes it for that IPv4 address.
    fn is_disguised(address: Self::Address) -> bool;

    /// The address as 16 bytes, an IPv4 address as `::ffff:a.b.c.d`.
    fn mapped(address: Self::Address) -> Address6;

    /// The neighbour that leads to a destination outside.
    fn next_hop(destination: Self::Address, tables: &impl Tables) -> Result<NextHop, Reason>;

    /// Whether an address is on the uplink's network, and not that of a gateway.
    fn is_mere_neighbour(address: Self::Address, config: &Config) -> bool;

    /// Whether a packet is as most are: the shortest header, no extensions, no fragment, and a transport with ports.
    fn is_fast_path(frame: &impl Frame) -> bool;

    /// Reads the IP header of a frame that is said to have one.
    fn parse(frame: &impl Frame) -> Result<Ip<Self>, Reason>;

    /// Reads the IP header at `offset` that an ICMP error quotes, and finds what is behind it. The packet ends at `end`;
    /// whoever looks at what is behind must see that it lies before that, and so does the header then.
    fn quoted(frame: &impl Frame, offset: usize, end: usize) -> Option<Quoted<Self>>;

    /// Finds what is behind the IP header and its extensions.
    fn place(frame: &impl Frame, ip: &Ip<Self>) -> Result<Place, Reason>;

    /// Whether the header, without extensions, says that this is a later fragment.
    fn is_later(ip: &Ip<Self>) -> bool;

    /// The word behind the shortest IP header, if the frame has it.
    fn first_word(frame: &impl Frame) -> Option<u32>;

    /// Tells ICMP messages apart.
    fn message(kind: u8, code: u8) -> Message;

    /// What the first fragment of the datagram carried.
    fn fragment(tables: &impl Tables, ip: &Ip<Self>, id: u32, scope: u16) -> Option<Fragment>;

    /// Writes down what the first fragment of a datagram carried.
    fn set_fragment(tables: &impl Tables, ip: &Ip<Self>, id: u32, scope: u16, fragment: &Fragment);
}

/// An IP header.
#[derive(Clone, Copy, Debug)]
pub struct Ip<V: Version> {
    /// Source address.
    pub source: V::Address,
    /// Destination address.
    pub destination: V::Address,
    /// Protocol of what follows the header; for IPv6 perhaps an extension.
    pub protocol: u32,
    /// Where that starts in the frame.
    pub payload: usize,
    /// Where the packet ends in the frame; what is behind it is padding.
    pub end: usize,
    /// Flags and fragment offset as IPv4 has them; 0 for IPv6, whose are in an extension.
    pub fragment: u32,
}

/// What follows an IP header and its extensions. Its fields are whole words: it lies on the stack, where the kernel
/// refuses the misaligned accesses with which the compiler would move parts of words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its protocol.
    pub protocol: u32,
    /// Where it starts in the frame.
    pub offset: usize,
    /// Which part of a datagram it is.
    pub part: Part,
    /// That datagram's identification; 0 if the packet is whole.
    pub datagram: u32,
}

/// Which part of a datagram a packet is.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    Whole,
    /// The first fragment, which carries the transport header.
    First,
    /// A later fragment.
    Later,
}

impl Place {
    /// Whether it is a first fragment.
    #[inline(always)]
    pub fn is_first(&self) -> bool {
        self.part == Part::First
    }

    /// Whether it is a later fragment.
    #[inline(always)]
    pub fn is_later(&self) -> bool {
        self.part == Part::Later
    }
}

/// The header of a packet that an ICMP error quotes.
#[derive(Clone, Copy, Debug)]
pub struct Quoted<V: Version> {
    /// Source address.
    pub source: V::Address,
    /// Destination address.
    pub destination: V::Address,
    /// Protocol of what follows the header and its extensions.
    pub protocol: u32,
    /// Where that starts in the frame.
    pub offset: usize,
}

/// Kinds of ICMP messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Asks for an echo.
    EchoRequest,
    /// Answers that.
    EchoReply,
    /// Quotes a packet that went wrong.
    Error {
        /// Whether only routers have reason to send it, not the packet's receiver.
        by_router: bool,
    },
    /// IPv6 neighbour discovery.
    Neighbour,
    /// Anything else.
    Other,
}

/// Where a packet ends in a frame, from the end that the packet itself claims (0 if it claims none).
#[inline(always)]
pub fn end_of_packet(frame: &impl Frame, header: usize, length: u16) -> usize {
    let frame_end = frame.length() as usize;
    let claimed = header + length as usize;
    // A length of 0 stands for a super-packet of more than 64 KiB (BIG TCP).
    if length == 0 || claimed > frame_end { frame_end } else { claimed }
}
