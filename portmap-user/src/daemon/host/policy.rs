//! Routing policy: what the host's rules make of its routing tables, as one table.
//!
//! A container has one table. The rules say in which order the host's kernel asks its tables, and the first route that
//! it finds decides. So a route of a later table is left out where an earlier table has a route to the same
//! destinations.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use netlink_packet_route::{
    AddressFamily,
    route::{RouteProtocol, RouteType},
};

use super::{direct::contains, projection::network as masked};
use crate::{
    error::Result,
    kernel::{
        netlink::Netlink,
        routes::{HostRoute, Route, TABLE_LOCAL, TABLE_MAIN},
        rules::{self, Action, Rule},
    },
};

/// Returns what the rules of an IP version make of its routes, as one table; `None` if they are the kernel's own, by
/// which the tables remain what they are.
pub(super) fn tables(
    netlink: &Netlink,
    family: AddressFamily,
    routes: &[Route],
) -> Result<Option<Vec<Route>>> {
    let rules = rules::list(netlink, family)?;
    Ok(rules.map(|rules| merge(&rules, routes, family == AddressFamily::Inet6)))
}

/// Returns the routes of one IP version as one table that answers as all tables do by these rules.
fn merge(rules: &[Rule], routes: &[Route], is_v6: bool) -> Vec<Route> {
    let mut merged = Vec::new();
    let mut earlier: Vec<Level> = Vec::new();
    // Networks for which an earlier table says `throw`, so that a later one decides.
    let mut thrown: Vec<(IpAddr, u8)> = Vec::new();
    for rule in rules.iter().filter(|rule| rule.action != Action::Table(TABLE_LOCAL)) {
        let mut all = answers(rule, routes, is_v6);
        let level = Level::new(&all);
        thrown.retain(|network| match level.decides(network, &all) {
            Some(route) if route.route.kind != RouteType::Throw => {
                let mut route = route.clone();
                (route.route.destination, route.route.prefix_length) = *network;
                all.push(route);
                false
            }
            _ => true,
        });
        for route in all {
            let network = (route.route.destination, route.route.prefix_length);
            if earlier.iter().any(|level| level.has_decided(network)) {
                continue;
            }
            if route.route.kind == RouteType::Throw {
                thrown.push(network);
            } else {
                merged.push(route);
            }
        }
        earlier.push(level);
    }
    merged
}

/// The routes that a rule leads to, as routes of the table main.
fn answers(rule: &Rule, routes: &[Route], is_v6: bool) -> Vec<Route> {
    let everything: (IpAddr, u8) =
        if is_v6 { (Ipv6Addr::UNSPECIFIED.into(), 0) } else { (Ipv4Addr::UNSPECIFIED.into(), 0) };
    let to = rule.to.unwrap_or(everything);
    match rule.action {
        Action::Error(kind) => vec![error(kind, to)],
        Action::Table(table) => {
            let is_asked = |route: &&Route| {
                let is_suppressed = |length| route.route.prefix_length <= length;
                route.route.table == table && !rule.suppressed_length.is_some_and(is_suppressed)
            };
            let found = || routes.iter().filter(is_asked).filter(|route| meets(route, to));
            // Of those that lead to all of the network, the most specific ones decide.
            let of_all_packets = found().filter(|route| route.route.tos == 0);
            let longest =
                of_all_packets.map(|route| route.route.prefix_length).filter(|length| *length <= to.1).max();
            let decides = |route: &&Route| Some(route.route.prefix_length) >= longest;
            found().filter(decides).map(|route| within(route, to)).collect()
        }
    }
}

/// Whether a route leads to a part of a network, or to all of it.
fn meets(route: &Route, (network, length): (IpAddr, u8)) -> bool {
    contains(network, length.min(route.route.prefix_length), route.route.destination)
}

/// The part of a route that leads to a network, as a route of the table main.
fn within(route: &Route, (network, length): (IpAddr, u8)) -> Route {
    let mut route = route.clone();
    route.route.table = TABLE_MAIN;
    if route.route.prefix_length < length {
        (route.route.destination, route.route.prefix_length) = (network, length);
    }
    route
}

/// A route that is an error.
fn error(kind: RouteType, (destination, prefix_length): (IpAddr, u8)) -> Route {
    let route =
        HostRoute { destination, prefix_length, kind, ..HostRoute::last_resort(destination.is_ipv6()) };
    Route { route, hops: Vec::new(), object: None, protocol: RouteProtocol::Unspec, has_more: false }
}

/// Which networks one rule decides on.
struct Level {
    /// The prefix lengths that occur, in bits.
    lengths: BTreeSet<u8>,
    /// The place of the first route to a network, which decides, and whether it says `throw`.
    first: HashMap<(IpAddr, u8), (usize, bool)>,
}

impl Level {
    fn new(routes: &[Route]) -> Self {
        let mut level = Self { lengths: BTreeSet::new(), first: HashMap::new() };
        // A route for one type of service does not decide for all packets.
        for (at, Route { route, .. }) in routes.iter().enumerate().filter(|(_, route)| route.route.tos == 0) {
            level.lengths.insert(route.prefix_length);
            let place = (route.destination, route.prefix_length);
            level.first.entry(place).or_insert((at, route.kind == RouteType::Throw));
        }
        level
    }

    /// The longest prefix that contains a network.
    fn longest(&self, (network, length): (IpAddr, u8)) -> Option<(usize, bool)> {
        let mut wider = self.lengths.range(..=length).rev();
        wider.find_map(|length| self.first.get(&(masked(network, *length), *length))).copied()
    }

    /// Whether the rule decides on all of a network.
    fn has_decided(&self, network: (IpAddr, u8)) -> bool {
        self.longest(network).is_some_and(|(_, is_throw)| !is_throw)
    }

