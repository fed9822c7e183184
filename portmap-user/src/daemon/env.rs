//! What stays the same as long as the daemon runs.

use portmap_common::tables::{Config, QUEUE_LOCAL, QUEUE_OUTSIDE};

use super::host::HostState;
use crate::{
    kernel::{
        guard::Guard, inherit::Inheritance, maps::Maps, pins::OpenPins, programs::AttachMode, qdisc::Leaf,
    },
    model::{ContainerRecord, Loopback, PortSet},
    settings::Settings,
    state::Store,
};

/// The settings, and the handles of the kernel and the disk that every part of the daemon works with. Each handle may be used by
/// any thread; those that need a lock have it inside.
pub(super) struct Env {
    /// What the operator asked for.
    pub(super) settings: Settings,
    /// How programs are attached to interfaces that are not the daemon's own.
    pub(super) attach_mode: AttachMode,
    /// The qdisc in which packets over a limit wait.
    pub(super) leaf: Leaf,
    /// The host's sysctls that a new network namespace gets.
    pub(super) inheritance: Inheritance,
    /// The records in the state directory.
    pub(super) store: Store,
    /// The maps that are read and written by system calls.
    pub(super) maps: Maps,
    /// Refuses `bind()` to ports that are not the container's, with `--bind-guard`.
    pub(super) guard: Option<Guard>,
    /// The pinned programs and maps.
    pub(super) pins: OpenPins,
}

impl Env {
    /// All ports that containers can own.
    pub(super) fn managed_ports(&self) -> PortSet {
        self.settings.ports.union(&self.settings.ephemeral_ports)
    }

    /// Whether the uplink has a qdisc in which each container has a flow of its own.
    pub(super) fn has_flows(&self) -> bool {
        self.settings.shaping.flows.is_some() && self.leaf == Leaf::FqCodel
    }

    /// The contents of `pm_config` for this state of the host.
    pub(super) fn config(&self, host: &HostState) -> Config {
        self.settings.reach.apply_to(host.config(self.has_flows()))
    }

    /// Whether a container's loopback addresses are its own: as requested for it, or else as the daemon's flag says.
    pub(super) fn loopback(&self, record: &ContainerRecord) -> Loopback {
        record.traffic.loopback.unwrap_or(self.settings.reach.loopback)
    }

    /// The flags of a container's ports in the maps: whether its packets take the way by its queue, and what its loopback is.
    pub(super) fn port_flags(&self, record: &ContainerRecord) -> u16 {
        let queues = match &record.ingress {
            None => 0,
            Some(_) if self.settings.shaping.limits_local => QUEUE_OUTSIDE | QUEUE_LOCAL,
            Some(_) => QUEUE_OUTSIDE,
        };
        queues | self.loopback(record).flag()
    }
}
