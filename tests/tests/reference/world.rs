//! A host and its containers, for the model and as content of the maps.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use portmap_common::{
    flow_state::SCOPE_LOOPBACK,
    gcra::{FRACTION_BITS, GcraState},
    hook_point::HookPoint,
    queue::UPLINK_FLOWS,
    slot::{HOST_SLOT, loopback_mac, veth_ifindex},
    tables::{Address4, Address6, Config, Endpoint, FURTHER_FLOWS, Listener, Mac, PortEntry},
};

pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
pub(crate) const HOST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 254);
/// A further shared address of each IP version, in some worlds.
pub(crate) const SECOND: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 50);
pub(crate) const SECOND6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x50);
/// An unreachable destination of each version, with the networks of the routes that say so. To all others the
/// FIB has a route by the uplink without a gateway.
pub(crate) const UNREACHABLE: (Ipv4Addr, &str) = (Ipv4Addr::new(198, 51, 100, 9), "198.51.100.0/24");
pub(crate) const UNREACHABLE6: (Ipv6Addr, &str) =
    (Ipv6Addr::new(0x2001, 0xdb8, 0xdead, 0, 0, 0, 0, 1), "2001:db8:dead::/48");
pub(crate) const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0xfe);
pub(crate) const MAC: [u8; 6] = [0x02, 0, 0, 0, 1, 1];
pub(crate) const OTHER_MAC: [u8; 6] = [0x02, 0, 0, 0, 1, 9];
/// The MTU of all interfaces, in bytes.
pub(crate) const MTU: u32 = 1500;
/// Length in bytes of the longest frame that this MTU allows, with its Ethernet header.
pub(crate) const LONGEST: u32 = MTU + 14;
pub(crate) const UPLINK: u32 = 77;
const LOOPBACK: u32 = 1;
const ETH0: u32 = 2;

/// Slots of three containers. The last one is the highest slot.
pub(crate) const A: u16 = 1;
pub(crate) const B: u16 = 7;
pub(crate) const C: u16 = 4095;
/// A slot without a container.
pub(crate) const NO_CONTAINER: u16 = 9;

/// The host's network, its containers and the port owners.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) config: Config,
    /// Generations of containers by slot.
    pub(crate) containers: BTreeMap<u16, u32>,
    /// Owning slots by port.
    pub(crate) owners: Vec<u16>,
    /// Limits by slot.
    pub(crate) limits: BTreeMap<u16, GcraState>,
    /// Flags by slot: which packets to a container pass through its qdisc.
    pub(crate) queues: BTreeMap<u16, u16>,
    /// Slots that keep loopback addresses private.
    pub(crate) private: BTreeSet<u16>,
    /// Open ports of the host's; `None` if all are open.
    pub(crate) open: Option<BTreeSet<u16>>,
    /// Broadcast addresses of the host's other networks.
    pub(crate) broadcasts: BTreeSet<Ipv4Addr>,
    /// Slots that have exceeded their neighbour policer.
    pub(crate) neighbour_limited: BTreeSet<u16>,
    /// Shared addresses other than the primary ones.
    pub(crate) more: BTreeSet<IpAddr>,
}

/// Returns a limit of one nanosecond per byte that is either exceeded or never reached.
pub(crate) const fn limit(is_used_up: bool, counts_local: bool) -> GcraState {
    // Far beyond the value of any clock.
    const FULL: u64 = 1 << 61;
    GcraState {
        tat: FULL,
        ns_per_byte: 1 << FRACTION_BITS,
        tolerance: if is_used_up { 0 } else { FULL },
        counts_local: counts_local as u32,
        reserved: 0,
    }
}

impl World {
    /// Returns a world with three containers, whose ports and the host's are interleaved.
    pub(crate) fn new() -> Self {
        let owners = (0..=u16::MAX).map(|port| {
            // The upper bits of a multiplicative hash, which has no order and no period.
            let scattered = u32::from(port).wrapping_mul(0x9e37_79b1) >> 29;
            [A, HOST_SLOT, B, A, C, A, B, HOST_SLOT][usize::try_from(scattered).expect("three bits")]
        });
        Self {
            config: Config {
                host_ip: Address4::new(HOST.octets()),
                netmask: Address4::new(mask4(24)),
                gateway: Address4::new(GATEWAY.octets()),
                uplink_ifindex: UPLINK,
                host_ip6: Address6::new(HOST6.octets()),
                netmask6: Address6::new(mask6(64)),
                gateway6: Address6::new(GATEWAY6.octets()),
                mac: Mac::new(MAC),
                lo_mac: Mac::new([0; 6]),
                uplink_flows: UPLINK_FLOWS,
                reach: 0,
                listener: Listener::NONE,
                secret: 0xfedc_ba98_7654_3210,
                broadcasts: 0,
                more_addresses4: 0,
                more_addresses6: 0,
                direct4: 1,
                direct6: 1,
                more_flows: [0; FURTHER_FLOWS],
            },
            containers: BTreeMap::from([(A, 11), (B, 12), (C, u32::MAX)]),
            owners: owners.collect(),
            limits: BTreeMap::new(),
            queues: BTreeMap::new(),
            private: BTreeSet::new(),
            open: None,
            broadcasts: BTreeSet::new(),
            neighbour_limited: BTreeSet::new(),
            more: BTreeSet::new(),
        }
    }

