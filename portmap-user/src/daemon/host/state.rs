//! The state of the host: its uplinks, and the addresses that it shares with the containers. It is one value,
//! which a change replaces as a whole.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{BuildHasher as _, RandomState},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::LazyLock,
};

use netlink_packet_route::AddressFamily;
use portmap_common::{
    queue,
    slot::{HOST_SLOT, slot_of_veth},
    tables::{ADDRESSES, Address4, Address6, BROADCASTS, Config, FURTHER_FLOWS, Mac as MacEntry},
};
use tracing::warn;

use super::{
    direct::Routing,
    interfaces::{self, HostInterface},
    policy, primary,
    projection::{Projected, Projection},
    uplink,
};
use crate::{
    error::{Error, Result},
    kernel::{
        address::{self, HostAddress, Listed},
        link::{self, Interface, LOOPBACK, Mac, SMALLEST_IPV6_MTU},
        namespace::Namespace,
        neighbour,
        netlink::Netlink,
        routes::{self, HostRoute, Route, TABLE_MAIN},
        sysctl::{self, Sysctls},
    },
    model::NetnsId,
    settings::Settings,
};

/// The state of the host at one point in time.
#[expect(clippy::struct_excessive_bools, reason = "they are independent properties")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::daemon) struct HostState {
    /// The daemon's network namespace.
    pub namespace: NetnsId,
    /// The main uplink's name.
    pub uplink: String,
    /// The main uplink's index.
    pub uplink_index: u32,
    /// Whether the main uplink's frames have an Ethernet header.
    pub is_ethernet: bool,
    /// The MAC address of containers: the main uplink's, if it has one.
    pub mac: Mac,
    /// The main uplink's MTU.
    pub mtu: u32,
    /// The primary IPv4 address.
    pub v4: SharedAddress<Ipv4Addr>,
    /// The primary IPv6 address, if the host has one.
    pub v6: Option<SharedAddress<Ipv6Addr>>,
    /// The other interfaces by which packets for containers can come, by index. Some are further uplinks.
    pub interfaces: BTreeMap<u32, HostInterface>,
    /// All addresses that containers share with the host, by IP version and interface, and otherwise in the
    /// kernel's order.
    pub addresses: Vec<HostAddress>,
    /// The present and former primary addresses, in the order of preference.
    pub primaries: Vec<IpAddr>,
    /// Whether new IPv6 connections by the main uplink prefer temporary addresses.
    pub prefers_temporary: bool,
    /// The routes of containers, in the order of their keys.
    pub routes: Vec<HostRoute>,
    /// Number of routes that containers lack because there are too many.
    pub routes_left_out: usize,
    /// Whether the route to every IPv4 destination is known without asking the kernel: the network of the primary
    /// address is on the uplink's link, and all others are behind the gateway, which answers.
    pub direct4: bool,
    /// The same of IPv6.
    pub direct6: bool,
    /// MAC address of the host's loopback device.
    pub lo_mac: Mac,
    /// Broadcast addresses of all networks of the host except the shared one.
    pub broadcasts: BTreeSet<Ipv4Addr>,
    /// Speed of the fastest uplink in bytes per second: the operator's setting, else the drivers'; `None` if all are
    /// missing.
    pub link_speed: Option<u64>,
}

/// A primary address, with its network and gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::daemon) struct SharedAddress<A> {
    /// The address.
    pub address: A,
    /// Length of its network's prefix in bits.
    pub prefix_length: u8,
    /// The gateway of the default route by the uplink, if that has one of this IP version.
    pub gateway: Option<A>,
}

/// MAC address of containers if the main uplink has no Ethernet header. It is never on a wire, because what leaves by
/// an Ethernet interface has that interface's address. It is locally administered, as its first byte says.
pub(in crate::daemon) const MAC_WITHOUT_ETHERNET: Mac = [0x02, 0x50, 0x4d, 0xff, 0, 1];

/// A secret of this process. The standard library gets the keys of its hashes from the kernel's random
/// numbers.
static SECRET: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(()));

impl HostState {
    /// Reads the state of the host at the start.
    ///
    /// # Errors
    ///
    /// If its address cannot be shared.
    pub(in crate::daemon) fn discover(netlink: &Netlink, settings: &Settings) -> Result<Self> {
        Self::probe(netlink, settings, None)
    }

    /// Reads the state again with the primary addresses of an earlier daemon, and warns of restrictions for the
    /// containers.
    ///
    /// # Errors
    ///
    /// If its address cannot be shared any more.
    pub(in crate::daemon) fn with_known_primaries(
        self,
        netlink: &Netlink,
        settings: &Settings,
        primaries: Option<Vec<IpAddr>>,
    ) -> Result<Self> {
        let primaries = primaries.filter(|known| !known.is_empty());
        let state = match primaries {
            Some(primaries) => Self::probe(netlink, settings, Some(&Self { primaries, ..self }))?,
            None => self,
        };
        state.warn_of_limits(settings);
        Ok(state)
    }

