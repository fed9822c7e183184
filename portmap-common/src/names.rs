//! Names of maps and programs, as `bpftool` shows them (the kernel keeps 15 characters) and as they are
//! pinned.

/// Name of the programs' constant with the offsets of kernel fields, see
/// [`SkbLayout`](crate::skb::SkbLayout).
pub const SKB_LAYOUT: &str = "SKB_LAYOUT";

/// Port to owner: `ARRAY` of 65,536 [`PortEntry`](crate::tables::PortEntry), mapped into the daemon's memory.
pub const MAP_PORTS: &str = "pm_ports";
/// Slot to container: `ARRAY` of [`Endpoint`](crate::tables::Endpoint).
pub const MAP_ENDPOINTS: &str = "pm_endpoints";
/// The host's addresses: `ARRAY` of one [`Config`](crate::tables::Config).
pub const MAP_CONFIG: &str = "pm_config";
/// Slot to delivered traffic: `PERCPU_ARRAY` of [`Counters`](crate::counters::Counters).
pub const MAP_COUNTERS: &str = "pm_counters";
/// Slot to drops by reason: `ARRAY` of [`Drops`](crate::reason::Drops).
pub const MAP_DROPS: &str = "pm_drops";
/// Host hook to packets left to the host by reason: `PERCPU_ARRAY` of
/// [`ReasonCounts`](crate::reason::ReasonCounts), indexed by [`HostHook`](crate::reason::HostHook).
pub const MAP_HOST: &str = "pm_host";

/// Fragment cache for IPv4: `LRU_HASH` of [`FragmentKey4`](crate::flow_state::FragmentKey4) to
/// [`FragCacheEntry`](crate::flow_state::FragCacheEntry).
pub const MAP_FRAGMENTS4: &str = "pm_frags4";
/// Fragment cache for IPv6, keyed by [`FragmentKey6`](crate::flow_state::FragmentKey6).
pub const MAP_FRAGMENTS6: &str = "pm_frags6";
/// Owners of ICMP identifiers: `LRU_HASH` of [`EchoKey`](crate::flow_state::EchoKey) to
/// [`Echo`](crate::flow_state::Echo).
pub const MAP_ECHO: &str = "pm_echo";
/// Samples of dropped packets: `RINGBUF` of [`DropEvent`](crate::event::DropEvent).
pub const MAP_EVENTS: &str = "pm_events";
/// Slot to the limit on its samples: `ARRAY` of [`SampleLimiter`](crate::event::SampleLimiter).
pub const MAP_BUDGETS: &str = "pm_budgets";
/// Slot to its egress rate policer: `ARRAY` of [`GcraState`](crate::gcra::GcraState).
pub const MAP_LIMITS: &str = "pm_limits";

/// The host's ports that containers may reach if [access is limited](crate::tables::HOST_ACCESS_LIMITED):
/// `ARRAY` of words with one bit per port, the lowest port in the lowest bit.
pub const MAP_HOST_ACCESS: &str = "pm_host_access";
/// Flows from the host to containers: `LRU_HASH` of [`HostFlowKey`](crate::flow_state::HostFlowKey) to
/// [`HostFlow`](crate::flow_state::HostFlow).
pub const MAP_HOST_FLOWS: &str = "pm_host_flows";

/// Neighbours that containers have used: `LRU_HASH` of [`NeighbourKey`](crate::flow_state::NeighbourKey) to
/// [`Neighbour`](crate::flow_state::Neighbour).
pub const MAP_NEIGHBOURS: &str = "pm_neighbours";
/// Slot to its neighbour policer: `ARRAY` of [`NeighbourBudget`](crate::flow_state::NeighbourBudget).
pub const MAP_NEIGHBOUR_BUDGETS: &str = "pm_neigh_budget";

/// Broadcast addresses of the host's networks other than the shared one: `HASH` of
/// [`Address4`](crate::tables::Address4) to 1.
pub const MAP_BROADCASTS: &str = "pm_broadcasts";

/// Shared IPv4 addresses other than the primary one: `HASH` of [`Address4`](crate::tables::Address4) to 1.
pub const MAP_ADDRESSES4: &str = "pm_addresses4";
/// The same for IPv6.
pub const MAP_ADDRESSES6: &str = "pm_addresses6";
/// 0 to the filter in front of the two maps of addresses: `ARRAY` of
/// [`AddressFilter`](crate::address_filter::AddressFilter).
pub const MAP_ADDRESS_FILTER: &str = "pm_addr_filter";
/// Connections of the host's from ports that containers own: `LRU_HASH` of
/// [`HostConnectionKey`](crate::flow_state::HostConnectionKey) to
/// [`HostConnection`](crate::flow_state::HostConnection).
pub const MAP_HOST_CONNECTIONS: &str = "pm_host_conns";

