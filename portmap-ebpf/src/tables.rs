//! The interface between a hook and the maps: lookups, and state for later packets.

use portmap_common::{
    flow_state::{
        Echo, EchoKey, FragCacheEntry, FragmentKey4, FragmentKey6, HostConnection, HostConnectionKey,
        HostFlow, HostFlowKey, Neighbour, NeighbourKey,
    },
    gcra::GcraState,
    tables::{Address4, Address6, Config, Endpoint, PortEntry},
};

use crate::fib::{FibAnswer, FibQuestion};

/// The maps: in the kernel, through the daemon's system calls, or in a test's memory.
///
/// `testing::FakeTables` serves tests that need no more than maps in memory.
pub trait Tables {
    /// Returns the owner of `port`.
    fn port(&self, port: u16) -> PortEntry;

    /// Returns the container in `slot`; all zero if there is none.
    fn endpoint(&self, slot: u16) -> Endpoint;

    /// Returns the configuration of the host's network.
    fn config(&self) -> &Config;

    /// Returns the time in nanoseconds of the monotonic clock.
    fn now(&self) -> u64;

    /// Returns the fragment cache entry of an IPv4 datagram.
    fn fragment4(&self, key: &FragmentKey4) -> Option<FragCacheEntry>;

    /// Inserts or replaces the fragment cache entry of an IPv4 datagram.
    fn set_fragment4(&self, key: &FragmentKey4, entry: &FragCacheEntry);

    /// Returns the fragment cache entry of an IPv6 datagram.
    fn fragment6(&self, key: &FragmentKey6) -> Option<FragCacheEntry>;

    /// Inserts or replaces the fragment cache entry of an IPv6 datagram.
    fn set_fragment6(&self, key: &FragmentKey6, entry: &FragCacheEntry);

    /// Returns the owner of an ICMP identifier.
    fn echo(&self, key: &EchoKey) -> Option<Echo>;

    /// Gives an ICMP identifier to an owner, whether or not it has another one.
    fn set_echo(&self, key: &EchoKey, echo: &Echo);

    /// Updates the time of the owner's last request.
    fn renew_echo(&self, key: &EchoKey, seen: u64);

    /// Gives an ICMP identifier to an owner, unless another CPU has given it to another one first; then
    /// returns false. `stale` is the entry that may be replaced.
    fn claim_echo(&self, key: &EchoKey, echo: &Echo, stale: Option<Echo>) -> bool;

    /// Returns whether containers may reach one of the host's ports, if access is limited.
    fn is_host_port_allowed(&self, port: u16) -> bool;

    /// Returns a flow from the host to a container.
    fn host_flow(&self, key: &HostFlowKey) -> Option<HostFlow>;

    /// Inserts or replaces a flow from the host to a container.
    fn set_host_flow(&self, key: &HostFlowKey, flow: &HostFlow);

    /// Returns when a container was charged for a neighbour.
    fn neighbour(&self, key: &NeighbourKey) -> Option<Neighbour>;

    /// Inserts or replaces the time at which a container was charged for a neighbour.
    fn set_neighbour(&self, key: &NeighbourKey, neighbour: &Neighbour);

    /// Charges a slot for a new neighbour and returns true, or returns false if that exceeds its neighbour
    /// policer.
    fn charge_neighbour(&self, slot: u16, now: u64) -> bool;

    /// Returns whether an address is a broadcast address of one of the host's networks other than the shared
    /// one.
    fn is_broadcast(&self, address: Address4) -> bool;

    /// Returns whether an IPv4 address is a shared one other than the primary one.
    fn is_address4(&self, address: Address4) -> bool;

    /// Returns whether an IPv6 address is a shared one other than the primary one.
    fn is_address6(&self, address: Address6) -> bool;

    /// Asks the kernel's routing tables (FIB) how the host itself would send a packet.
    fn fib(&self, question: &FibQuestion) -> FibAnswer;

    /// Returns a connection of the host's from a port that a container owns; all zero if there is none.
    fn host_connection(&self, key: &HostConnectionKey) -> HostConnection;

    /// Inserts or replaces such a connection, and sets the port's flag
    /// [`HOST_CONNECTIONS`](portmap_common::tables::HOST_CONNECTIONS).
    fn set_host_connection(&self, key: &HostConnectionKey, connection: &HostConnection);

    /// Returns the egress rate policer of a slot; `None` or a zero rate if it has no limit.
    fn policer(&self, slot: u16) -> Option<&GcraState>;

    /// Advances the theoretical arrival time (TAT) of a slot's policer by `time` nanoseconds, from `now` if
    /// it is earlier than that, and returns true. Leaves it alone and returns false if it is ahead of `now`
    /// by more than `tolerance`.
    fn advance_tat(&self, slot: u16, time: u64, now: u64, tolerance: u64) -> bool;
}

/// A key of the fragment cache, which has one map per IP version.
pub trait FragmentKey: Sized {
    /// Returns the entry with this key.
    fn get(self, tables: &impl Tables) -> Option<FragCacheEntry>;

    /// Inserts or replaces the entry with this key.
    fn set(self, tables: &impl Tables, entry: &FragCacheEntry);
}

impl FragmentKey for FragmentKey4 {
    #[inline(always)]
    fn get(self, tables: &impl Tables) -> Option<FragCacheEntry> {
        tables.fragment4(&self)
    }

    #[inline(always)]
    fn set(self, tables: &impl Tables, entry: &FragCacheEntry) {
        tables.set_fragment4(&self, entry);
    }
}

impl FragmentKey for FragmentKey6 {
    #[inline(always)]
    fn get(self, tables: &impl Tables) -> Option<FragCacheEntry> {
        tables.fragment6(&self)
    }

    #[inline(always)]
    fn set(self, tables: &impl Tables, entry: &FragCacheEntry) {
        tables.set_fragment6(&self, entry);
    }
}
