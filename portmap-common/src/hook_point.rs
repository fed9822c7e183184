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

    /// Returns the position of its program in [`PROGRAMS`](names::PROGRAMS).
    #[inline(always)]
    pub const fn number(self) -> u32 {
        match self {
            Self::UplinkIngress => 0,
            Self::VethIngress(_) => 1,
            Self::HostLoIngress => 2,
            Self::ContainerLoEgress => 3,
            Self::UplinkEgress => 4,
            Self::ContainerEth0Ingress => 5,
        }
    }

    /// Returns where the program counts the packets that it leaves to the host; `None` if it does not count
    /// them.
    #[inline(always)]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hook_point_number_is_the_position_of_its_program() {
        for point in [
            HookPoint::UplinkIngress,
            HookPoint::UplinkEgress,
            HookPoint::VethIngress(1),
            HookPoint::HostLoIngress,
            HookPoint::ContainerLoEgress,
            HookPoint::ContainerEth0Ingress,
        ] {
            assert_eq!(names::PROGRAMS[point.number() as usize], point.program());
        }
    }
}
