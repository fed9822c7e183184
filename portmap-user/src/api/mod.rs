//! The HTTP API: requests and responses on the Unix socket, in JSON. `-o json` prints the same responses.

mod capacity;
mod container_state;
mod drops;
mod events;
mod explain;
mod flows;
pub mod monitor;
mod object;
mod wire;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use self::wire::{As, AsList, AsOption};
pub use self::{
    capacity::{
        BlockCapacity, Bound, Capacity, ContainerCapacity, EphemeralCapacity, LimitPolicies, LimitPolicy,
        SlotCapacity, StaticCapacity,
    },
    container_state::ContainerState,
    drops::{Direction, DropCount, DropSample, DropStreamItem, OUTSIDE, endpoint},
    events::{Event, EventContainer, EventDetails, EventKind, EventStreamItem, Requester},
    explain::{ExplainRequest, ExplainedPacket, Explanation, HOST, Outcome, Step},
    flows::{Flow, FlowDirection, Flows, FlowsRequest, OtherFlows},
    object::Object,
};
use crate::model::{
    AutomaticRange, LabelChanges, Labels, Limit, Loopback, PortRange, PortSet, PortUse, Process, QueueStats,
    RttPercentiles, TrafficSpec,
};

/// Request to add a container.
#[expect(
    clippy::struct_excessive_bools,
    reason = "they are independent properties, each with a key of its own"
)]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddRequest {
    /// Its name.
    pub name: String,
    /// Path of an existing network namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<PathBuf>,
    /// A process in an existing network namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Name of its interface; `None`: `eth0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_interface: Option<String>,
    /// Static ports, by number.
    #[serde(default, with = "As::<wire::Ports>")]
    pub ports: PortSet,
    /// Further static ports, which the daemon chooses.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "AsList::<wire::AutomaticRange>")]
    pub automatic_ports: Vec<AutomaticRange>,
    /// Whether static ports may be taken from listening processes of the host.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub take: bool,
    /// Whether an existing namespace gets the host's sysctls; a new one always does.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub inherit_sysctls: bool,
    /// Number of ephemeral ports; `None`: the daemon's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ephemeral_ports_per_container: Option<u16>,
    /// Properties of its traffic.
    #[serde(
        default,
        serialize_with = "As::<wire::TrafficSpec>::serialize",
        deserialize_with = "As::<wire::TrafficSpec>::deserialize_object"
    )]
    pub traffic: TrafficSpec,
    /// Its labels.
    #[serde(default, skip_serializing_if = "Labels::is_empty", with = "As::<wire::Labels>")]
    pub labels: Labels,
    /// Whether it replaces a container of the same name whose namespace has ended, is no longer at its path, or is
    /// the requested one. Any other container of that name is a conflict.
    #[serde(default, skip_serializing_if = "is_false")]
    pub replace: bool,
    /// Addresses that it must have: the request is refused unless the host shares each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// The MAC address that it must have: the request is refused unless it is that of containers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Whether the daemon removes the container when the requesting process ends.
    #[serde(default, skip_serializing_if = "is_false", rename = "ends_with_asker")]
    pub remove_with_client: bool,
    /// That process, which the daemon determines from the socket's peer credentials.
    #[serde(skip)]
    pub owner: Option<Process>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands references over")]
const fn is_false(value: &bool) -> bool {
    !*value
}

/// Request to change a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpdateRequest {
    /// Its new static ports, by number; `None`: unchanged, or none if there are automatic ones.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "AsOption::<wire::Ports>")]
    pub ports: Option<PortSet>,
    /// Further static ports, which the daemon chooses.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "AsList::<wire::AutomaticRange>")]
    pub automatic_ports: Vec<AutomaticRange>,
    /// Whether static ports may be taken from listening processes of the host.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub take: bool,
    /// Its new number of ephemeral ports; `None`: unchanged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ephemeral_ports_per_container: Option<u16>,
    /// New properties of its traffic; those that are `None` are unchanged.
    #[serde(
        default,
        serialize_with = "As::<wire::TrafficSpec>::serialize",
        deserialize_with = "As::<wire::TrafficSpec>::deserialize_object"
    )]
    pub traffic: TrafficSpec,
    /// New values of labels; a null removes one, others are unchanged.
    #[serde(default, skip_serializing_if = "LabelChanges::is_empty", with = "As::<wire::LabelChanges>")]
    pub labels: LabelChanges,
}