    /// Reads the state of the host. `previous` is the state in use: its main uplink is kept while it is one of the
    /// uplinks, and its link speed while the kernel reports none: for links that are down, or for other uplinks
    /// whose drivers do not know their speed.
    ///
    /// # Errors
    ///
    /// If its address cannot be shared.
    pub(in crate::daemon) fn probe(
        netlink: &Netlink,
        settings: &Settings,
        previous: Option<&Self>,
    ) -> Result<Self> {
        let routes4 = &all_routes(netlink, AddressFamily::Inet)?[..];
        let routes6 = &all_routes(netlink, AddressFamily::Inet6)?[..];
        let in_use: Vec<u32> = previous.into_iter().flat_map(Self::uplink_indices).collect();
        let uplinks = uplink::find(netlink, &settings.uplinks, [routes4, routes6], &in_use)?;
        let (uplink, name) = (&uplinks.main, &uplinks.main.name);
        uplink::check_main(uplink)?;
        let mut primaries = previous.map(|last| last.primaries.clone()).unwrap_or_default();
        let shared = shared_addresses(netlink, settings, uplink)?;
        let (v4, v6) = shared.split_at(shared.partition_point(|listed| listed.address.address.is_ipv4()));
        let v4 = primary(netlink, v4, uplink, &mut primaries).and_then(only_v4).ok_or_else(|| {
            Error::usage(format!(
                "the uplink {name} has no IPv4 address, nor has another interface: expected one that containers \
                 can share, and that --address and --exclude-address leave"
            ))
        })?;
        let v6 = primary(netlink, v6, uplink, &mut primaries).and_then(only_v6);
        let v4 = SharedAddress { gateway: uplink::gateway(routes4, uplink, ip4), ..v4 };
        let v6 = v6.map(|v6| SharedAddress { gateway: uplink::gateway(routes6, uplink, ip6), ..v6 });
        let addresses: Vec<HostAddress> = shared.iter().map(|listed| listed.address).collect();
        // Rules can select other tables, of which containers get what a process of the host finds in them.
        let (policy4, policy6) = (
            policy::tables(netlink, AddressFamily::Inet, routes4)?,
            policy::tables(netlink, AddressFamily::Inet6, routes6)?,
        );
        let Projected { mut routes, left_out } = {
            let all4 = policy4.as_deref().unwrap_or(routes4).iter();
            let all6 = policy6.as_deref().unwrap_or(routes6).iter();
            let all = || all4.clone().chain(all6.clone().filter(|_| v6.is_some()));
            let mtus = mtus(netlink, all(), uplink)?;
            let (uplink, primaries) = (uplink.index, &primaries);
            Projection { addresses: &addresses, primaries, uplink, mtus: &mtus }.of(all())
        };
        // A rule that applies to some packets only can select a default route that no table above has.
        for (policy, is_v6) in [(&policy4, false), (&policy6, true)] {
            let is_default = |route: &HostRoute| route.is_default() && route.destination.is_ipv6() == is_v6;
            if (!is_v6 || v6.is_some()) && policy.is_some() && !routes.iter().any(is_default) {
                routes.push(HostRoute::last_resort(is_v6));
                routes.sort_by_key(HostRoute::key);
            }
        }
        let is_direct =
            |has_policy: bool, routes, primary: IpAddr, prefix_length, gateway: Option<IpAddr>| {
                let (addresses, uplink) = (&addresses, uplink.index);
                let routing = Routing { routes, addresses, uplink, primary, prefix_length, gateway };
                let answers =
                    || gateway.is_none_or(|gateway| !neighbour::has_failed(netlink, uplink, gateway));
                !has_policy && routing.is_direct() && answers()
            };
        let direct4 = is_direct(
            policy4.is_some(),
            routes4,
            v4.address.into(),
            v4.prefix_length,
            v4.gateway.map(IpAddr::V4),
        );
        let direct6 = v6.is_some_and(|v6| {
            let gateway = v6.gateway.map(IpAddr::V6);
            is_direct(policy6.is_some(), routes6, v6.address.into(), v6.prefix_length, gateway)
        });
        let by_routes = routes4.iter().chain(routes6).filter(|route| route.leads_outside());
        let by_routes = by_routes.flat_map(|route| route.hops.iter().map(|hop| hop.interface));
        let by_addresses = addresses.iter().map(|own| own.interface);
        let candidates = by_addresses.chain(by_routes);
        let interfaces = interfaces::probe(netlink, candidates, &uplinks, settings.shaping.flows)?;
        let broadcasts = other_broadcasts(address::broadcasts(netlink)?, &v4);
        let lo = link::find_by_index(netlink, LOOPBACK)?
            .filter(|lo| lo.is_up)
            .ok_or_else(|| Error::usage("the loopback device is down: run `ip link set lo up`"))?;
        let last_speed = previous.and_then(|last| last.link_speed);
        Ok(Self {
            namespace: previous
                .map_or_else(|| Namespace::current()?.id(), |previous| Ok(previous.namespace))?,
            uplink_index: uplink.index,
            is_ethernet: uplink.is_ethernet,
            mac: if uplink.is_ethernet { uplink.mac } else { MAC_WITHOUT_ETHERNET },
            mtu: uplink.mtu,
            link_speed: settings.shaping.link_speed.or_else(|| uplinks.speed()).or(last_speed),
            prefers_temporary: v6.is_some() && prefers_temporary(name)?,
            uplink: name.clone(),
            v4,
            v6,
            addresses,
            primaries,
            routes,
            routes_left_out: left_out,
            direct4,
            direct6,
            interfaces,
            lo_mac: lo.mac,
            broadcasts,
        })
    }

