//! State that the programs keep between packets: the fragment cache, the owners of ICMP identifiers, flows of
//! the host, and neighbours that containers have used.
//!
//! Identifications, identifiers and ports are native integers; addresses are bytes in network order.

use crate::tables::{Address4, Address6};

/// Number of entries of each LRU map with a type of this module.
pub const ENTRIES: usize = 8192;

/// Nanoseconds for which a fragment cache entry is valid: the time for which Linux waits for the other
/// fragments of a datagram (`net.ipv4.ipfrag_time`).
pub const FRAGMENT_LIFETIME: u64 = 30_000_000_000;

/// Nanoseconds within which two different first fragments with one key are a conflict. An older entry belongs
/// to an earlier datagram, because identifications are reused (IPv4 has 65,536).
pub const CONFLICT_WINDOW: u64 = 1_000_000_000;

/// Flag in [`FragmentKey4::scope`] for fragments on a container's loopback device.
pub const SCOPE_LOOPBACK: u16 = 0x8000;

/// Key of an IPv4 datagram in the fragment cache.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FragmentKey4 {
    /// Source address.
    pub source: Address4,
    /// Destination address.
    pub destination: Address4,
    /// Identification.
    pub id: u32,
    /// The sender: 0 for the outside and the host, else the container's slot, with [`SCOPE_LOOPBACK`] set on
    /// its loopback device.
    pub scope: u16,
    /// Protocol.
    pub protocol: u16,
}

/// Key of an IPv6 datagram in the fragment cache. The protocol is not part of it, because the fragments of
/// one datagram may carry different values.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FragmentKey6 {
    /// Source address.
    pub source: Address6,
    /// Destination address.
    pub destination: Address6,
    /// Identification.
    pub id: u32,
    /// The sender, as in [`FragmentKey4::scope`].
    pub scope: u16,
    /// Reserved, 0.
    pub reserved: u16,
}

/// Fragment cache entry: the ports or the ICMP identifier of a datagram's first fragment.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FragCacheEntry {
    /// When the first fragment passed, in nanoseconds of the monotonic clock.
    pub seen: u64,
    /// L4 kind, one of the constants below.
    pub kind: u32,
    /// Source port, or the identifier of an echo message.
    pub source: u16,
    /// Destination port; 0 for an echo message.
    pub destination: u16,
}

impl FragCacheEntry {
    /// A transport with ports.
    pub const PORTS: u32 = 0;
    /// An echo request.
    pub const ECHO_REQUEST: u32 = 1;
    /// An echo reply.
    pub const ECHO_REPLY: u32 = 2;
    /// Two different first fragments within [`CONFLICT_WINDOW`]: neither is used.
    pub const CONFLICT: u32 = 3;
}

/// Key of an outstanding echo request: the fields by which its reply is matched.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EchoKey {
    /// Destination address of the request; an IPv4 address as `::ffff:a.b.c.d`.
    pub peer: Address6,
    /// Identifier on the wire.
    pub id: u32,
    /// IP version: an IPv6 packet can carry an address that looks like a mapped IPv4 address.
    pub version: u32,
}

/// Nanoseconds for which an identifier stays with its owner after the owner's last request.
pub const ECHO_LIFETIME: u64 = 60_000_000_000;

/// Owner of an ICMP identifier towards one peer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Echo {
    /// [`generation`](crate::tables::Endpoint::generation) of the container.
    pub generation: u32,
    /// Its slot; 0 for the host itself.
    pub slot: u16,
    /// The identifier that the owner itself uses.
    pub id: u16,
    /// When it sent its last request, in nanoseconds of the monotonic clock.
    pub seen: u64,
}

impl Echo {
    /// Returns whether both entries have one owner, with one identifier of its own.
    #[inline(always)]
    pub const fn is_same_owner(&self, other: &Self) -> bool {
        self.generation == other.generation && self.slot == other.slot && self.id == other.id
    }
}

/// Nanoseconds for which a container may reply to the host's datagrams: the timeout of the kernel's
/// connection tracking for UDP streams.
pub const HOST_FLOW_LIFETIME: u64 = 180_000_000_000;

/// Key of a flow from the host to a container.
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
    /// IP version.
    pub version: u32,
}

/// A flow from the host to a container, whose packets the container may reply to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostFlow {
    /// When the host sent its last packet, in nanoseconds of the monotonic clock.
    pub seen: u64,
}

