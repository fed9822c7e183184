//! What the programs remember between packets: the first fragments of datagrams, who has asked for an echo, to whom the
//! host has spoken, and which neighbours containers have asked for.
//!
//! Identifications, identifiers and ports are native integers, addresses bytes in network order.

use crate::tables::{Address4, Address6};

/// Number of entries of each of the maps that are described here; the least recently used goes first.
pub const ENTRIES: usize = 8192;

/// Nanoseconds after which a first fragment no longer speaks for later ones: as long as Linux waits for the rest
/// of a datagram (`net.ipv4.ipfrag_time`).
pub const FRAGMENT_LIFETIME: u64 = 30_000_000_000;

/// Nanoseconds within which two first fragments of one datagram that say different things contradict each other. Identifications
/// come again (there are 65,536 over IPv4), so what is older is another datagram.
pub const CONTRADICTION: u64 = 1_000_000_000;

/// Flag in the scope of what a container's loopback device remembers.
pub const SCOPE_LOOPBACK: u16 = 0x8000;

/// An IPv4 datagram.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FragmentKey4 {
    /// Source address.
    pub source: Address4,
    /// Destination address.
    pub destination: Address4,
    /// Identification.
    pub id: u32,
    /// Who sent it: 0 for the outside and the host; a slot; a slot with [`SCOPE_LOOPBACK`] on that container's
    /// loopback device.
    pub scope: u16,
    /// Protocol.
    pub protocol: u16,
}

/// An IPv6 datagram. Its fragments may differ in the protocol that they claim, so that is not part of the key.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FragmentKey6 {
    /// Source address.
    pub source: Address6,
    /// Destination address.
    pub destination: Address6,
    /// Identification.
    pub id: u32,
    /// Who sent it, as in [`FragmentKey4::scope`].
    pub scope: u16,
    /// Reserved, 0.
    pub reserved: u16,
}

/// What the first fragment of a datagram carried.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fragment {
    /// When it passed, in nanoseconds of the monotonic clock.
    pub seen: u64,
    /// What it carried, see the constants.
    pub kind: u32,
    /// Source port, or identifier of an echo message.
    pub source: u16,
    /// Destination port; 0 for an echo message.
    pub destination: u16,
}

impl Fragment {
    /// A transport with ports.
    pub const PORTS: u32 = 0;
    /// An echo request.
    pub const ECHO_REQUEST: u32 = 1;
    /// An echo reply.
    pub const ECHO_REPLY: u32 = 2;
    /// Two first fragments said different things within [`CONTRADICTION`], so neither counts.
    pub const CONTRADICTED: u32 = 3;
}

/// An echo request that is out, by what its reply will carry.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EchoKey {
    /// The address that was asked; an IPv4 address as `::ffff:a.b.c.d`.
    pub peer: Address6,
    /// Identifier as it is outside.
    pub id: u32,
    /// Version of IP: an IPv6 packet may name an address that looks like a mapped one.
    pub version: u32,
}

/// Nanoseconds after its last request for which nobody else gets an identifier.
pub const ECHO_LIFETIME: u64 = 60_000_000_000;

/// Who has asked for an echo.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Echo {
    /// [`generation`](crate::tables::Endpoint::generation) of the container.
    pub generation: u32,
    /// Its slot; 0 for the host itself.
    pub slot: u16,
    /// The identifier that it used itself.
    pub id: u16,
    /// When it asked last, in nanoseconds of the monotonic clock.
    pub seen: u64,
}

impl Echo {
    /// Whether two requests are of the same asker, with the same identifier of its own.
    #[inline(always)]
    pub const fn is_like(&self, other: &Self) -> bool {
        self.generation == other.generation && self.slot == other.slot && self.id == other.id
    }
}

/// Nanoseconds for which the host waits for answers to what it has sent without a connection: as long as the kernel's
/// connection tracking waits for more of a stream of datagrams.
pub const HOST_FLOW_LIFETIME: u64 = 180_000_000_000;

/// Two ports between which the host has sent something to a container.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostFlowKey {
    /// The container's slot.
    pub slot: u16,
    /// The container's port.
    pub container_port: u16,
    /// The host's port.
    pub host_port: u16,
    /// Protocol.
    pub protocol: u16,
    /// Version of IP.
    pub version: u32,
}

/// When the host has sent something.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostFlow {
    /// The last time, in nanoseconds of the monotonic clock.
    pub seen: u64,
}

/// Nanoseconds for which a neighbour that a container has asked for is not new. However often it is asked for meanwhile: the
/// kernel keeps one that does not answer for about as long, and so a container's share of its table is bounded.
pub const NEIGHBOUR_LIFETIME: u64 = 60_000_000_000;

/// Nanoseconds that a container has to wait for each new neighbour.
pub const NEIGHBOUR_TIME: u64 = 125_000_000;

/// Nanoseconds by which it may be ahead of that: 64 new neighbours may come at once.
pub const NEIGHBOUR_SLACK: u64 = 63 * NEIGHBOUR_TIME;

/// A neighbour on the uplink's network that a container has asked for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NeighbourKey {
    /// Its address; an IPv4 address as `::ffff:a.b.c.d`.
    pub address: Address6,
    /// The container's slot.
    pub slot: u32,
    /// Version of IP.
    pub version: u32,
}

/// When it was asked for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Neighbour {
    /// The first time, in nanoseconds of the monotonic clock.
    pub seen: u64,
}

/// When what a container has asked for so far would have been asked for at the pace that it has.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NeighbourBudget {
    /// In nanoseconds of the monotonic clock.
    pub scheduled: u64,
}

const _: () = assert!(size_of::<NeighbourKey>() == 24);
const _: () = assert!(size_of::<Neighbour>() == 8);
const _: () = assert!(size_of::<NeighbourBudget>() == 8);
const _: () = assert!(size_of::<HostFlowKey>() == 12);
const _: () = assert!(size_of::<HostFlow>() == 8);
const _: () = assert!(size_of::<FragmentKey4>() == 16);
const _: () = assert!(size_of::<FragmentKey6>() == 40);
const _: () = assert!(size_of::<Fragment>() == 16);
const _: () = assert!(size_of::<EchoKey>() == 24);
const _: () = assert!(size_of::<Echo>() == 16);
