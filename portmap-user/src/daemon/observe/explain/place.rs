//! The hooks that a packet can pass.

use std::fmt;

use portmap_common::{
    names,
    slot::{loopback_mac, veth_ifindex},
    tables::{Config, Mac},
};
use portmap_ebpf::{
    PacketBuf, Verdict,
    hooks::{ContainerEth0, ContainerLo, HANDLED_MARK, Hook as _, HostLo, Uplink, Veth},
    verdict_codec::{self, DRY_RUN_MARK},
};

use super::tables::Live;
use crate::{
    error::Result,
    kernel::{link::LOOPBACK, test_run},
    paths::Pins,
};

/// `TC_ACT_UNSPEC`: the packet goes on as if no program had seen it.
const GOES_ON: i32 = -1;
/// MAC address of whoever sends from outside.
const NEIGHBOUR: Mac = Mac::new([0x02, 0, 0, 0, 0, 0x01]);

/// A hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Ingress of the uplink.
    Uplink,
    /// Ingress of the host's loopback device.
    HostLoopback {
        /// Whether the packet comes from a host veth's hook, with the mark that says so.
        decided: bool,
    },
    /// Ingress of the host veth of a slot.
    HostVeth(u16),
    /// Egress of the loopback device of the container in a slot.
    ContainerLoopback(u16),
    /// Ingress of the `eth0` of the container in a slot.
    ContainerEth0(u16),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uplink => f.write_str("uplink, ingress"),
            Self::HostLoopback { .. } => f.write_str("host's lo, ingress"),
            Self::HostVeth(slot) => write!(f, "pm{slot}, ingress"),
            Self::ContainerLoopback(_) => f.write_str("container's lo, egress"),
            Self::ContainerEth0(_) => f.write_str("container's eth0, ingress"),
        }
    }
}

impl Place {
    /// The program there.
    pub(super) const fn program(self) -> &'static str {
        match self {
            Self::Uplink => names::PROG_UPLINK_INGRESS,
            Self::HostLoopback { .. } => names::PROG_LO_INGRESS,
            Self::HostVeth(_) => names::PROG_VETH_INGRESS,
            Self::ContainerLoopback(_) => names::PROG_CONTAINER_LO,
            Self::ContainerEth0(_) => names::PROG_CONTAINER_ETH0,
        }
    }

    /// Index of an interface in the host's namespace for which the program there takes the packet. Those of containers'
    /// own interfaces make no difference.
    const fn ifindex(self, config: &Config) -> u32 {
        match self {
            Self::Uplink => config.uplink_ifindex,
            Self::HostVeth(slot) => veth_ifindex(slot),
            Self::HostLoopback { .. } | Self::ContainerLoopback(_) | Self::ContainerEth0(_) => LOOPBACK,
        }
    }

    /// The destination MAC address of frames there.
    pub(super) const fn mac(self, config: &Config) -> Mac {
        match self {
            Self::Uplink | Self::HostVeth(_) => config.mac,
            Self::HostLoopback { .. } => config.lo_mac,
            Self::ContainerLoopback(slot) | Self::ContainerEth0(slot) => Mac::new(loopback_mac(slot)),
        }
    }

    /// The source MAC address of frames that begin there.
    pub(super) const fn source_mac(self, config: &Config) -> Mac {
        match self {
            Self::Uplink => NEIGHBOUR,
            _ => self.mac(config),
        }
    }

    /// Changes a frame as the program does that sends it here from another hook.
    pub(super) fn readdress(self, frame: &mut [u8], config: &Config) {
        let octets = match self {
            Self::HostLoopback { .. } | Self::ContainerEth0(_) => self.mac(config).octets(),
            _ => return,
        };
        if let Some(destination) = frame.first_chunk_mut() {
            *destination = octets;
        }
    }

    const fn is_decided(self) -> bool {
        matches!(self, Self::HostLoopback { decided: true })
    }

    /// The verdict of the decision code in this binary.
    pub(super) fn decide(self, bytes: &[u8], config: &Config, tables: &Live<'_>) -> Verdict {
        let mark = if self.is_decided() { HANDLED_MARK } else { 0 };
        let frame = PacketBuf {
            bytes,
            ifindex: self.ifindex(config),
            station: self.mac(config),
            mark,
            ..PacketBuf::default()
        };
        match self {
            Self::Uplink => Uplink::decide(&frame, tables),
            Self::HostLoopback { .. } => HostLo::decide(&frame, tables),
            Self::HostVeth(_) => Veth::decide(&frame, tables),
            Self::ContainerLoopback(_) => ContainerLo::decide(&frame, tables),
            Self::ContainerEth0(_) => ContainerEth0::decide(&frame, tables),
        }
    }

    /// The verdict of the loaded program; none if it gives no answer that can be understood.
    pub(super) fn ask(self, pins: &Pins, bytes: &[u8], config: &Config) -> Result<Option<Verdict>> {
        let run = |mark| test_run::run(pins, self.program(), bytes, self.ifindex(config), mark);
        if !self.is_decided() {
            return Ok(verdict_codec::decode(run(DRY_RUN_MARK)?.words));
        }
        // There is no room for two marks. This one makes the program do nothing but take it off.
        let run = run(HANDLED_MARK)?;
        Ok((run.code == GOES_ON && run.mark() == 0).then_some(Verdict::Decided))
    }
}