/// Number of entries of the LRU map of [`HostConnection`]s.
pub const HOST_CONNECTION_ENTRIES: usize = 65_536;

/// Nanoseconds for which an idle TCP connection of the host's is remembered: the timeout of the kernel's
/// connection tracking (`nf_conntrack_tcp_timeout_established`, five days).
pub const HOST_TCP_LIFETIME: u64 = 432_000_000_000_000;

/// Nanoseconds for which other connections of the host's are remembered: datagrams, and TCP after a FIN or a
/// RST. The timeout of the kernel's connection tracking for UDP streams, which is longer than its one for TCP
/// in `TIME_WAIT` (120 seconds).
pub const HOST_CONNECTION_LIFETIME: u64 = 180_000_000_000;

/// Nanoseconds after which the time of a connection is written again, so that not every packet writes.
pub const HOST_CONNECTION_REFRESH: u64 = 1_000_000_000;

/// Key of a connection of the host's own, or of one whose source the host's NAT has translated, from a port
/// that a container owns. As a port has one owner for all protocols, the protocol is not part of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostConnectionKey {
    /// The peer's address; an IPv4 address as `::ffff:a.b.c.d`.
    pub peer: Address6,
    /// The host's address, in the same form.
    pub local: Address6,
    /// The peer's port.
    pub peer_port: u16,
    /// The port at the host's address.
    pub local_port: u16,
    /// IP version: an IPv6 packet can carry an address that looks like a mapped IPv4 address.
    pub version: u32,
}

/// A connection of the host's, whose packets are not the port owner's.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostConnection {
    /// When the connection ends unless it is used again, in nanoseconds of the monotonic clock.
    pub until: u64,
    /// 1 for TCP after a FIN or a RST.
    pub closing: u32,
    /// Reserved, 0.
    pub reserved: u32,
}

/// Nanoseconds after which the kernel is asked again whether a neighbour answers.
pub const NEIGHBOUR_CHECK_INTERVAL: u64 = 10_000_000;

/// Nanoseconds for which a neighbour that a container has used is not new again, however often it is used
/// meanwhile. The kernel keeps an unreachable neighbour for about that time, so a container's share of the
/// neighbour table is bounded.
pub const NEIGHBOUR_LIFETIME: u64 = 60_000_000_000;

/// Nanoseconds per new neighbour: the emission interval of a container's neighbour policer.
pub const NEIGHBOUR_INTERVAL: u64 = 125_000_000;

/// Tolerance of that policer in nanoseconds: a burst of 64 new neighbours conforms.
pub const NEIGHBOUR_TOLERANCE: u64 = 63 * NEIGHBOUR_INTERVAL;

/// Key of a neighbour on the uplink's network that a container has used.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NeighbourKey {
    /// Its address; an IPv4 address as `::ffff:a.b.c.d`.
    pub address: Address6,
    /// The container's slot.
    pub slot: u32,
    /// IP version.
    pub version: u32,
}

/// A neighbour that a container has used.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Neighbour {
    /// When the container was charged for it, in nanoseconds of the monotonic clock.
    pub seen: u64,
    /// When the kernel's FIB was last asked about it, in nanoseconds of the monotonic clock.
    pub checked: u64,
}

/// State of a container's neighbour policer (GCRA, as [`GcraState`](crate::gcra::GcraState)).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NeighbourBudget {
    /// Theoretical arrival time, in nanoseconds of the monotonic clock.
    pub tat: u64,
}

const _: () = assert!(size_of::<NeighbourKey>() == 24);
const _: () = assert!(size_of::<Neighbour>() == 16);
const _: () = assert!(size_of::<HostConnectionKey>() == 40);
const _: () = assert!(size_of::<HostConnection>() == 16);
const _: () = assert!(size_of::<NeighbourBudget>() == 8);
const _: () = assert!(size_of::<HostFlowKey>() == 12);
const _: () = assert!(size_of::<HostFlow>() == 8);
const _: () = assert!(size_of::<FragmentKey4>() == 16);
const _: () = assert!(size_of::<FragmentKey6>() == 40);
const _: () = assert!(size_of::<FragCacheEntry>() == 16);
const _: () = assert!(size_of::<EchoKey>() == 24);
const _: () = assert!(size_of::<Echo>() == 16);