    /// Whether the state differs from an earlier one in nothing that a container has a part in.
    pub(in crate::daemon) fn is_same_for_containers(&self, before: &Self) -> bool {
        let mut now = self.clone();
        now.broadcasts.clone_from(&before.broadcasts);
        now.primaries.clone_from(&before.primaries);
        (now.direct4, now.direct6) = (before.direct4, before.direct6);
        now.routes_left_out = before.routes_left_out;
        now.interfaces.clone_from(&before.interfaces);
        now == *before
    }

    /// Whether only routes differ from those of an earlier state.
    pub(in crate::daemon) fn differs_in_routes_only(&self, before: &Self) -> bool {
        let routes = before.routes.clone();
        Self { routes, ..self.clone() }.is_same_for_containers(before)
    }

    /// The gateways of the default routes by the uplink.
    pub(in crate::daemon) fn gateways(&self) -> impl Iterator<Item = IpAddr> {
        let v6 = self.v6.and_then(|v6| v6.gateway).map(IpAddr::V6);
        self.v4.gateway.map(IpAddr::V4).into_iter().chain(v6)
    }

    /// Whether containers have an address at their `eth0`: the uplink's addresses, and the primary ones wherever the
    /// host has them.
    pub(in crate::daemon) fn is_of_eth0(&self, own: &HostAddress) -> bool {
        let is_primary = match own.address {
            IpAddr::V4(v4) => v4 == self.v4.address && own.prefix_length == self.v4.prefix_length,
            IpAddr::V6(v6) => self
                .v6
                .is_some_and(|shared| (shared.address, shared.prefix_length) == (v6, own.prefix_length)),
        };
        own.interface == self.uplink_index || is_primary
    }

    /// Whether an address is a shared one.
    pub(in crate::daemon) fn shares(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|own| own.address == address)
    }

    /// The shared addresses other than the primary ones, as many as the maps can contain.
    pub(in crate::daemon) fn more_addresses(&self) -> BTreeSet<IpAddr> {
        let primary = [IpAddr::V4(self.v4.address)].into_iter().chain(self.v6.map(|v6| v6.address.into()));
        let primary: Vec<IpAddr> = primary.collect();
        let all = self.addresses.iter().map(|own| own.address);
        let more =
            all.filter(|address| !primary.contains(address) && (address.is_ipv4() || self.v6.is_some()));
        more.collect::<BTreeSet<_>>().into_iter().take(ADDRESSES).collect()
    }

    /// The part of the state that the programs need, as `pm_config`.
    pub(in crate::daemon) fn config(&self, has_flows: bool) -> Config {
        let mask = u32::MAX.checked_shl(32 - u32::from(self.v4.prefix_length)).unwrap_or_default();
        let more = self.more_addresses();
        let mut more_flows = [0; FURTHER_FLOWS];
        let further = self.further_uplinks().filter(|(_, found)| has_flows && found.has_flows);
        for (place, (index, _)) in more_flows.iter_mut().zip(further) {
            *place = index;
        }
        let mut config = Config {
            host_ip: Address4::new(self.v4.address.octets()),
            netmask: Address4::new(mask.to_be_bytes()),
            gateway: Address4::new(self.v4.gateway.unwrap_or(Ipv4Addr::UNSPECIFIED).octets()),
            uplink_ifindex: self.uplink_index,
            mac: MacEntry::new(self.mac),
            lo_mac: MacEntry::new(self.lo_mac),
            uplink_flows: if has_flows { queue::UPLINK_FLOWS } else { 0 },
            secret: *SECRET,
            broadcasts: u32::try_from(self.broadcasts.len()).unwrap_or(u32::MAX),
            direct4: self.direct4.into(),
            direct6: self.direct6.into(),
            more_addresses4: count(more.iter().filter(|address| address.is_ipv4())),
            more_addresses6: count(more.iter().filter(|address| address.is_ipv6())),
            more_flows,
            ..Config::default()
        };
        if let Some(v6) = &self.v6 {
            let mask = u128::MAX.checked_shl(128 - u32::from(v6.prefix_length)).unwrap_or_default();
            config.host_ip6 = Address6::new(v6.address.octets());
            config.netmask6 = Address6::new(mask.to_be_bytes());
            config.gateway6 = Address6::new(v6.gateway.unwrap_or(Ipv6Addr::UNSPECIFIED).octets());
        }
        config
    }
}

