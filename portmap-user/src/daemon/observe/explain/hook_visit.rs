//! Hooks on a packet's path, and their verdicts.

use std::fmt;

use portmap_common::{
    hook_point::HookPoint,
    marks::{DRY_RUN_MARK, HANDLED_MARK},
    slot::{HOST_SLOT, loopback_mac, veth_ifindex},
    tables::{Config, Mac},
};
use portmap_ebpf::{PacketBuf, Verdict, hooks, verdict_codec};

use super::live_tables::Live;
use crate::{
    daemon::host::MAC_WITHOUT_ETHERNET,
    error::Result,
    kernel::{link::LOOPBACK, test_run},
    paths::Pins,
};

/// `TC_ACT_UNSPEC`: the packet passes as if no program had seen it.
const TC_ACT_UNSPEC: i32 = -1;
/// MAC address of a sender outside.
const NEIGHBOUR: Mac = Mac::new([0x02, 0, 0, 0, 0, 0x01]);

/// A packet's visit to a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HookVisit {
    /// The hook point.
    pub(super) point: HookPoint,
    /// Slot of the container whose interface it is; the host's slot for an interface of the host.
    pub(super) slot: u16,
    /// Whether the hook at a host veth has redirected the packet here, with the mark of such packets.
    is_handled: bool,
}

impl fmt::Display for HookVisit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.point {
            HookPoint::UplinkIngress => f.write_str("uplink, ingress"),
            HookPoint::UplinkEgress => f.write_str("uplink, egress"),
            HookPoint::HostLoIngress => f.write_str("host's lo, ingress"),
            HookPoint::VethIngress(slot) => write!(f, "pm{slot}, ingress"),
            HookPoint::ContainerLoEgress => f.write_str("container's lo, egress"),
            HookPoint::ContainerEth0Ingress => f.write_str("container's eth0, ingress"),
        }
    }
}

impl HookVisit {
    /// Returns the visit of a packet from outside to the uplink.
    pub(super) const fn uplink() -> Self {
        Self { point: HookPoint::UplinkIngress, slot: HOST_SLOT, is_handled: false }
    }

    /// Returns the visit of one of the host's own packets to its loopback device.
    pub(super) const fn host_lo() -> Self {
        Self { point: HookPoint::HostLoIngress, slot: HOST_SLOT, is_handled: false }
    }

    /// Returns the visit of a container's packet to the host's loopback device, to which the host veth's hook
    /// has redirected it.
    pub(super) const fn handled_host_lo() -> Self {
        Self { is_handled: true, ..Self::host_lo() }
    }

    /// Returns the visit to the host veth of a container.
    pub(super) const fn host_veth(slot: u16) -> Self {
        Self { point: HookPoint::VethIngress(slot), slot, is_handled: false }
    }

    /// Returns the visit to a container's loopback device.
    pub(super) const fn container_lo(slot: u16) -> Self {
        Self { point: HookPoint::ContainerLoEgress, slot, is_handled: false }
    }

    /// Returns the visit to a container's `eth0`.
    pub(super) const fn container_eth0(slot: u16) -> Self {
        Self { point: HookPoint::ContainerEth0Ingress, slot, is_handled: false }
    }

    /// Returns the index of an interface in the host's namespace, as the program's context. The programs at a
    /// container's own interfaces do not use it. A test run has frames with an Ethernet header, for which an uplink
    /// without one has no address; the programs decide the same on those at the loopback device.
    fn ifindex(self, config: &Config) -> u32 {
        match self.point {
            HookPoint::UplinkIngress | HookPoint::UplinkEgress if lacks_ethernet(config) => LOOPBACK,
            HookPoint::UplinkIngress | HookPoint::UplinkEgress => config.uplink_ifindex,
            HookPoint::VethIngress(slot) => veth_ifindex(slot),
            HookPoint::HostLoIngress | HookPoint::ContainerLoEgress | HookPoint::ContainerEth0Ingress => {
                LOOPBACK
            }
        }
    }

    /// Returns the destination MAC address of frames here.
    pub(super) fn mac(self, config: &Config) -> Mac {
        match self.point {
            HookPoint::UplinkIngress | HookPoint::UplinkEgress if lacks_ethernet(config) => config.lo_mac,
            HookPoint::UplinkIngress | HookPoint::UplinkEgress | HookPoint::VethIngress(_) => config.mac,
            HookPoint::HostLoIngress => config.lo_mac,
            HookPoint::ContainerLoEgress | HookPoint::ContainerEth0Ingress => {
                Mac::new(loopback_mac(self.slot))
            }
        }
    }

    /// Returns the source MAC address of frames whose first hook is this one.
    pub(super) fn source_mac(self, config: &Config) -> Mac {
        match self.point {
            HookPoint::UplinkIngress => NEIGHBOUR,
            _ => self.mac(config),
        }
    }

    /// Rewrites a frame as the program does that redirects it here.
    pub(super) fn readdress(self, frame: &mut [u8], config: &Config) {
        let octets = match self.point {
            HookPoint::HostLoIngress | HookPoint::ContainerEth0Ingress => self.mac(config).octets(),
            _ => return,
        };
        if let Some(destination) = frame.first_chunk_mut() {
            *destination = octets;
        }
    }

    /// Returns the verdict of the decision code in this binary.
    pub(super) fn decide(self, bytes: &[u8], config: &Config, tables: &Live<'_>) -> Verdict {
        let mark = if self.is_handled { HANDLED_MARK } else { 0 };
        let frame = PacketBuf {
            bytes,
            ifindex: self.ifindex(config),
            mac: self.mac(config),
            mark,
            ..PacketBuf::default()
        };
        hooks::decide(self.point, &frame, tables)
    }

    /// Returns the verdict of the loaded program; `None` if it cannot be decoded.
    pub(super) fn dry_run(self, pins: &Pins, bytes: &[u8], config: &Config) -> Result<Option<Verdict>> {
        let run = |mark| test_run::run(pins, self.point.program(), bytes, self.ifindex(config), mark);
        if !self.is_handled {
            return Ok(verdict_codec::decode(run(DRY_RUN_MARK)?.words));
        }
        // A packet has one mark. With this one the program only clears it, so a dry run is not needed.
        let run = run(HANDLED_MARK)?;
        Ok((run.code == TC_ACT_UNSPEC && run.mark() == 0).then_some(Verdict::AlreadyHandled))
    }
}

/// Whether the main uplink has no Ethernet header.
fn lacks_ethernet(config: &Config) -> bool {
    config.mac.octets() == MAC_WITHOUT_ETHERNET
}
