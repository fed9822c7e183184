//! Whether the host's routing is so simple that a program can decide without asking the kernel's FIB: a destination
//! in the network of the primary address is on the link of the uplink, and the gateway is the next hop to all others.

use std::net::IpAddr;

use netlink_packet_route::route::RouteType;

use crate::kernel::{
    address::HostAddress,
    link::LOOPBACK,
    routes::{Hop, Route, TABLE_DEFAULT, TABLE_LOCAL, TABLE_MAIN},
};

/// What the decision depends on, of one IP version.
pub(super) struct Routing<'a> {
    /// All routes.
    pub(super) routes: &'a [Route],
    /// The shared addresses.
    pub(super) addresses: &'a [HostAddress],
    /// Index of the uplink.
    pub(super) uplink: u32,
    /// The primary address.
    pub(super) primary: IpAddr,
    /// Length of its prefix in bits.
    pub(super) prefix_length: u8,
    /// The gateway of the default route by the uplink.
    pub(super) gateway: Option<IpAddr>,
}

impl Routing<'_> {
    /// Whether the routes decide as described above. Any route of which that is not certain makes it false.
    pub(super) fn is_direct(&self) -> bool {
        let asked = |route: &&Route| {
            let table = route.route.table;
            // The rules of IPv6 do not contain the table default.
            table == TABLE_MAIN || (table == TABLE_DEFAULT && self.primary.is_ipv4())
        };
        let has_network = self.prefix_length == max_length(self.primary)
            || self.routes.iter().filter(asked).any(|route| self.is_connected(route));
        let local = self.routes.iter().filter(|route| route.route.table == TABLE_LOCAL);
        let defaults = self.routes.iter().filter(asked).filter(|route| self.is_default(route));
        has_network
            && local.clone().all(|route| self.is_known_local(route))
            && self.routes.iter().filter(asked).all(|route| self.is_simple(route))
            && defaults.count() <= 1
    }

    /// Whether an entry of the table local is of an address that the programs know.
    fn is_known_local(&self, route: &Route) -> bool {
        let destination = route.route.destination;
        match route.route.kind {
            RouteType::Local => {
                is_never_routed(destination) || self.has(destination, route.route.prefix_length)
            }
            RouteType::Broadcast | RouteType::Multicast | RouteType::Anycast => true,
            _ => false,
        }
    }

    fn is_simple(&self, route: &Route) -> bool {
        let destination = route.route.destination;
        let is_own = || self.has(destination, route.route.prefix_length);
        let is_by_lo = || route.hops.iter().all(|hop| hop.interface == LOOPBACK);
        is_never_routed(destination) && !route.route.is_default()
            // The kernel's route to an IPv6 address of the loopback device; the table local is asked first.
            || (route.route.kind == RouteType::Unicast && is_own() && is_by_lo())
            || self.is_connected(route)
            || self.is_default(route)
            || self.is_to_gateway(route)
    }

    /// Whether this is the network of the primary address on the uplink's link.
    fn is_connected(&self, route: &Route) -> bool {
        let is_network = route.route.prefix_length == self.prefix_length
            && contains(route.route.destination, self.prefix_length, self.primary);
        is_network && self.hop(route).is_some_and(|hop| hop.gateway.is_none())
    }

    fn is_default(&self, route: &Route) -> bool {
        route.route.is_default()
            && self.hop(route).is_some_and(|hop| hop.gateway.is_some() && hop.gateway == self.gateway)
    }

    fn is_to_gateway(&self, route: &Route) -> bool {
        let destination = route.route.destination;
        Some(destination) == self.gateway
            && route.route.prefix_length == max_length(destination)
            && self.hop(route).is_some_and(|hop| hop.gateway.is_none_or(|gateway| gateway == destination))
    }

    /// The next hop of a route that has no other properties, if that is by the uplink.
    fn hop(&self, route: &Route) -> Option<Hop> {
        let [hop] = route.hops[..] else { return None };
        let is_bare = route.route.kind == RouteType::Unicast
            && route.route.tos == 0
            && route.route.metrics.is_empty()
            && route.object.is_none()
            && !route.has_more;
        (is_bare && hop.interface == self.uplink).then_some(hop)
    }

    fn has(&self, address: IpAddr, prefix_length: u8) -> bool {
        prefix_length == max_length(address) && self.addresses.iter().any(|own| own.address == address)
    }
}

/// Whether containers cannot address a destination outside, or the programs decide without a route: loopback,
/// link-local addresses of IPv6, and multicast.
pub(super) const fn is_never_routed(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_loopback() || address.is_multicast() || address.is_broadcast(),
        IpAddr::V6(address) => {
            address.is_loopback() || address.is_multicast() || address.is_unicast_link_local()
        }
    }
}

