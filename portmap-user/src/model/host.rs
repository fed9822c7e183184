//! What the daemon has changed on the host.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use super::{netns::NetnsId, ports::PortSet};

/// Everything that the daemon has changed on the host, for a teardown to undo, and its choices that outlive it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRecord {
    /// The boot during which it was changed; `None` in records of earlier versions.
    pub boot: Option<String>,
    /// The network namespace in which the daemon runs.
    pub namespace: NetnsId,
    /// Where its maps, programs and links are pinned.
    pub bpffs_dir: PathBuf,
    /// The main uplink's name.
    pub uplink: String,
    /// The interfaces with programs, by index; without the uplink in records of earlier versions.
    pub interfaces: BTreeMap<u32, String>,
    /// The present and former primary addresses, in the order of preference.
    pub primaries: Vec<IpAddr>,
    /// Ports that the daemon added to `ip_local_reserved_ports`.
    pub reserved: PortSet,
    /// Sysctls that the daemon changed.
    pub sysctls: Vec<SavedSysctl>,
    /// Interfaces to which the daemon added a clsact qdisc.
    pub clsact: Vec<String>,
    /// Parent handles of the qdiscs that the daemon added to uplinks, by index.
    pub queues: BTreeMap<u32, u32>,
    /// The same of the main uplink, in records of earlier versions.
    pub uplink_queue: Option<u32>,
}

/// A sysctl that the daemon changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedSysctl {
    /// Path below `/proc/sys/net`.
    pub name: String,
    /// The original value.
    pub before: String,
    /// The value that the daemon set.
    pub set: String,
}
