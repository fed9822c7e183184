//! Names of maps and programs, as `bpftool` shows them (the kernel keeps 15 characters) and as they are pinned.

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
/// Host hook to packets left to the host, by reason: `PERCPU_ARRAY` of
/// [`ReasonCounts`](crate::reason::ReasonCounts), indexed by [`HostHook`](crate::reason::HostHook).
pub const MAP_HOST: &str = "pm_host";

/// All maps, in the order in which they are described above.
pub const MAPS: [&str; 6] = [MAP_PORTS, MAP_ENDPOINTS, MAP_CONFIG, MAP_COUNTERS, MAP_DROPS, MAP_HOST];

/// Program at the uplink's ingress.
pub const PROG_UPLINK_INGRESS: &str = "pm_uplink_in";
/// Program at the ingress of every host veth.
pub const PROG_VETH_INGRESS: &str = "pm_veth_in";
/// Program at the ingress of the host's loopback device.
pub const PROG_LO_INGRESS: &str = "pm_lo_in";
/// Program at the egress of every container's loopback device.
pub const PROG_CONTAINER_LO: &str = "pm_ctr_lo_out";

/// All programs.
pub const PROGRAMS: [&str; 4] = [PROG_UPLINK_INGRESS, PROG_VETH_INGRESS, PROG_LO_INGRESS, PROG_CONTAINER_LO];
