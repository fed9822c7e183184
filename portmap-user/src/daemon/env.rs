//! The daemon's environment: everything that does not change while it runs.

use portmap_common::tables::{Config, QUEUE_LOCAL, QUEUE_OUTSIDE};

use super::{events::Events, host::HostState};
use crate::{
    kernel::{
        guard::Guard, inherit::Inheritance, maps::Maps, pins::OpenPins, programs::AttachMode, qdisc::Leaf,
    },
    model::{ContainerRecord, Loopback, PortSet},
    settings::Settings,
    state::Store,
};

/// The settings, and the handles to the kernel and the disk that all wings share. Every handle is
/// thread-safe; those that need a lock contain it.
pub(super) struct Env {
    /// The operator's settings.
    pub(super) settings: Settings,
    /// The attach mode at interfaces that the daemon has not created.
    pub(super) attach_mode: AttachMode,
    /// The qdisc in which packets over a limit wait.
    pub(super) leaf: Leaf,
    /// The host's sysctls that a new network namespace gets.
    pub(super) inheritance: Inheritance,
    /// The state directory.
    pub(super) store: Store,
    /// The maps that the daemon accesses by system calls.
    pub(super) maps: Maps,
    /// The bind guard, if `--bind-guard` is given.
    pub(super) guard: Option<Guard>,
    /// The pinned programs and maps.
    pub(super) pins: OpenPins,
    /// Sends events to clients.
    pub(super) events: Events,
}

impl Env {
    /// The ports of the daemon's pools.
    pub(super) fn managed_ports(&self) -> PortSet {
        self.settings.ports.union(&self.settings.ephemeral_ports)
    }

    /// Those of a container's static ports that are outside the daemon's pools.
    pub(super) fn published(&self, ports: &PortSet) -> PortSet {
        ports.difference(&self.settings.ports)
    }

    /// Whether the uplinks have the qdisc with one flow per container.
    pub(super) fn has_flows(&self) -> bool {
        self.settings.shaping.flows.is_some() && self.leaf == Leaf::FqCodel
    }

    /// The contents of `pm_config` for this state of the host.
    pub(super) fn config(&self, host: &HostState) -> Config {
        self.settings.reach.apply_to(host.config(self.has_flows()))
    }

    /// The loopback mode of a container: the requested one, else that of the daemon's flag.
    pub(super) fn loopback(&self, record: &ContainerRecord) -> Loopback {
        record.traffic.loopback.unwrap_or(self.settings.reach.loopback)
    }

    /// The flags of a container's ports in the maps: which packets pass its qdisc, and its loopback mode.
    pub(super) fn port_flags(&self, record: &ContainerRecord) -> u16 {
        let queues = match &record.ingress {
            None => 0,
            Some(_) if self.settings.shaping.limits_local => QUEUE_OUTSIDE | QUEUE_LOCAL,
            Some(_) => QUEUE_OUTSIDE,
        };
        queues | self.loopback(record).flag()
    }
}
