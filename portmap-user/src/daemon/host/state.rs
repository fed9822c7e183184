//! The state of the host: its uplink, and the addresses that it shares with the containers. It is one value,
//! which a change replaces as a whole.

use std::{
    collections::BTreeSet,
    hash::{BuildHasher as _, RandomState},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::LazyLock,
};

use netlink_packet_route::AddressFamily;
use portmap_common::{
    queue,
    tables::{Address4, Address6, BROADCASTS, Config, Mac as MacEntry},
};
use tracing::{info, warn};

use crate::{
    error::{Error, Result},
    kernel::{
        address::{self, Address, DefaultRoute},
        link::{self, Interface, LOOPBACK, Mac},
        namespace::Namespace,
        netlink::Netlink,
    },
    model::NetnsId,
    settings::Settings,
};

/// The state of the host at one point in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::daemon) struct HostState {
    /// The daemon's network namespace.
    pub namespace: NetnsId,
    /// The uplink's name.
    pub uplink: String,
    /// The uplink's index.
    pub uplink_index: u32,
    /// The uplink's MAC address, which containers have, too.
    pub mac: Mac,
    /// The uplink's MTU.
    pub mtu: u32,
    /// The IPv4 address that containers share with the host.
    pub v4: SharedAddress<Ipv4Addr>,
    /// The IPv6 address that they share, if the uplink has one.
    pub v6: Option<SharedAddress<Ipv6Addr>>,
    /// The other interfaces by which packets for containers can come, by index.
    pub interfaces: BTreeMap<u32, HostInterface>,
    /// MAC address of the host's loopback device.
    pub lo_mac: Mac,
    /// Broadcast addresses of all networks of the host except the shared one.
    pub broadcasts: BTreeSet<Ipv4Addr>,
    /// Speed of the uplink in bytes per second: the operator's setting, else the driver's; `None` if both are
    /// missing.
    pub link_speed: Option<u64>,
}

/// An address that containers share with the host, with its network and gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::daemon) struct SharedAddress<A> {
    /// The address.
    pub address: A,
    /// Length of its network's prefix in bits.
    pub prefix_length: u8,
    /// The next hop to other networks, if the host has a default route.
    pub gateway: Option<A>,
}

impl<A> SharedAddress<A> {
    fn new(Address { address, prefix_length }: Address<A>, gateway: Option<A>) -> Self {
        Self { address, prefix_length, gateway }
    }

    /// The address with its prefix.
    pub(in crate::daemon) fn own(self) -> Address<A> {
        Address { address: self.address, prefix_length: self.prefix_length }
    }
}

/// A secret of this process. The standard library gets the keys of its hashes from the kernel's random
/// numbers.
static SECRET: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(()));

/// Smallest MTU of a link on which Linux speaks IPv6 (RFC 8200, section 5).
const SMALLEST_IPV6_MTU: u32 = 1280;

impl HostState {
    /// Reads the state of the host at the start, and warns of restrictions for the containers.
    ///
    /// # Errors
    ///
    /// If its address cannot be shared.
    pub(in crate::daemon) fn discover(netlink: &Netlink, settings: &Settings) -> Result<Self> {
        let state = Self::probe(netlink, settings, None)?;
        warn_of_limits(&state, settings.ipv6);
        Ok(state)
    }

    /// Reads the state of the host. `previous` is the state in use: its uplink is kept while it can be
    /// shared, and its link speed while the kernel reports none: for a link that is down, or for another uplink
    /// whose driver does not know its speed.
    ///
    /// # Errors
    ///
    /// If its address cannot be shared.
    pub(in crate::daemon) fn probe(
        netlink: &Netlink,
        settings: &Settings,
        previous: Option<&Self>,
    ) -> Result<Self> {
        let routes = address::default_routes(netlink, AddressFamily::Inet)?;
        let in_use = previous.map(|previous| previous.uplink_index);
        let uplink = find_uplink(netlink, settings.uplink.as_deref(), &routes, in_use)?;
        let name = &uplink.name;
        if !uplink.is_ethernet || uplink.mac == Mac::default() || uplink.index == LOOPBACK {
            return Err(Error::usage(format!(
                "the uplink {name} is not an Ethernet interface: expected one with a MAC address, see `ip \
                 link`"
            )));
        }
        let (v4, v6) = shared_addresses(netlink, &uplink, &routes, settings.ipv6)?;
        let broadcasts = other_broadcasts(address::broadcasts(netlink)?, &v4);
        let lo = link::find_by_index(netlink, LOOPBACK)?
            .filter(|lo| lo.is_up)
            .ok_or_else(|| Error::usage("the loopback device is down: run `ip link set lo up`"))?;
        let last_speed = previous.and_then(|last| last.link_speed);
        Ok(Self {
            namespace: previous
                .map_or_else(|| Namespace::current()?.id(), |previous| Ok(previous.namespace))?,
            uplink_index: uplink.index,
            mac: uplink.mac,
            mtu: uplink.mtu,
            link_speed: settings.shaping.link_speed.or_else(|| link::speed(name)).or(last_speed),
            uplink: uplink.name,
            v4,
            v6,
            lo_mac: lo.mac,
            broadcasts,
        })
    }