    /// Adds shared addresses.
    pub(crate) fn share(&mut self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.more.extend(addresses);
        let v4 = self.more.iter().filter(|address| address.is_ipv4()).count();
        self.config.more_addresses4 = u32::try_from(v4).expect("few");
        self.config.more_addresses6 = u32::try_from(self.more.len() - v4).expect("few");
    }

    /// Returns whether the way to an address is the direct one.
    pub(crate) fn is_direct(&self, of: IpAddr) -> bool {
        (if of.is_ipv4() { self.config.direct4 } else { self.config.direct6 }) == 1
    }

    /// Returns whether the FIB has a route to an address.
    pub(crate) fn has_route(address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => address.octets()[..3] != UNREACHABLE.0.octets()[..3],
            IpAddr::V6(address) => address.segments()[..3] != UNREACHABLE6.0.segments()[..3],
        }
    }

    /// Returns the slot that owns a port.
    pub(crate) fn owner(&self, port: u16) -> u16 {
        self.owners[usize::from(port)]
    }

    /// Returns the port map's entry of ports of `slot`.
    pub(crate) fn entry(&self, slot: u16) -> PortEntry {
        if slot == HOST_SLOT {
            PortEntry::default()
        } else {
            let flags = self.queues.get(&slot).copied().unwrap_or_default();
            let flags = if self.is_private(slot) { flags | 4 } else { flags };
            PortEntry { ifindex: veth_ifindex(slot), slot, flags }
        }
    }

    /// Returns the entry of `slot` in the map of containers.
    pub(crate) fn endpoint(&self, slot: u16) -> Endpoint {
        let Some(generation) = self.containers.get(&slot) else { return Endpoint::default() };
        Endpoint {
            host_ifindex: veth_ifindex(slot),
            eth0_ifindex: self.eth0(slot).expect("a container"),
            ephemeral_first: 0,
            ephemeral_last: 0,
            generation: *generation,
            flags: self.entry(slot).flags,
            reserved: 0,
        }
    }

    pub(crate) fn is_private(&self, slot: u16) -> bool {
        self.private.contains(&slot)
    }

    /// Adds broadcast addresses of other networks of the host's.
    pub(crate) fn broadcast(&mut self, addresses: impl IntoIterator<Item = Ipv4Addr>) {
        self.broadcasts.extend(addresses);
        self.config.broadcasts = u32::try_from(self.broadcasts.len()).expect("few");
    }

    /// Opens only these ports of the host's.
    pub(crate) fn open_only(&mut self, ports: impl IntoIterator<Item = u16>) {
        self.open = Some(ports.into_iter().collect());
        self.config.reach = 1;
    }

    /// Sets the daemon's listener: 127.0.0.1 and all IPv6 addresses, at a port.
    pub(crate) fn listen(&mut self, port: u16) {
        let (address4, mask4) = (Address4::new([127, 0, 0, 1]), Address4::new([255; 4]));
        self.config.listener = Listener { port: port.into(), address4, mask4, ..Listener::NONE };
    }

    /// Returns whether a local address and a port are the daemon's listener.
    pub(crate) fn is_listener(&self, address: IpAddr, port: u16) -> bool {
        let leads_there = address.is_ipv6() || address == Ipv4Addr::LOCALHOST;
        port != 0 && self.config.listener.port == u32::from(port) && leads_there
    }

    /// Returns whether a port of the host's is open.
    pub(crate) fn is_open(&self, port: u16) -> bool {
        self.open.as_ref().is_none_or(|open| open.contains(&port))
    }

    /// Returns the index of a container's `eth0`.
    pub(crate) fn eth0(&self, slot: u16) -> Option<u32> {
        self.containers.contains_key(&slot).then_some(ETH0 + u32::from(slot))
    }

    pub(crate) fn shares_ipv6(&self) -> bool {
        self.config.host_ip6 != Address6::default()
    }

    pub(crate) fn is_shared(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => v4.octets() == self.config.host_ip.bytes || self.more.contains(&address),
            IpAddr::V6(v6) => {
                let is_primary = v6.octets() == self.config.host_ip6.bytes;
                self.shares_ipv6() && (is_primary || self.more.contains(&address))
            }
        }
    }

    pub(crate) fn is_local(&self, address: IpAddr) -> bool {
        self.is_shared(address) || address.is_loopback()
    }

    /// Returns whether an address is on the uplink's network.
    pub(crate) fn is_on_link(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => {
                let mask = Ipv4Addr::from(self.config.netmask.bytes);
                address & mask == Ipv4Addr::from(self.config.host_ip.bytes) & mask
            }
            IpAddr::V6(address) => {
                let mask = Ipv6Addr::from(self.config.netmask6.bytes);
                address & mask == Ipv6Addr::from(self.config.host_ip6.bytes) & mask
            }
        }
    }

    /// Returns the gateway.
    pub(crate) fn gateway(&self, of: IpAddr) -> Option<IpAddr> {
        let gateway: IpAddr = match of {
            IpAddr::V4(_) => self.config.gateway.bytes.into(),
            IpAddr::V6(_) => self.config.gateway6.bytes.into(),
        };
        (!gateway.is_unspecified()).then_some(gateway)
    }

    /// Returns whether an address is not a unicast address.
    pub(crate) fn is_not_unicast(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => {
                let mask = Ipv4Addr::from(self.config.netmask.bytes);
                let has_broadcasts = mask.to_bits().count_ones() < 31;
                let is_broadcast =
                    address & !mask == Ipv4Addr::UNSPECIFIED || address | mask == Ipv4Addr::BROADCAST;
                let [first, ..] = address.octets();
                first == 0
                    || first >= 224
                    || self.broadcasts.contains(&address)
                    || (has_broadcasts && self.is_on_link(address.into()) && is_broadcast)
            }
            IpAddr::V6(address) => {
                address.is_unspecified()
                    || address.is_multicast()
                    || address.is_unicast_link_local()
                    || address.to_ipv4_mapped().is_some()
            }
        }
    }
}

