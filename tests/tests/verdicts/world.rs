//! The hooks and what the maps hold, in memory.

use std::net::Ipv4Addr;

use portmap_common::{
    names,
    slot::veth_ifindex,
    tables::{Config, Endpoint, PortEntry},
};
use portmap_ebpf::{
    Verdict,
    frame::{Frame as FrameView, HEAD},
    hooks::{container_lo, host_lo, uplink, veth},
    tables::Tables,
};

pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 254);
pub(crate) const PEER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);
pub(crate) const FAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
pub(crate) const LOCAL: Ipv4Addr = Ipv4Addr::LOCALHOST;
pub(crate) const ALSO_LOCAL: Ipv4Addr = Ipv4Addr::new(127, 255, 255, 254);
pub(crate) const MAC: [u8; 6] = [0x02, 0, 0, 0, 1, 1];
pub(crate) const OTHER_MAC: [u8; 6] = [0x02, 0, 0, 0, 1, 9];

/// The slots of two containers, and a port of each. The second one's are the first and the last there are.
pub(crate) const A: u16 = 1;
pub(crate) const B: u16 = 7;
pub(crate) const A_PORT: u16 = 31000;
pub(crate) const B_PORT: u16 = 65535;
pub(crate) const B_LOW_PORT: u16 = 1;
pub(crate) const FREE: u16 = 80;
pub(crate) const UPLINK: u32 = 77;
pub(crate) const ETH0: u32 = 2;

pub(crate) const fn entry(slot: u16) -> PortEntry {
    PortEntry { ifindex: veth_ifindex(slot), slot, flags: 0 }
}

pub(crate) const CONFIG: Config = Config {
    host_ip: HOST.octets(),
    netmask: [255, 255, 255, 0],
    gateway: GATEWAY.octets(),
    uplink_ifindex: UPLINK,
    lo_mac: [0; 6],
    reserved: [0; 2],
};

/// What the maps hold.
pub(crate) struct World;

impl Tables for World {
    fn port(&self, port: u16) -> PortEntry {
        match port {
            A_PORT => entry(A),
            B_PORT | B_LOW_PORT => entry(B),
            _ => PortEntry::default(),
        }
    }

    fn endpoint(&self, slot: u16) -> Endpoint {
        if slot == A {
            Endpoint { host_ifindex: veth_ifindex(A), eth0_ifindex: ETH0, ..Endpoint::default() }
        } else {
            Endpoint::default()
        }
    }

    fn config(&self) -> Config {
        CONFIG
    }
}

/// A frame in memory.
pub(crate) struct Bytes<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) ifindex: u32,
}

impl FrameView for Bytes<'_> {
    fn head(&self) -> Option<&[u8; HEAD]> {
        self.bytes.first_chunk()
    }

    fn bytes<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.bytes.get(offset..)?.first_chunk().copied()
    }

    fn length(&self) -> u32 {
        u32::try_from(self.bytes.len()).expect("a short frame")
    }

    fn ifindex(&self) -> u32 {
        self.ifindex
    }

    fn is_for_this_station(&self) -> bool {
        self.bytes.starts_with(&MAC)
    }

    fn has_vlan_tag(&self) -> bool {
        false
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    Uplink,
    HostLo,
    VethOfA,
    LoOfA,
}

impl Hook {
    pub(crate) const ALL: [Self; 4] = [Self::Uplink, Self::HostLo, Self::VethOfA, Self::LoOfA];

    pub(crate) const fn ifindex(self) -> u32 {
        match self {
            Self::Uplink => UPLINK,
            Self::HostLo | Self::LoOfA => 1,
            Self::VethOfA => veth_ifindex(A),
        }
    }

    pub(crate) const fn program(self) -> &'static str {
        match self {
            Self::Uplink => names::PROG_UPLINK_INGRESS,
            Self::HostLo => names::PROG_LO_INGRESS,
            Self::VethOfA => names::PROG_VETH_INGRESS,
            Self::LoOfA => names::PROG_CONTAINER_LO,
        }
    }

    pub(crate) fn decide(self, bytes: &[u8]) -> Verdict {
        let frame = Bytes { bytes, ifindex: self.ifindex() };
        match self {
            Self::Uplink => uplink::decide(&frame, &World),
            Self::HostLo => host_lo::decide(&frame, &World),
            Self::VethOfA => veth::decide(&frame, &World),
            Self::LoOfA => container_lo::decide(&frame, &World),
        }
    }
}
