//! What goes over the socket: requests and answers, in JSON. The commands print the same.

mod drops;
mod explain;

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

pub use self::{
    drops::{Direction, DropCount, DropNews, DropSample, OUTSIDE},
    explain::{ExplainRequest, ExplainedPacket, Explanation, HOST, Outcome, Step},
};
pub use crate::kernel::qdisc::Stats as QueueStats;
use crate::{
    kernel::process::Process,
    ports::{PortRange, PortSet},
    rates::Cpus,
    reach::Loopback,
};

/// A container to be added.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddRequest {
    /// Its name.
    pub name: String,
    /// File of an existing network namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<PathBuf>,
    /// A process in an existing network namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Static ports.
    #[serde(default)]
    pub ports: PortSet,
    /// Whether static ports are taken from processes of the host that listen on them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub take: bool,
    /// Whether a namespace of somebody else's gets the host's settings; a new one always does.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub inherit_sysctls: bool,
    /// Number of ephemeral ports; the daemon's default if none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ephemeral_ports_per_container: Option<u16>,
    /// What is asked for its traffic.
    #[serde(default)]
    pub traffic: Wishes,
    /// Whether it ends with the process that asks, when that has not removed it before.
    #[serde(default, skip_serializing_if = "is_false")]
    pub ends_with_asker: bool,
    /// That process, which the daemon finds out by itself.
    #[serde(skip)]
    pub owner: Option<Process>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands references over")]
const fn is_false(value: &bool) -> bool {
    !*value
}

/// What is asked for a container's traffic. What is left out is as the daemon's flags say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wishes {
    /// Limit on what it sends, in bytes per second; 0 for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress_rate: Option<u64>,
    /// Limit on what it receives, in bytes per second; 0 for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress_rate: Option<u64>,
    /// CPUs that it has, for limits that depend on them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<Cpus>,
    /// Whose its loopback addresses are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loopback: Option<Loopback>,
}

impl Wishes {
    /// These, completed by others.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            egress_rate: self.egress_rate.or(other.egress_rate),
            ingress_rate: self.ingress_rate.or(other.ingress_rate),
            cpus: self.cpus.or(other.cpus),
            loopback: self.loopback.or(other.loopback),
        }
    }
}

/// What is to be changed of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpdateRequest {
    /// Its static ports from now on; they stay as they are if none are given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<PortSet>,
    /// Whether static ports are taken from processes of the host that listen on them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub take: bool,
    /// What is asked for its traffic; what is left out stays as it was asked before.
    #[serde(default)]
    pub traffic: Wishes,
}

/// A container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// Its slot.
    pub slot: u16,
    /// File of its network namespace.
    pub netns: PathBuf,
    /// The process by which the namespace was given, if it was.
    pub pid: Option<u32>,
    /// The host's end of its veth pair.
    pub host_veth: String,
    /// The address that it shares with the host.
    pub ip: Ipv4Addr,
    /// The IPv6 address that it shares with the host, if there is one.
    pub ip6: Option<Ipv6Addr>,
    /// Its static ports.
    pub ports: PortSet,
    /// Its ephemeral ports.
    pub ephemeral_ports: PortRange,
    /// Limit on what it sends, if there is one.
    pub egress: Option<Limit>,
    /// Limit on what it receives, if there is one.
    pub ingress: Option<Limit>,
    /// Whose its loopback addresses are.
    #[serde(default)]
    pub loopback: Loopback,
    /// Whether it is in service.
    pub state: ContainerState,
}

/// A container that has been added or changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// How it is now.
    #[serde(flatten)]
    pub container: Container,
    /// What that did to others, a line each: processes of the host from which ports were taken, for example.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// A limit on a container's traffic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// Bytes per second in the long run.
    pub rate: u64,
    /// Bytes per second at most.
    pub ceil: u64,
    /// Bytes that may exceed the rate at once.
    pub burst: u64,
    /// What packets wait in: `fq_codel`, or what a kernel without it has.
    pub leaf: String,
}

/// Whether a container is in service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerState {
    /// It is being made.
    Adding,
    /// It is in service.
    Ready,
    /// It is being removed.
    Deleting,
    /// Its interface is gone, and could not be made again.
    Broken,
}

impl ContainerState {
    /// The name that commands print.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Adding => "adding",
            Self::Ready => "ready",
            Self::Deleting => "deleting",
            Self::Broken => "broken",
        }
    }
}

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Number of packets, as the kernel handed them over.
    pub packets: u64,
    /// Number of bytes, Ethernet headers included.
    pub bytes: u64,
}

/// Numbers of packets by reason; reasons without packets are left out.
pub type Reasons = BTreeMap<String, u64>;

/// Dropped packets by direction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropStats {
    /// On their way to the container, or from outside to the host.
    pub rx: Reasons,
    /// Sent by the container.
    pub tx: Reasons,
}

/// Traffic of one container.
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
    /// Counters of the queue that limits what it sends and of what packets wait in; none without a limit.
    pub egress: Vec<QueueStats>,
    /// The same of what it receives.
    pub ingress: Vec<QueueStats>,
}

/// Packets that were left to the host or dropped before they reached it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostStats {
    /// Packets left to the host, by hook and reason.
    pub passed: BTreeMap<String, Reasons>,
    /// Dropped packets.
    pub drops: DropStats,
}

/// Traffic of everybody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// By container.
    pub containers: Vec<ContainerStats>,
    /// The host's.
    pub host: HostStats,
}

/// How a check of `doctor` ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// As it should be.
    Ok,
    /// Works, but not as well as it could.
    Notice,
    /// Does not work.
    Problem,
}

/// One finding of `doctor`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was looked at.
    pub subject: String,
    /// How it is.
    pub health: Health,
    /// What was found, and what repairs it if it is not well.
    pub text: String,
}

impl Finding {
    /// A finding.
    pub fn new(subject: impl Into<String>, health: Health, text: impl Into<String>) -> Self {
        Self { subject: subject.into(), health, text: text.into() }
    }
}