/// Returns the netmask of an IPv4 prefix.
pub(crate) fn mask4(prefix: u32) -> [u8; 4] {
    u32::MAX.checked_shl(32 - prefix).unwrap_or(0).to_be_bytes()
}

/// Returns the netmask of an IPv6 prefix.
pub(crate) fn mask6(prefix: u32) -> [u8; 16] {
    u128::MAX.checked_shl(128 - prefix).unwrap_or(0).to_be_bytes()
}

/// Hooks that count packets, with one container at its veth.
pub(crate) const DECIDING_HOOKS: [HookPoint; 4] = [
    HookPoint::UplinkIngress,
    HookPoint::VethIngress(A),
    HookPoint::HostLoIngress,
    HookPoint::ContainerLoEgress,
];

/// All hooks, with one container at its veth.
pub(crate) const ALL_HOOKS: [HookPoint; 6] = [
    HookPoint::UplinkIngress,
    HookPoint::VethIngress(A),
    HookPoint::HostLoIngress,
    HookPoint::ContainerLoEgress,
    HookPoint::UplinkEgress,
    HookPoint::ContainerEth0Ingress,
];

/// Returns the index of the interface at which a hook is.
pub(crate) const fn ifindex(hook: HookPoint) -> u32 {
    match hook {
        // No program reads the index of a container's `eth0`, but an interface with this index must exist.
        HookPoint::UplinkIngress | HookPoint::UplinkEgress | HookPoint::ContainerEth0Ingress => UPLINK,
        HookPoint::VethIngress(slot) => veth_ifindex(slot),
        HookPoint::HostLoIngress | HookPoint::ContainerLoEgress => LOOPBACK,
    }
}

/// Returns the scope of fragments at a hook.
pub(crate) const fn scope(hook: HookPoint, sender: u16) -> u16 {
    match hook {
        HookPoint::VethIngress(slot) => slot,
        HookPoint::ContainerLoEgress => SCOPE_LOOPBACK | sender,
        HookPoint::UplinkIngress
        | HookPoint::HostLoIngress
        | HookPoint::UplinkEgress
        | HookPoint::ContainerEth0Ingress => HOST_SLOT,
    }
}

/// Returns destination and source MAC address of a valid frame at a hook. `sender` is the slot of a
/// container's loopback device.
pub(crate) const fn macs(hook: HookPoint, sender: u16) -> ([u8; 6], [u8; 6]) {
    match hook {
        HookPoint::UplinkIngress => (MAC, OTHER_MAC),
        HookPoint::VethIngress(_) => (MAC, MAC),
        HookPoint::HostLoIngress => ([0; 6], [0; 6]),
        HookPoint::ContainerLoEgress => (loopback_mac(sender), loopback_mac(sender)),
        HookPoint::UplinkEgress | HookPoint::ContainerEth0Ingress => (OTHER_MAC, MAC),
    }
}

/// A frame at a hook, with its metadata.
#[derive(Clone, Copy)]
pub(crate) struct Case<'a> {
    pub(crate) hook: HookPoint,
    pub(crate) frame: &'a [u8],
    /// VLAN tag that the kernel has removed.
    pub(crate) tag: Option<u16>,
    pub(crate) mark: u32,
    pub(crate) ingress: u32,
    pub(crate) priority: u32,
    /// Payload bytes of each segment into which the kernel will cut the frame; 0 if it will not cut it.
    pub(crate) segment: u32,
}

impl<'a> Case<'a> {
    /// Returns a frame without metadata.
    pub(crate) const fn new(hook: HookPoint, frame: &'a [u8]) -> Self {
        Self { hook, frame, tag: None, mark: 0, ingress: 0, priority: 0, segment: 0 }
    }
}

impl fmt::Debug for Case<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { hook, frame, tag, mark, ingress, priority, segment } = self;
        write!(formatter, "  at {hook:?}, tag {tag:x?}, mark {mark:#x}, from interface {ingress}, ")?;
        write!(formatter, "priority {priority:#x}, segments of {segment}: ")?;
        frame.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}