/// Targets of tail calls: `PROG_ARRAY`, in the order of [`TAIL_CALLS`]. The map keeps this
/// name, because another one needs a new layout version.
pub const MAP_TAIL_CALLS: &str = "pm_rest";

/// Network namespace cookie to container: `HASH` of [`NetnsOwner`](crate::tables::NetnsOwner). It exists with
/// the bind guard only.
pub const MAP_GUARDED: &str = "pm_guarded";

/// All maps that exist in every configuration, in the order of their descriptions above.
pub const MAPS: [&str; 22] = [
    MAP_PORTS,
    MAP_ENDPOINTS,
    MAP_CONFIG,
    MAP_COUNTERS,
    MAP_DROPS,
    MAP_HOST,
    MAP_FRAGMENTS4,
    MAP_FRAGMENTS6,
    MAP_ECHO,
    MAP_EVENTS,
    MAP_BUDGETS,
    MAP_LIMITS,
    MAP_HOST_ACCESS,
    MAP_HOST_FLOWS,
    MAP_NEIGHBOURS,
    MAP_NEIGHBOUR_BUDGETS,
    MAP_BROADCASTS,
    MAP_ADDRESSES4,
    MAP_ADDRESSES6,
    MAP_ADDRESS_FILTER,
    MAP_HOST_CONNECTIONS,
    MAP_TAIL_CALLS,
];

/// Program at the uplink's ingress.
pub const PROG_UPLINK_INGRESS: &str = "pm_uplink_in";
/// Program at the ingress of every host veth.
pub const PROG_VETH_INGRESS: &str = "pm_veth_in";
/// Program at the ingress of the host's loopback device.
pub const PROG_LO_INGRESS: &str = "pm_lo_in";
/// Program at the egress of every container's loopback device.
pub const PROG_CONTAINER_LO: &str = "pm_ctr_lo_out";

/// Program at the uplink's egress.
pub const PROG_UPLINK_EGRESS: &str = "pm_uplink_out";
/// Program at the ingress of every container's `eth0`.
pub const PROG_CONTAINER_ETH0: &str = "pm_ctr_eth0_in";

/// Program at the ingress of interfaces without Ethernet headers.
pub const PROG_L3_INGRESS: &str = "pm_l3_in";
/// Program at the egress of interfaces without Ethernet headers.
pub const PROG_L3_EGRESS: &str = "pm_l3_out";

/// Programs of the bind guard, for both versions of IP.
pub const GUARDS: [&str; 2] = ["pm_bind4", "pm_bind6"];

/// Program that logs a verdict. It and its maps exist with the feature `datapath-log` only.
pub const PROG_LOG: &str = "pm_log";
/// The [`LogFilter`](crate::verdict_log::LogFilter), at index 0.
pub const MAP_LOG_FILTER: &str = "pm_log_filter";
/// The [`LogLimiter`](crate::verdict_log::LogLimiter), at index 0.
pub const MAP_LOG_LIMITER: &str = "pm_log_limiter";
/// The target of the tail call to [`PROG_LOG`], at index 0.
pub const MAP_LOG_PROGRAM: &str = "pm_log_program";

/// The programs that are attached to interfaces.
pub const PROGRAMS: [&str; 8] = [
    PROG_UPLINK_INGRESS,
    PROG_VETH_INGRESS,
    PROG_LO_INGRESS,
    PROG_CONTAINER_LO,
    PROG_UPLINK_EGRESS,
    PROG_CONTAINER_ETH0,
    PROG_L3_INGRESS,
    PROG_L3_EGRESS,
];

/// The targets of tail calls: the slow path of each hook by IP version, and the program that records drops. A
/// program's position here is its index in [`MAP_TAIL_CALLS`].
pub const TAIL_CALLS: [&str; 15] = [
    "pm_uplink_in4",
    "pm_uplink_in6",
    "pm_veth_in4",
    "pm_veth_in6",
    "pm_lo_in4",
    "pm_lo_in6",
    "pm_ctr_lo_out4",
    "pm_ctr_lo_out6",
    "pm_uplink_out4",
    "pm_uplink_out6",
    "pm_dropped",
    "pm_l3_in4",
    "pm_l3_in6",
    "pm_l3_out4",
    "pm_l3_out6",
];

/// Returns the index of a program in [`TAIL_CALLS`].
///
/// # Panics
///
/// If there is no such program; in a const context that is a compile error.
pub const fn tail_call_index(name: &str) -> u32 {
    let mut index = 0;
    while index < TAIL_CALLS.len() {
        if is_same(TAIL_CALLS[index], name) {
            #[expect(clippy::cast_possible_truncation, reason = "there are few")]
            return index as u32;
        }
        index += 1;
    }
    panic!("no such program")
}

const fn is_same(one: &str, other: &str) -> bool {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    if one.len() != other.len() {
        return false;
    }
    let mut at = 0;
    while at < one.len() {
        if one[at] != other[at] {
            return false;
        }
        at += 1;
    }
    true
}
