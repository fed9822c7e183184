//! What is written down: what the daemon has done to the host, and each container.
//!
//! A field that is added needs a default, and the files another version; see [`crate::state`].

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{
    api::{Limit, Wishes},
    kernel::{namespace::NamespaceId, process::Process},
    ports::{PortRange, PortSet},
};

/// What the daemon has done to the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostRecord {
    /// The machine's boot, whose end is the end of all that this is about. None in what an earlier version has written.
    #[serde(default)]
    pub boot: Option<String>,
    /// The network namespace in which the daemon runs.
    pub namespace: NamespaceId,
    /// Where its maps, programs and links are pinned.
    pub bpffs_dir: PathBuf,
    /// The uplink's name.
    pub uplink: String,
    /// Ports that were added to those that the host does not give out by itself.
    #[serde(default)]
    pub reserved: PortSet,
    /// Settings that were changed, with the value from before and the one that was set.
    pub sysctls: Vec<SavedSysctl>,
    /// Interfaces to which a clsact qdisc was added.
    pub clsact: Vec<String>,
    /// Where the uplink was given a queue: the parent's handle.
    pub uplink_queue: Option<u32>,
}

/// A setting that was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedSysctl {
    /// Path below `/proc/sys/net`.
    pub name: String,
    /// Value from before.
    pub before: String,
    /// Value that was set.
    pub set: String,
}

/// How far a container has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Being made; what is there of it is removed if the daemon ends.
    Adding,
    /// In service.
    Ready,
    /// Being removed.
    Deleting,
}

impl Phase {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Adding => "adding",
            Self::Ready => "ready",
            Self::Deleting => "deleting",
        }
    }
}

/// One container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerRecord {
    /// Its name.
    pub name: String,
    /// Its slot.
    pub slot: u16,
    /// File of its network namespace.
    pub netns: PathBuf,
    /// The namespace that the file stood for; none until it was made or opened.
    pub namespace: Option<NamespaceId>,
    /// Whether the namespace was made for the container and goes with it.
    pub owns_netns: bool,
    /// The process whose namespace it is, where it was given by one.
    pub pid: Option<u32>,
    /// The process with which it ends, if it does.
    #[serde(default)]
    pub owner: Option<Process>,
    /// Its static ports.
    pub ports: PortSet,
    /// Its block of ephemeral ports.
    pub ephemeral_ports: PortRange,
    /// Whether it has the host's IPv6 address, too.
    pub ipv6: bool,
    /// What was asked for its traffic.
    pub wishes: Wishes,
    /// Limit on what it sends.
    pub egress: Option<Limit>,
    /// Limit on what it receives.
    pub ingress: Option<Limit>,
    /// Whether a namespace of somebody else's gets the host's settings; one that was made for it always does.
    #[serde(default)]
    pub inherit_sysctls: bool,
    /// What a namespace that stays looked like before.
    pub before: Option<NamespaceBefore>,
    /// How far it has come.
    pub phase: Phase,
}

/// What is changed in a namespace that somebody else made, as it was before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamespaceBefore {
    /// MAC address of the loopback device.
    pub lo_mac: [u8; 6],
    /// MTU of the loopback device.
    pub lo_mtu: u32,
    /// Ports that the namespace gives out by itself.
    pub local_ports: PortRange,
    /// Whether the loopback device had a clsact qdisc.
    pub had_clsact: bool,
    /// Whether the loopback device was up; not known of what an earlier version has written down.
    #[serde(default)]
    pub lo_up: Option<bool>,
    /// Whether the loopback device had an IPv4 address, which comes with its being up for the first time.
    #[serde(default)]
    pub lo_has_address: bool,
    /// Settings that do not go with an interface, with the value from before and the one that is set.
    #[serde(default)]
    pub sysctls: Vec<SavedSysctl>,
}

impl ContainerRecord {
    /// All its ports.
    pub fn all_ports(&self) -> PortSet {
        self.ports.union(&self.ephemeral_ports.into())
    }

    /// Name of the host's end of its veth pair.
    pub fn host_veth(&self) -> String {
        format!("pm{}", self.slot)
    }
}