    /// Whether an address is a shared one.
    pub(in crate::daemon) fn shares(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => v4 == self.v4.address,
            IpAddr::V6(v6) => self.v6.is_some_and(|shared| shared.address == v6),
        }
    }

    /// The part of the state that the programs need, as `pm_config`.
    pub(in crate::daemon) fn config(&self, has_flows: bool) -> Config {
        let mask = u32::MAX.checked_shl(32 - u32::from(self.v4.prefix_length)).unwrap_or_default();
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
            direct4: 1,
            direct6: 1,
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

    /// Renders the shared addresses with their prefixes.
    pub(in crate::daemon) fn addresses(&self) -> String {
        let v4 = format!("{}/{}", self.v4.address, self.v4.prefix_length);
        match &self.v6 {
            Some(v6) => format!("{v4} and {}/{}", v6.address, v6.prefix_length),
            None => v4,
        }
    }
}

/// The uplink's addresses that can be shared.
fn shared_addresses(
    netlink: &Netlink,
    uplink: &Interface,
    routes: &[DefaultRoute],
    ipv6: bool,
) -> Result<(SharedAddress<Ipv4Addr>, Option<SharedAddress<Ipv6Addr>>)> {
    let name = &uplink.name;
    let addresses = address::of_interface(netlink, uplink)?;
    let v4 = addresses.v4.ok_or_else(|| {
        Error::usage(format!("the uplink {name} has no IPv4 address: expected one that containers can share"))
    })?;
    let v4 = SharedAddress::new(
        v4,
        gateway(routes, uplink, |gateway| match gateway {
            IpAddr::V4(gateway) => Some(gateway),
            IpAddr::V6(_) => None,
        }),
    );
    let Some(v6) = addresses.v6.filter(|_| ipv6) else { return Ok((v4, None)) };
    if uplink.mtu < SMALLEST_IPV6_MTU {
        return Ok((v4, None));
    }
    let routes = address::default_routes(netlink, AddressFamily::Inet6)?;
    let gateway = gateway(&routes, uplink, |gateway| match gateway {
        IpAddr::V6(gateway) => Some(gateway),
        IpAddr::V4(_) => None,
    });
    Ok((v4, Some(SharedAddress::new(v6, gateway))))
}

/// The gateway of an interface's preferred default route.
fn gateway<A>(
    routes: &[DefaultRoute],
    interface: &Interface,
    right_version: impl Fn(IpAddr) -> Option<A>,
) -> Option<A> {
    let routes = routes.iter().filter(|route| route.interface == interface.index);
    routes.filter_map(|route| route.gateway).find_map(right_version)
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

/// Warns of restrictions for the containers.
fn warn_of_limits(state: &HostState, ipv6: bool) {
    let uplink = &state.uplink;
    if state.v4.gateway.is_none() {
        let SharedAddress { address, prefix_length, .. } = state.v4;
        warn!("no default route uses {uplink}: containers reach only {address}/{prefix_length}");
    }
    match &state.v6 {
        None if ipv6 && state.mtu < SMALLEST_IPV6_MTU => {
            warn!(
                "the MTU of {uplink} is {}: IPv6 needs {SMALLEST_IPV6_MTU}, so containers have none",
                state.mtu
            );
        }
        None if ipv6 => info!("{uplink} has no global IPv6 address, so containers have none"),
        Some(SharedAddress { address, prefix_length, gateway: None }) => {
            warn!("no IPv6 default route uses {uplink}: containers reach only {address}/{prefix_length}");
        }
        _ => {}
    }
}

/// Finds the interface with this name, or else that of the preferred default route. The interface in use is
/// kept if it has been renamed, or if another default route is preferred now.
fn find_uplink(
    netlink: &Netlink,
    wanted: Option<&str>,
    routes: &[DefaultRoute],
    in_use: Option<u32>,
) -> Result<Interface> {
    if let Some(name) = wanted {
        let renamed = || in_use.map_or(Ok(None), |index| link::find_by_index(netlink, index));
        let found = link::find(netlink, name)?.map_or_else(renamed, |found| Ok(Some(found)))?;
        return found.ok_or_else(|| {
            Error::usage(format!("no such interface: {name:?}; `ip link` lists the existing ones"))
        });
    }
    let route = routes.iter().find(|route| Some(route.interface) == in_use).or(routes.first());
    let route = route.ok_or_else(|| {
        Error::usage("no uplink: the host has no default route; name the uplink with --uplink")
    })?;
    link::find_by_index(netlink, route.interface)?.ok_or_else(|| {
        Error::failure(format!("the default route's interface {} does not exist any more", route.interface))
    })
}
