//! The hooks and what the maps hold, in memory.

use std::{cell::RefCell, collections::HashMap, net::Ipv4Addr};

use portmap_common::{
    limit::Limit,
    memory::{
        Echo, EchoKey, Fragment, FragmentKey4, FragmentKey6, HostFlow, HostFlowKey, Neighbour, NeighbourKey,
    },
    names,
    slot::veth_ifindex,
    tables::{
        Address4, Address6, Config, Endpoint, HOST_ACCESS_LIMITED, LOOPBACK_PRIVATE, Listener, Mac, PortEntry,
    },
};
use portmap_ebpf::{
    PacketBuf, Verdict,
    hooks::{ContainerLo, Hook as _, HostLo, Uplink, Veth},
    tables::Tables,
};

pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 254);
pub(crate) const PEER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);
/// The broadcast address of another network of the host's, inside the shared one.
pub(crate) const OTHER_BROADCAST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 31);
pub(crate) const FAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
pub(crate) const LOCAL: Ipv4Addr = Ipv4Addr::LOCALHOST;
pub(crate) const ALSO_LOCAL: Ipv4Addr = Ipv4Addr::new(127, 255, 255, 254);
pub(crate) const MAC: [u8; 6] = [0x02, 0, 0, 0, 1, 1];
pub(crate) const OTHER_MAC: [u8; 6] = [0x02, 0, 0, 0, 1, 9];

/// The slots of two containers, and a port of each. The second one's are the first and the last there are.
pub(crate) const A: u16 = 1;
pub(crate) const B: u16 = 7;
pub(crate) const A_PORT: u16 = 31000;
/// A container that keeps loopback addresses to itself.
pub(crate) const P: u16 = 9;
pub(crate) const P_PORT: u16 = 32000;
pub(crate) const B_PORT: u16 = 65535;
pub(crate) const B_LOW_PORT: u16 = 1;
/// One of the host's that containers may reach, one that they may not, and the daemon's.
pub(crate) const FREE: u16 = 80;
pub(crate) const CLOSED: u16 = 81;
pub(crate) const LISTENER: u16 = 5051;
pub(crate) const UPLINK: u32 = 77;
/// The MTU of all interfaces, in bytes.
pub(crate) const MTU: u32 = 1500;
/// Length in bytes of the longest frame that they carry: an Ethernet header in addition.
pub(crate) const LONGEST: u32 = MTU + 14;
pub(crate) const ETH0: u32 = 2;

pub(crate) const fn entry(slot: u16) -> PortEntry {
    PortEntry { ifindex: veth_ifindex(slot), slot, flags: 0 }
}

pub(crate) const CONFIG: Config = Config {
    host_ip: Address4::new(HOST.octets()),
    netmask: Address4::new([255, 255, 255, 0]),
    gateway: Address4::new(GATEWAY.octets()),
    uplink_ifindex: UPLINK,
    host_ip6: Address6::new([0; 16]),
    netmask6: Address6::new([0; 16]),
    gateway6: Address6::new([0; 16]),
    mac: Mac::new(MAC),
    lo_mac: Mac::new([0; 6]),
    uplink_flows: 0,
    reach: HOST_ACCESS_LIMITED,
    listener: Listener {
        port: LISTENER as u32,
        address4: Address4::new(LOCAL.octets()),
        mask4: Address4::new([255; 4]),
        ..Listener::NONE
    },
    secret: 0x0123_4567_89ab_cdef,
    broadcasts: 1,
    reserved: 0,
};

/// What the maps hold.
pub(crate) struct World {
    config: Config,
    fragments4: RefCell<HashMap<FragmentKey4, Fragment>>,
    fragments6: RefCell<HashMap<FragmentKey6, Fragment>>,
    echoes: RefCell<HashMap<EchoKey, Echo>>,
    host_flows: RefCell<HashMap<HostFlowKey, HostFlow>>,
}

impl World {
    /// What they hold before the first packet.
    pub(crate) fn new(config: Config) -> Self {
        Self {
            config,
            fragments4: RefCell::default(),
            fragments6: RefCell::default(),
            echoes: RefCell::default(),
            host_flows: RefCell::default(),
        }
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new(CONFIG)
    }
}

impl Tables for World {
    fn port(&self, port: u16) -> PortEntry {
        match port {
            A_PORT => entry(A),
            P_PORT => PortEntry { flags: LOOPBACK_PRIVATE, ..entry(P) },
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

    fn config(&self) -> &Config {
        &self.config
    }

    fn now(&self) -> u64 {
        0
    }

    fn fragment4(&self, key: &FragmentKey4) -> Option<Fragment> {
        self.fragments4.borrow().get(key).copied()
    }

    fn set_fragment4(&self, key: &FragmentKey4, fragment: &Fragment) {
        self.fragments4.borrow_mut().insert(*key, *fragment);
    }

    fn fragment6(&self, key: &FragmentKey6) -> Option<Fragment> {
        self.fragments6.borrow().get(key).copied()
    }

    fn set_fragment6(&self, key: &FragmentKey6, fragment: &Fragment) {
        self.fragments6.borrow_mut().insert(*key, *fragment);
    }

    fn echo(&self, key: &EchoKey) -> Option<Echo> {
        self.echoes.borrow().get(key).copied()
    }

    fn set_echo(&self, key: &EchoKey, echo: &Echo) {
        self.echoes.borrow_mut().insert(*key, *echo);
    }

    fn renew_echo(&self, key: &EchoKey, seen: u64) {
        self.echoes.borrow_mut().entry(*key).and_modify(|echo| echo.seen = seen);
    }

    fn claim_echo(&self, key: &EchoKey, echo: &Echo, _stale: Option<Echo>) -> bool {
        self.set_echo(key, echo);
        true
    }

    fn is_open(&self, port: u16) -> bool {
        matches!(port, FREE | LISTENER)
    }

    fn host_flow(&self, key: &HostFlowKey) -> Option<HostFlow> {
        self.host_flows.borrow().get(key).copied()
    }

    fn set_host_flow(&self, key: &HostFlowKey, flow: &HostFlow) {
        self.host_flows.borrow_mut().insert(*key, *flow);
    }

    fn neighbour(&self, _key: &NeighbourKey) -> Option<Neighbour> {
        None
    }

    fn set_neighbour(&self, _key: &NeighbourKey, _neighbour: &Neighbour) {}

    fn may_ask(&self, _slot: u16, _now: u64) -> bool {
        true
    }

    fn is_broadcast(&self, address: Address4) -> bool {
        address.bytes == OTHER_BROADCAST.octets()
    }

    fn limit(&self, _slot: u16) -> Option<&Limit> {
        None
    }

    fn schedule(&self, _slot: u16, _time: u64, _now: u64, _slack: u64) -> bool {
        true
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

    /// A frame at the hook.
    pub(crate) fn frame(self, bytes: &[u8]) -> PacketBuf<'_> {
        PacketBuf {
            bytes,
            ifindex: self.ifindex(),
            station: Mac::new(MAC),
            longest: Some(LONGEST),
            ..PacketBuf::default()
        }
    }

    pub(crate) fn decide(self, bytes: &[u8], world: &World) -> Verdict {
        let frame = self.frame(bytes);
        match self {
            Self::Uplink => Uplink::decide(&frame, world),
            Self::HostLo => HostLo::decide(&frame, world),
            Self::VethOfA => Veth::decide(&frame, world),
            Self::LoOfA => ContainerLo::decide(&frame, world),
        }
    }
}
