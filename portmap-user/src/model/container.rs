//! A container as the daemon records it.

use std::{path::PathBuf, time::Duration};

use super::{
    host::SavedSysctl,
    interface_name::InterfaceName,
    labels::Labels,
    limit::Limit,
    netns::NetnsId,
    ports::{PortRange, PortSet},
    process::Process,
    traffic::TrafficSpec,
};

/// Lifecycle phase of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The daemon is creating it. The next daemon rolls an unfinished creation back.
    Adding,
    /// In service.
    Ready,
    /// The daemon is removing it.
    Deleting,
}

impl Phase {
    /// The name that commands and metrics use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Adding => "adding",
            Self::Ready => "ready",
            Self::Deleting => "deleting",
        }
    }
}

/// Desired state of one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerRecord {
    /// Its name.
    pub name: String,
    /// Its slot.
    pub slot: u16,
    /// Path of its network namespace.
    pub netns: PathBuf,
    /// Identity of the namespace at that path; `None` until it was created or opened.
    pub namespace: Option<NetnsId>,
    /// Whether the daemon created the namespace, and deletes it with the container.
    pub owns_netns: bool,
    /// The process by which the client named the namespace, if it did.
    pub pid: Option<u32>,
    /// The process whose end removes the container, if there is one.
    pub owner: Option<Process>,
    /// Name of its interface.
    pub interface: InterfaceName,
    /// Its static ports.
    pub ports: PortSet,
    /// Those of them that the daemon has chosen: a range for each that was requested, in the order of the request.
    pub automatic_ports: Vec<PortRange>,
    /// Its block of ephemeral ports.
    pub ephemeral_ports: PortRange,
    /// Ephemeral ports of which it opens no new connections, and which it keeps while its sockets use them.
    pub draining: Vec<Draining>,
    /// Whether it also has the host's IPv6 address.
    pub ipv6: bool,
    /// What the client requested for its traffic.
    pub traffic: TrafficSpec,
    /// Its labels.
    pub labels: Labels,
    /// Limit on what it sends.
    pub egress: Option<Limit>,
    /// Limit on what it receives.
    pub ingress: Option<Limit>,
    /// Whether an existing namespace gets the host's sysctls; one that the daemon creates always does.
    pub inherit_sysctls: bool,
    /// State to restore in an existing namespace when the container is removed.
    pub before: Option<SavedNetns>,
    /// Its lifecycle phase.
    pub phase: Phase,
}

/// Ephemeral ports outside a container's block that it still owns, because its sockets may use them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draining {
    /// The ports.
    pub ports: PortRange,
    /// When it loses them at the latest, by the monotonic clock.
    pub until: Duration,
}

/// State of an existing network namespace before the daemon changed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedNetns {
    /// MAC address of the loopback device.
    pub lo_mac: [u8; 6],
    /// MTU of the loopback device in bytes.
    pub lo_mtu: u32,
    /// The namespace's `ip_local_port_range`.
    pub local_ports: PortRange,
    /// Whether the loopback device had a clsact qdisc.
    pub had_clsact: bool,
    /// Whether the loopback device was up; `None` in records of earlier versions.
    pub lo_up: Option<bool>,
    /// Whether the loopback device had an IPv4 address, which the kernel adds when it comes up for the first
    /// time.
    pub lo_has_address: bool,
    /// Sysctls that are not an interface's.
    pub sysctls: Vec<SavedSysctl>,
}

impl ContainerRecord {
    /// Its static and ephemeral ports, with those that drain.
    pub fn all_ports(&self) -> PortSet {
        self.ports.union(&self.ephemeral_ports.into()).union(&self.draining_ports())
    }

    /// Whether a port is one of its ephemeral ports, those that drain included.
    pub fn has_ephemeral(&self, port: u16) -> bool {
        self.ephemeral_ports.contains(port)
            || self.draining.iter().any(|draining| draining.ports.contains(port))
    }

    /// The ephemeral ports that drain.
    pub fn draining_ports(&self) -> PortSet {
        self.draining.iter().map(|draining| draining.ports).collect::<Vec<_>>().into()
    }

    /// Whether its desired state is in service.
    pub fn is_ready(&self) -> bool {
        self.phase == Phase::Ready
    }

    /// Name of its host veth.
    pub fn host_veth(&self) -> String {
        format!("pm{}", self.slot)
    }
}