/// A container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// Its slot.
    pub slot: u16,
    /// Path of its network namespace.
    pub netns: PathBuf,
    /// Inode number of its network namespace, the number in `net:[…]` of `/proc/PID/ns/net`; null until it is known.
    #[serde(default)]
    pub netns_inode: Option<u64>,
    /// The process by which the client named the namespace, if it did.
    pub pid: Option<u32>,
    /// Name of its host veth.
    pub host_veth: String,
    /// Name of its own end of the veth pair.
    #[serde(default)]
    pub interface: String,
    /// MAC address of both ends of the veth pair.
    #[serde(default)]
    pub mac: String,
    /// Their MTU in bytes.
    #[serde(default)]
    pub mtu: u32,
    /// The address that it shares with the host.
    pub ip: Ipv4Addr,
    /// The IPv6 address that it shares with the host, if there is one.
    pub ip6: Option<Ipv6Addr>,
    /// Its static ports.
    #[serde(with = "As::<wire::Ports>")]
    pub ports: PortSet,
    /// Those of them that the daemon has chosen: a range for each that was requested, in the order of the request.
    #[serde(default, with = "AsList::<wire::Range>")]
    pub automatic_ports: Vec<PortRange>,
    /// Its ephemeral ports.
    #[serde(with = "As::<wire::Range>")]
    pub ephemeral_ports: PortRange,
    /// Ephemeral ports that it had before an update, and keeps while its sockets use them.
    #[serde(default, with = "As::<wire::Ports>")]
    pub draining_ports: PortSet,
    /// Limit on what it sends, if there is one.
    #[serde(default, with = "AsOption::<wire::Limit>")]
    pub egress: Option<Limit>,
    /// Limit on what it receives, if there is one.
    #[serde(default, with = "AsOption::<wire::Limit>")]
    pub ingress: Option<Limit>,
    /// Scope of its loopback addresses.
    #[serde(default, with = "As::<wire::Loopback>")]
    pub loopback: Loopback,
    /// Its labels.
    #[serde(default, with = "As::<wire::Labels>")]
    pub labels: Labels,
    /// Its state.
    pub state: ContainerState,
}

/// Response to a request that adds or changes a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// Its new state.
    #[serde(flatten)]
    pub container: Container,
    /// Side effects on other processes, one line each, such as ports taken from a process of the host.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// Counts of packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Number of packets on the wire: a frame that the kernel cuts into segments counts as those.
    pub packets: u64,
    /// Number of bytes, including Ethernet headers.
    pub bytes: u64,
}

/// Number of packets by reason; reasons without packets are omitted.
pub type Reasons = BTreeMap<String, u64>;

/// Dropped packets by direction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropStats {
    /// Addressed to the container, or from outside to the host.
    pub rx: Reasons,
    /// Sent by the container.
    pub tx: Reasons,
}

/// Traffic counters of one container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStats {
    /// Its name.
    pub name: String,
    /// Its slot.
    pub slot: u16,
    /// Delivered packets by path.
    pub traffic: BTreeMap<String, Traffic>,
    /// Dropped packets.
    pub drops: DropStats,
    /// Counters of the qdiscs and classes that shape what it sends; empty without a limit.
    #[serde(with = "AsList::<wire::QueueStats>")]
    pub egress: Vec<QueueStats>,
    /// Counters of those that shape what it receives.
    #[serde(with = "AsList::<wire::QueueStats>")]
    pub ingress: Vec<QueueStats>,
    /// Use of its ephemeral ports; null if it could not be read.
    #[serde(default, with = "AsOption::<wire::PortUse>")]
    pub ephemeral_ports: Option<PortUse>,
    /// Round-trip times of its TCP connections, in microseconds; null if none is measured, or if the daemon does
    /// not read them (`--network-enable-socket-statistics-details`).
    #[serde(default, with = "AsOption::<wire::RttPercentiles>")]
    pub rtt_us: Option<RttPercentiles>,
    /// Age in milliseconds of the reading of `egress`, `ingress`, `ephemeral_ports` and `rtt_us`; null if there is
    /// none. The other counters are read for each request.
    #[serde(default)]
    pub read_age_ms: Option<u64>,
}

/// Counters of packets that the programs passed to the host's stack or dropped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostStats {
    /// Packets passed to the host's stack, by hook and reason.
    pub passed: BTreeMap<String, Reasons>,
    /// Dropped packets.
    pub drops: DropStats,
}

/// Traffic counters of all containers and the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// The containers' counters.
    pub containers: Vec<ContainerStats>,
    /// The host's counters.
    pub host: HostStats,
}

/// Result of a check of `doctor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Healthy.
    Ok,
    /// Works with a limitation.
    Notice,
    /// Broken.
    Problem,
}

/// One finding of `doctor`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The object of the check.
    pub subject: String,
    /// The result.
    pub health: Health,
    /// The observation, and the remedy unless it is healthy.
    pub text: String,
}

impl UpdateRequest {
    /// Its new static ports by number, if it changes static ports.
    pub fn numbered_ports(&self) -> Option<PortSet> {
        self.ports.clone().or_else(|| (!self.automatic_ports.is_empty()).then(PortSet::default))
    }
}

impl Finding {
    /// A finding.
    pub fn new(subject: impl Into<String>, health: Health, text: impl Into<String>) -> Self {
        Self { subject: subject.into(), health, text: text.into() }
    }
}

#[cfg(test)]
mod tests;
