//! Questions to the kernel's routing tables (FIB), and its answers.

use portmap_common::tables::Address6;

use crate::verdict::NextHop;

/// A question to the FIB: the parts of a packet on which routes and rules can depend.
#[derive(Clone, Copy, Debug)]
pub struct FibQuestion {
    /// Source address; an IPv4 address as `::ffff:a.b.c.d`.
    pub source: Address6,
    /// Destination address, in the same form.
    pub destination: Address6,
    /// IP version.
    pub version: u32,
    /// Protocol of the datagram, also for a subsequent fragment.
    pub protocol: u32,
    /// Source port; 0 if the packet has none, as an ICMP error.
    pub source_port: u16,
    /// Destination port; 0 if the packet has none.
    pub destination_port: u16,
}

/// The FIB's answer; by default, that there is no route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FibAnswer {
    /// One of the constants below.
    pub outcome: u32,
    /// Index of the interface; 0 if there is no route.
    pub ifindex: u32,
    /// The neighbour; [`NextHop::KERNEL`] if there is no route.
    pub next_hop: NextHop,
}

impl FibAnswer {
    /// There is no route to the outside, or one that rejects the packet.
    pub const NO_ROUTE: u32 = 0;
    /// The packet goes to a neighbour whose link-layer address the kernel knows.
    pub const RESOLVED: u32 = 1;
    /// The packet goes to a neighbour that the kernel must resolve first.
    pub const UNRESOLVED: u32 = 2;

    /// No route.
    pub const NONE: Self = Self { outcome: Self::NO_ROUTE, ifindex: 0, next_hop: NextHop::KERNEL };
}
