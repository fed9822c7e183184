//! The projection of the host's routes into containers, so that a container's own kernel chooses the source
//! address, the MTU and the error as the host's kernel would. The next hop is always the container's `eth0`.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use netlink_packet_core::Nla as _;
use netlink_packet_route::route::{RouteMetric, RouteType};
use portmap_common::slot::{HOST_SLOT, slot_of_veth};

use super::direct::{contains, is_never_routed, max_length};
use crate::kernel::{
    address::HostAddress,
    link::LOOPBACK,
    routes::{Hop, HostRoute, Key, Route, TABLE_DEFAULT, TABLE_MAIN},
};

/// Most routes that a container gets. A host with more of them has a table of the whole Internet.
const MOST: usize = 4096;

/// What the projection depends on besides the routes.
pub(super) struct Projection<'a> {
    /// The shared addresses.
    pub(super) addresses: &'a [HostAddress],
    /// The primary address of each IP version.
    pub(super) primaries: &'a [IpAddr],
    /// Index of the uplink.
    pub(super) uplink: u32,
    /// MTU of the interfaces of routes, by index.
    pub(super) mtus: &'a HashMap<u32, u32>,
}

/// The routes of containers, in the order of their keys, and the number of those that are too many.
#[derive(Debug, Default)]
pub(super) struct Projected {
    pub(super) routes: Vec<HostRoute>,
    pub(super) left_out: usize,
}

impl Projection<'_> {
    /// Projects the host's routes.
    pub(super) fn of<'a>(&self, routes: impl Iterator<Item = &'a Route>) -> Projected {
        let mut by_key = BTreeMap::<Key, HostRoute>::new();
        for route in routes {
            if Self::is_relevant(route) {
                // The kernel uses the first of several routes with the same key.
                by_key.entry(route.route.key()).or_insert_with(|| self.project(route));
            }
        }
        let all: Vec<HostRoute> = by_key.into_values().collect();
        if all.len() <= MOST {
            return Projected { routes: all, left_out: 0 };
        }
        let needed = without_redundant(all);
        if needed.len() <= MOST {
            return Projected { routes: needed, left_out: 0 };
        }
        let (routes, rest): (Vec<_>, Vec<_>) = needed.into_iter().partition(HostRoute::is_default);
        Projected { routes, left_out: rest.len() }
    }

    fn is_relevant(route: &Route) -> bool {
        let HostRoute { destination, prefix_length, table, .. } = route.route;
        let is_asked = table == TABLE_MAIN || (table == TABLE_DEFAULT && destination.is_ipv4());
        let is_kind = match route.route.kind {
            RouteType::Unicast => !route.hops.is_empty(),
            kind => is_error(kind),
        };
        let is_to_container = route.hops.iter().any(|hop| slot_of_veth(hop.interface) != HOST_SLOT);
        // The kernel's route to an IPv6 address of the loopback device; containers have the address itself.
        let is_to_lo = route.route.kind == RouteType::Unicast
            && prefix_length == max_length(destination)
            && route.hops.iter().all(|hop| hop.interface == LOOPBACK);
        let is_routed = prefix_length == 0 || !is_never_routed(destination);
        is_asked && is_kind && is_routed && !is_to_container && !is_to_lo
    }

    fn project(&self, route: &Route) -> HostRoute {
        let mut projected = route.route.clone();
        if is_error(projected.kind) {
            projected.source = None;
            return projected;
        }
        let is_shared = |source: &IpAddr| self.addresses.iter().any(|own| own.address == *source);
        let chosen = projected.source.filter(is_shared);
        projected.source = chosen.or_else(|| self.source(projected.destination, route.hops.first()?));
        let mtu_of = |hop: &Hop| self.mtus.get(&hop.interface).copied();
        let uplink_mtu = self.mtus.get(&self.uplink).copied().unwrap_or_default();
        let has_mtu = projected.metrics.iter().any(|metric| matches!(metric, RouteMetric::Mtu(_)));
        if let Some(mtu) = route.hops.iter().filter_map(mtu_of).min()
            && mtu < uplink_mtu
            && !has_mtu
        {
            projected.metrics.push(RouteMetric::Mtu(mtu));
            // In the kernel's order, in which the routes of a container are read.
            projected.metrics.sort_by_key(RouteMetric::kind);
        }
        projected
    }

    /// The source that the host's kernel uses for a route without a preferred one. `None`: the kernel of the
    /// container comes to the same choice.
    fn source(&self, destination: IpAddr, hop: &Hop) -> Option<IpAddr> {
        let own = |interface: u32| {
            let of_version = self.addresses.iter().filter(move |own| {
                own.interface == interface && own.address.is_ipv4() == destination.is_ipv4()
            });
            of_version.filter(|own| !own.secondary)
        };
        if destination.is_ipv6() {
            // The kernel prefers the addresses of the outgoing interface, which in containers is eth0.
            let of_hop = own(hop.interface).min_by_key(|own| own.deprecated);
            return of_hop.filter(|_| hop.interface != self.uplink).map(|own| own.address);
        }
        // As inet_select_addr(): the first primary address of the gateway's network, else the first one of the
        // interface, else of any.
        let of_gateway = hop.gateway.and_then(|gateway| {
            own(hop.interface).find(|own| contains(own.address, own.prefix_length, gateway))
        });
        let first = of_gateway.or_else(|| own(hop.interface).next());
        let any = || self.addresses.iter().find(|own| own.address.is_ipv4() && !own.secondary);
        let primary = || self.primaries.iter().copied().find(IpAddr::is_ipv4);
        // The loopback device's addresses come first among those of any interface.
        first.or_else(any).map(|own| own.address).or_else(primary)
    }
}