fn count<'a>(addresses: impl Iterator<Item = &'a IpAddr>) -> u32 {
    u32::try_from(addresses.count()).unwrap_or(u32::MAX)
}

/// All routes of an IP version, with the next hops of next-hop objects.
fn all_routes(netlink: &Netlink, family: AddressFamily) -> Result<Vec<Route>> {
    let mut routes = routes::list(netlink, family)?;
    routes::resolve_objects(netlink, &mut routes);
    Ok(routes)
}

/// The addresses of the host that containers share.
fn shared_addresses(netlink: &Netlink, settings: &Settings, uplink: &Interface) -> Result<Vec<Listed>> {
    let mut all = address::list(netlink)?;
    let has_v6 = settings.ipv6 && uplink.mtu >= SMALLEST_IPV6_MTU;
    all.retain(|Listed { address: own, .. }| {
        slot_of_veth(own.interface) == HOST_SLOT
            && (own.address.is_ipv4() || has_v6)
            && settings.addresses.shares(own.address)
    });
    Ok(all)
}

/// The primary address among the shared ones of an IP version, which is remembered.
fn primary(
    netlink: &Netlink,
    shared: &[Listed],
    uplink: &Interface,
    primaries: &mut Vec<IpAddr>,
) -> Option<HostAddress> {
    let chosen = primary::choose(netlink, shared, uplink.index, primaries)?;
    primary::remember(primaries, chosen.address);
    Some(chosen)
}

const fn ip4(address: IpAddr) -> Option<Ipv4Addr> {
    if let IpAddr::V4(address) = address { Some(address) } else { None }
}

const fn ip6(address: IpAddr) -> Option<Ipv6Addr> {
    if let IpAddr::V6(address) = address { Some(address) } else { None }
}

fn only_v4(own: HostAddress) -> Option<SharedAddress<Ipv4Addr>> {
    let address = ip4(own.address)?;
    Some(SharedAddress { address, prefix_length: own.prefix_length, gateway: None })
}

fn only_v6(own: HostAddress) -> Option<SharedAddress<Ipv6Addr>> {
    let address = ip6(own.address)?;
    Some(SharedAddress { address, prefix_length: own.prefix_length, gateway: None })
}

/// The MTU of the uplink and of the other interfaces of routes, by index.
fn mtus<'a>(
    netlink: &Netlink,
    routes: impl Iterator<Item = &'a Route>,
    uplink: &Interface,
) -> Result<HashMap<u32, u32>> {
    let mut mtus = HashMap::from([(uplink.index, uplink.mtu)]);
    for hop in routes.filter(|route| route.route.table == TABLE_MAIN).flat_map(|route| &route.hops) {
        // Routes by host veths are no one else's.
        if !mtus.contains_key(&hop.interface)
            && slot_of_veth(hop.interface) == HOST_SLOT
            && let Some(found) = link::find_by_index(netlink, hop.interface)?
        {
            mtus.insert(found.index, found.mtu);
        }
    }
    Ok(mtus)
}

/// Whether new connections by an interface prefer temporary addresses (RFC 8981).
fn prefers_temporary(name: &str) -> Result<bool> {
    let value = Sysctls::open()?.read_if_present(&sysctl::of_interface("ipv6", name, "use_tempaddr"))?;
    Ok(value.and_then(|value| value.parse::<i32>().ok()).is_some_and(|value| value >= 2))
}

/// The broadcast addresses without those of the shared network, as many as `pm_broadcasts` can contain.
fn other_broadcasts(mut all: BTreeSet<Ipv4Addr>, shared: &SharedAddress<Ipv4Addr>) -> BTreeSet<Ipv4Addr> {
    for own in address::ends(shared.address, shared.prefix_length) {
        all.remove(&own);
    }
    if all.len() > BROADCASTS {
        warn!(
            "the host has {} broadcast addresses, but pm_broadcasts has room for {BROADCASTS} only",
            all.len()
        );
    }
    all.into_iter().take(BROADCASTS).collect()
}