    /// The route that decides on a network.
    fn decides<'a>(&self, network: &(IpAddr, u8), routes: &'a [Route]) -> Option<&'a Route> {
        self.longest(*network).and_then(|(at, _)| routes.get(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::routes::Hop;

    const WAN: u32 = 2;
    const VPN: u32 = 9;
    const VPN_TABLE: u32 = 51820;

    fn net(text: &str) -> (IpAddr, u8) {
        let (address, length) = text.split_once('/').expect("a prefix");
        (address.parse().expect(text), length.parse().expect(text))
    }

    fn route(to: &str, table: u32, interface: u32) -> Route {
        let mut route = error(RouteType::Unicast, net(to));
        route.route.table = table;
        route.hops = vec![Hop { interface, gateway: None }];
        route
    }

    fn throw(to: &str, table: u32) -> Route {
        let mut route = error(RouteType::Throw, net(to));
        route.route.table = table;
        route
    }

    fn rule(action: Action) -> Rule {
        Rule { action, to: None, suppressed_length: None }
    }

    /// Merges, and returns the networks with their interfaces, or their kinds.
    fn merged(rules: &[Rule], routes: &[Route]) -> Vec<String> {
        let described = |route: &Route| {
            let HostRoute { destination, prefix_length, kind, table, .. } = &route.route;
            assert_eq!(*table, TABLE_MAIN);
            let by = route.hops.first().map_or_else(|| format!("{kind:?}"), |hop| hop.interface.to_string());
            format!("{destination}/{prefix_length} {by}")
        };
        let mut all: Vec<String> = merge(rules, routes, false).iter().map(described).collect();
        all.sort();
        all
    }

    /// The routes of a host in 10.0.0.0/24, with a VPN in a table of its own.
    fn host() -> Vec<Route> {
        vec![
            route("0.0.0.0/0", TABLE_MAIN, WAN),
            route("10.0.0.0/24", TABLE_MAIN, WAN),
            route("10.9.0.0/24", TABLE_MAIN, VPN),
            route("0.0.0.0/0", VPN_TABLE, VPN),
        ]
    }

    #[test]
    fn policy_of_a_vpn_hides_the_default_route_of_main() {
        // As wg-quick adds them.
        let specific = Rule { suppressed_length: Some(0), ..rule(Action::Table(TABLE_MAIN)) };
        let [vpn, main] = [VPN_TABLE, TABLE_MAIN].map(|table| rule(Action::Table(table)));
        let expected = ["0.0.0.0/0 9", "10.0.0.0/24 2", "10.9.0.0/24 9"];
        assert_eq!(merged(&[specific, vpn.clone(), main.clone()], &host()), expected);
        // Without the first rule, the networks of main are reached by the VPN, too.
        assert_eq!(merged(&[vpn, main.clone()], &host()), ["0.0.0.0/0 9"]);
        assert_eq!(merged(&[main], &host()), ["0.0.0.0/0 2", "10.0.0.0/24 2", "10.9.0.0/24 9"]);
    }

    #[test]
    fn policy_for_a_destination_is_limited_to_it() {
        let main = rule(Action::Table(TABLE_MAIN));
        let to = |to, action| Rule { to: Some(net(to)), ..rule(action) };
        let mut routes = host();
        routes.push(route("192.0.2.128/25", VPN_TABLE, 10));
        routes.push(route("198.51.100.0/24", TABLE_MAIN, WAN));
        let with = |first: Rule| merged(&[first, main.clone()], &routes);
        let of_main = ["0.0.0.0/0 2", "10.0.0.0/24 2", "10.9.0.0/24 9"];
        let also = |more: &[&str]| {
            let mut all: Vec<String> = of_main.iter().chain(more).map(|text| (*text).to_owned()).collect();
            all.sort();
            all
        };
        assert_eq!(
            with(to("192.0.2.0/24", Action::Table(VPN_TABLE))),
            also(&["192.0.2.0/24 9", "192.0.2.128/25 10", "198.51.100.0/24 2"])
        );
        // Of two routes of the table to all of the network, the more specific one decides.
        let mut nested = routes.clone();
        nested.push(route("192.0.0.0/8", VPN_TABLE, 11));
        assert_eq!(
            merged(&[to("192.0.2.0/24", Action::Table(VPN_TABLE)), main.clone()], &nested),
            also(&["192.0.2.0/24 11", "192.0.2.128/25 10", "198.51.100.0/24 2"])
        );
        // A more specific route of main is asked for no longer.
        assert_eq!(with(to("198.51.0.0/16", Action::Table(VPN_TABLE))), also(&["198.51.0.0/16 9"]));
        assert_eq!(
            with(to("192.0.2.0/24", Action::Error(RouteType::Prohibit))),
            also(&["192.0.2.0/24 Prohibit", "198.51.100.0/24 2"])
        );
    }

    #[test]
    fn policy_asks_the_next_table_for_what_one_throws() {
        let [vpn, main] = [VPN_TABLE, TABLE_MAIN].map(|table| rule(Action::Table(table)));
        let mut routes = host();
        // The network 10.0.0.0/8 is not for the VPN, of which main has routes to two parts and the default route.
        routes.push(throw("10.0.0.0/8", VPN_TABLE));
        let expected = ["0.0.0.0/0 9", "10.0.0.0/24 2", "10.0.0.0/8 2", "10.9.0.0/24 9"];
        assert_eq!(merged(&[vpn.clone(), main.clone()], &routes), expected);
        // An empty table decides nothing.
        assert_eq!(merged(&[rule(Action::Table(7)), vpn, main], &routes), expected);
    }
}