/// The number of bits of an address.
pub(super) const fn max_length(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// Whether a network contains an address.
pub(super) fn contains(network: IpAddr, prefix_length: u8, address: IpAddr) -> bool {
    let shift = u32::from(max_length(network).saturating_sub(prefix_length));
    match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            (network.to_bits() ^ address.to_bits()).checked_shr(shift).unwrap_or_default() == 0
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            (network.to_bits() ^ address.to_bits()).checked_shr(shift).unwrap_or_default() == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::route::{RouteMetric, RouteProtocol};

    use super::*;
    use crate::kernel::routes::HostRoute;

    const UPLINK: u32 = 2;
    const OTHER: u32 = 3;
    const GATEWAY: &str = "10.0.0.254";

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    /// A route by an interface, with or without a gateway.
    fn route(destination: &str, prefix_length: u8, interface: u32, gateway: Option<&str>) -> Route {
        let route = HostRoute {
            destination: ip(destination),
            prefix_length,
            metric: 0,
            ..HostRoute::last_resort(false)
        };
        let hops = vec![Hop { interface, gateway: gateway.map(ip) }];
        Route { route, hops, object: None, protocol: RouteProtocol::Kernel, has_more: false }
    }

    fn network() -> Route {
        route("10.0.0.0", 24, UPLINK, None)
    }

    fn default() -> Route {
        route("0.0.0.0", 0, UPLINK, Some(GATEWAY))
    }

    fn is_direct(routes: &[Route]) -> bool {
        let primary = ip("10.0.0.1");
        let own = HostAddress {
            address: primary,
            prefix_length: 24,
            interface: UPLINK,
            deprecated: false,
            secondary: false,
            no_prefix_route: false,
            route_metric: None,
        };
        let (addresses, gateway) = (&[own][..], Some(ip(GATEWAY)));
        Routing { routes, addresses, uplink: UPLINK, primary, prefix_length: 24, gateway }.is_direct()
    }

    #[test]
    fn direct_is_a_network_and_one_gateway() {
        assert!(is_direct(&[network(), default()]));
        assert!(is_direct(&[network()]), "without a default route");
        assert!(is_direct(&[network(), default(), route(GATEWAY, 32, UPLINK, None)]));
        assert!(
            is_direct(&[network(), default(), route("224.0.0.0", 4, OTHER, None)]),
            "multicast is dropped"
        );
    }

    /// Each of these decides about some destination in another way.
    #[test]
    fn direct_is_nothing_else() {
        let changed = |mut route: Route, change: fn(&mut Route)| {
            change(&mut route);
            route
        };
        for (what, routes) in [
            ("no network", vec![default()]),
            ("another card's network", vec![network(), default(), route("10.9.0.0", 16, OTHER, None)]),
            (
                "a network by another gateway",
                vec![network(), default(), route("10.9.0.0", 16, UPLINK, Some("10.0.0.3"))],
            ),
            (
                "a host by another gateway",
                vec![network(), default(), route("10.0.0.9", 32, UPLINK, Some("10.0.0.3"))],
            ),
            ("the network by the gateway", vec![route("10.0.0.0", 24, UPLINK, Some(GATEWAY)), default()]),
            ("a default route by another card", vec![network(), route("0.0.0.0", 0, OTHER, Some(GATEWAY))]),
            ("a default route without gateway", vec![network(), route("0.0.0.0", 0, UPLINK, None)]),
            ("half of all by a VPN", vec![network(), default(), route("128.0.0.0", 1, OTHER, None)]),
            (
                "two default routes",
                vec![network(), default(), changed(default(), |route| route.route.metric = 9)],
            ),
            ("two next hops", vec![network(), changed(default(), |route| route.hops.push(route.hops[0]))]),
            ("a hidden next-hop object", vec![network(), changed(default(), |route| route.object = Some(7))]),
            (
                "an MTU",
                vec![network(), changed(default(), |route| route.route.metrics.push(RouteMetric::Mtu(1400)))],
            ),
            ("an encapsulation", vec![network(), changed(default(), |route| route.has_more = true)]),
            (
                "a type of service",
                vec![network(), default(), changed(default(), |route| route.route.tos = 8)],
            ),
            (
                "a black hole",
                vec![
                    network(),
                    default(),
                    changed(route("10.9.0.0", 16, UPLINK, None), |route| {
                        route.route.kind = RouteType::BlackHole;
                        route.hops.clear();
                    }),
                ],
            ),
            (
                "a local address that is not shared",
                vec![
                    network(),
                    default(),
                    changed(route("10.0.0.50", 32, UPLINK, None), |route| {
                        route.route.kind = RouteType::Local;
                        route.route.table = TABLE_LOCAL;
                    }),
                ],
            ),
        ] {
            assert!(!is_direct(&routes), "{what}");
        }
    }
}