/// The source that a container's kernel chooses for a destination outside, as far as a route decides: the most specific
/// one, and of several the one with the lowest metric.
pub(super) fn source_of(routes: &[HostRoute], destination: IpAddr) -> Option<IpAddr> {
    let leads = |route: &&HostRoute| {
        route.tos == 0
            && route.destination.is_ipv4() == destination.is_ipv4()
            && contains(route.destination, route.prefix_length, destination)
    };
    let rank = |route: &&HostRoute| (Reverse(route.prefix_length), route.metric);
    routes.iter().filter(leads).min_by_key(rank)?.source
}

/// Whether senders to such a destination get an error, or the next table is asked.
const fn is_error(kind: RouteType) -> bool {
    matches!(kind, RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit | RouteType::Throw)
}

/// Leaves out unicast routes that decide as the next wider network does.
fn without_redundant(mut routes: Vec<HostRoute>) -> Vec<HostRoute> {
    /// What a route decides.
    type Outcome = (RouteType, Option<IpAddr>, Vec<RouteMetric>);
    let outcome = |route: &HostRoute| -> Outcome { (route.kind, route.source, route.metrics.clone()) };
    routes.sort_by_key(|route| (route.prefix_length, route.metric));
    let mut lengths = BTreeSet::new();
    let mut decided: HashMap<(u32, IpAddr, u8), Outcome> = HashMap::new();
    let mut needed = Vec::new();
    for route in routes {
        let wider = lengths
            .iter()
            .rev()
            .filter(|length| **length < route.prefix_length)
            .find_map(|length| decided.get(&(route.table, network(route.destination, *length), *length)));
        let is_redundant =
            route.kind == RouteType::Unicast && route.tos == 0 && wider == Some(&outcome(&route));
        let place = (route.table, route.destination, route.prefix_length);
        lengths.insert(route.prefix_length);
        // Of several metrics the lowest decides.
        decided.entry(place).or_insert_with(|| outcome(&route));
        if !is_redundant {
            needed.push(route);
        }
    }
    needed.sort_by_key(HostRoute::key);
    needed
}

/// The network of an address.
pub(super) fn network(address: IpAddr, prefix_length: u8) -> IpAddr {
    let length = u32::from(prefix_length);
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(length)).unwrap_or_default();
            IpAddr::V4((address.to_bits() & mask).into())
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(length)).unwrap_or_default();
            IpAddr::V6((address.to_bits() & mask).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn route(destination: Ipv4Addr, prefix_length: u8, kind: RouteType) -> HostRoute {
        HostRoute {
            destination: destination.into(),
            prefix_length,
            kind,
            table: TABLE_MAIN,
            metric: 0,
            tos: 0,
            source: None,
            metrics: Vec::new(),
            preference: None,
        }
    }

    fn needed(routes: &[HostRoute]) -> Vec<String> {
        let needed = without_redundant(routes.to_vec());
        needed.iter().map(|route| format!("{}/{}", route.destination, route.prefix_length)).collect()
    }

    #[test]
    fn routes_that_decide_as_a_wider_network_are_redundant() {
        let unicast = |third, length| route(Ipv4Addr::new(10, 1, third, 0), length, RouteType::Unicast);
        let default = route(Ipv4Addr::UNSPECIFIED, 0, RouteType::Unicast);
        let hole = route(Ipv4Addr::new(10, 1, 0, 0), 16, RouteType::BlackHole);
        // Within the black hole, a route decides differently.
        assert_eq!(
            needed(&[default.clone(), hole.clone(), unicast(7, 24), unicast(7, 25)]),
            ["0.0.0.0/0", "10.1.0.0/16", "10.1.7.0/24"]
        );
        // Without a default route, destinations elsewhere are unreachable.
        assert_eq!(needed(&[unicast(7, 24), unicast(8, 24)]), ["10.1.7.0/24", "10.1.8.0/24"]);
        let mut slow = unicast(7, 24);
        slow.metrics.push(RouteMetric::Mtu(1400));
        assert_eq!(needed(&[default, slow]), ["0.0.0.0/0", "10.1.7.0/24"]);
    }

    #[test]
    fn source_is_that_of_the_most_specific_route() {
        let by = |third, length, metric, source: [u8; 4]| HostRoute {
            metric,
            source: Some(source.into()),
            ..route(Ipv4Addr::new(10, 1, third, 0), length, RouteType::Unicast)
        };
        let routes =
            [by(0, 16, 0, [10, 0, 0, 1]), by(7, 24, 20, [10, 0, 0, 2]), by(7, 24, 10, [10, 0, 0, 3])];
        let source = |text: &str| source_of(&routes, text.parse().expect("an address"));
        assert_eq!(source("10.1.7.7"), Some([10, 0, 0, 3].into()));
        assert_eq!(source("10.1.8.7"), Some([10, 0, 0, 1].into()));
        assert_eq!((source("10.2.0.1"), source("2001:db8::1")), (None, None));
    }
}
