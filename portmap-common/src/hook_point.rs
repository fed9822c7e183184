//! The hook points at which a program runs.

use crate::{names, reason::HostHook};

/// A tc hook of an interface to which portmap attaches a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HookPoint {
    /// Ingress of the uplink.
    UplinkIngress,
    /// Egress of the uplink.
    UplinkEgress,
    /// Ingress of the host veth of the container in this slot. The program learns the slot from the interface
    /// index.
    VethIngress(u16),
    /// Ingress of the host's loopback device.
    HostLoIngress,
    /// Egress of a container's loopback device. The program learns the slot from the source MAC address.
    ContainerLoEgress,
    /// Ingress of a container's `eth0`.
    ContainerEth0Ingress,
}

impl HookPoint {
    /// Returns the name of the program that runs here.
    pub const fn program(self) -> &'static str {
        match self {
            Self::UplinkIngress => names::PROG_UPLINK_INGRESS,
            Self::UplinkEgress => names::PROG_UPLINK_EGRESS,
            Self::VethIngress(_) => names::PROG_VETH_INGRESS,
            Self::HostLoIngress => names::PROG_LO_INGRESS,
            Self::ContainerLoEgress => names::PROG_CONTAINER_LO,
            Self::ContainerEth0Ingress => names::PROG_CONTAINER_ETH0,
        }
    }

    /// Returns where the program counts the packets that it leaves to the host; `None` if it does not count
    /// them.
    pub const fn host_hook(self) -> Option<HostHook> {
        match self {
            Self::UplinkIngress => Some(HostHook::Uplink),
            Self::HostLoIngress => Some(HostHook::Loopback),
            Self::UplinkEgress
            | Self::VethIngress(_)
            | Self::ContainerLoEgress
            | Self::ContainerEth0Ingress => None,
        }
    }
}
