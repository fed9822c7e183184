//! The hooks and the content of the maps.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use portmap_common::{
    hook_point::HookPoint,
    slot::veth_ifindex,
    tables::{
        Address4, Address6, Config, Endpoint, FURTHER_FLOWS, HOST_ACCESS_LIMITED, LOOPBACK_PRIVATE, Listener,
        Mac, PortEntry,
    },
};
use portmap_ebpf::{PacketBuf, Verdict, fib::FibAnswer, hooks, testing::FakeTables, verdict::NextHop};

pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 254);
pub(crate) const PEER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);
/// Broadcast address of another network of the host's, inside the shared one.
pub(crate) const OTHER_BROADCAST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 31);
pub(crate) const FAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
pub(crate) const LOCAL: Ipv4Addr = Ipv4Addr::LOCALHOST;
pub(crate) const ALSO_LOCAL: Ipv4Addr = Ipv4Addr::new(127, 255, 255, 254);
pub(crate) const MAC: [u8; 6] = [0x02, 0, 0, 0, 1, 1];
pub(crate) const OTHER_MAC: [u8; 6] = [0x02, 0, 0, 0, 1, 9];

/// Slots of two containers, and their ports. The second one has the lowest and the highest port.
pub(crate) const A: u16 = 1;
pub(crate) const B: u16 = 7;
pub(crate) const A_PORT: u16 = 31000;
/// A container that keeps loopback addresses private.
pub(crate) const P: u16 = 9;
pub(crate) const P_PORT: u16 = 32000;
pub(crate) const B_PORT: u16 = 65535;
pub(crate) const B_LOW_PORT: u16 = 1;
/// An open port of the host's, a closed one, and the daemon's listener.
pub(crate) const FREE: u16 = 80;
pub(crate) const CLOSED: u16 = 81;
pub(crate) const LISTENER: u16 = 5051;
pub(crate) const UPLINK: u32 = 77;
/// The MTU of all interfaces, in bytes.
pub(crate) const MTU: u32 = 1500;
/// Length in bytes of the longest frame that this MTU allows, with its Ethernet header.
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
    more_addresses4: 0,
    more_addresses6: 0,
    direct4: 1,
    direct6: 1,
    more_flows: [0; FURTHER_FLOWS],
};

/// Returns the content of the maps before the first packet.
pub(crate) fn tables() -> FakeTables {
    tables_with(CONFIG)
}

/// Returns the content of the maps with another configuration of the host's network.
pub(crate) fn tables_with(config: Config) -> FakeTables {
    let private = PortEntry { flags: LOOPBACK_PRIVATE, ..entry(P) };
    let ports = [(A_PORT, entry(A)), (P_PORT, private), (B_PORT, entry(B)), (B_LOW_PORT, entry(B))];
    let endpoint = Endpoint { host_ifindex: veth_ifindex(A), eth0_ifindex: ETH0, ..Endpoint::default() };
    FakeTables {
        config,
        ports: BTreeMap::from(ports),
        endpoints: BTreeMap::from([(A, endpoint)]),
        allowed_host_ports: BTreeSet::from([FREE, LISTENER]),
        broadcasts: BTreeSet::from([Address4::new(OTHER_BROADCAST.octets())]),
        // The kernel has one route in this test: to all destinations by the uplink, without a gateway.
        default_route: FibAnswer {
            outcome: FibAnswer::UNRESOLVED,
            ifindex: UPLINK,
            next_hop: NextHop::KERNEL,
        },
        ..FakeTables::default()
    }
}

/// The hooks of the table, those of containers at A's interfaces.
pub(crate) const HOOKS: [HookPoint; 4] =
    [HookPoint::UplinkIngress, HookPoint::HostLoIngress, VETH_OF_A, HookPoint::ContainerLoEgress];

/// The hook at A's host veth.
pub(crate) const VETH_OF_A: HookPoint = HookPoint::VethIngress(A);

/// Returns the index of the interface at which a hook is.
pub(crate) const fn ifindex(hook: HookPoint) -> u32 {
    match hook {
        HookPoint::UplinkIngress | HookPoint::UplinkEgress => UPLINK,
        HookPoint::VethIngress(slot) => veth_ifindex(slot),
        HookPoint::HostLoIngress | HookPoint::ContainerLoEgress => 1,
        HookPoint::ContainerEth0Ingress => ETH0,
    }
}

/// Returns a frame at a hook.
pub(crate) fn frame(hook: HookPoint, bytes: &[u8]) -> PacketBuf<'_> {
    PacketBuf {
        bytes,
        ifindex: ifindex(hook),
        mac: Mac::new(MAC),
        max_frame_len: Some(LONGEST),
        ..PacketBuf::default()
    }
}

/// Returns the verdict of the decision code.
pub(crate) fn decide(hook: HookPoint, bytes: &[u8], tables: &FakeTables) -> Verdict {
    hooks::decide(hook, &frame(hook, bytes), tables)
}
