//! A container's view of the network: its addresses and routes, which are the host's.
//!
//! The daemon marks what it adds with a protocol number (`IFA_PROTO`, `rtm_protocol`), so it removes nothing else,
//! and knows its own after a restart, too.

use std::{collections::HashMap, net::IpAddr};

use netlink_packet_route::{AddressFamily, route::RouteType};

use crate::{
    daemon::host::HostState,
    error::Result,
    kernel::{
        address::{self, HostAddress, Listed},
        link::LOOPBACK,
        netlink::Netlink,
        routes::{self, HostRoute, Key, Route, TABLE_DEFAULT, TABLE_MAIN},
    },
    model::ContainerRecord,
};

/// The differences between a container's addresses and routes and the desired ones.
pub(super) struct Difference<'a> {
    /// Addresses that are missing, or have another lifetime.
    set: Vec<HostAddress>,
    /// Addresses that the host no longer has.
    outdated: Vec<Listed>,
    /// Missing routes.
    missing: Vec<&'a HostRoute>,
    /// Routes with other properties.
    changed: Vec<&'a HostRoute>,
    /// Routes that the host no longer has.
    obsolete: Vec<Route>,
}

impl<'a> Difference<'a> {
    /// Compares a container's namespace, which has this session, with the state of the host.
    pub(super) fn read(
        netlink: &Netlink,
        state: &'a HostState,
        record: &ContainerRecord,
        eth0: u32,
    ) -> Result<Self> {
        let wanted = addresses(state, record, eth0);
        let found = address::list(netlink)?;
        let is_there = |wanted: &HostAddress| {
            found
                .iter()
                .any(|found| is_same(&found.address, wanted) && found.address.deprecated == wanted.deprecated)
        };
        let set = wanted.iter().filter(|wanted| !is_there(wanted)).copied().collect();
        let is_outdated = |found: &&Listed| {
            is_ours(found, state, eth0) && !wanted.iter().any(|wanted| is_same(&found.address, wanted))
        };
        let outdated = found.iter().filter(is_outdated).copied().collect();
        let mut difference =
            Self { set, outdated, missing: Vec::new(), changed: Vec::new(), obsolete: Vec::new() };
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let is_v6 = family == AddressFamily::Inet6;
            if !is_v6 || record.ipv6 {
                let wanted = state.routes.iter().filter(|route| route.destination.is_ipv6() == is_v6);
                difference.compare_routes(wanted.collect(), ours(netlink, family, Some(eth0))?);
            }
        }
        Ok(difference)
    }

    fn compare_routes(&mut self, wanted: Vec<&'a HostRoute>, found: Vec<Route>) {
        let mut by_key: HashMap<Key, Route> =
            found.into_iter().map(|route| (route.route.key(), route)).collect();
        for wanted in wanted {
            match by_key.remove(&wanted.key()) {
                None => self.missing.push(wanted),
                Some(found)
                    if found.route == *wanted && found.hops.iter().all(|hop| hop.gateway.is_none()) => {}
                Some(_) => self.changed.push(wanted),
            }
        }
        // A default route by eth0 is always the daemon's: an earlier version did not mark it.
        let is_ours = |route: &Route| route.protocol == routes::PROTOCOL || route.route.is_default();
        self.obsolete.extend(by_key.into_values().filter(is_ours));
    }

    /// Whether nothing differs.
    pub(super) const fn is_none(&self) -> bool {
        self.set.is_empty()
            && self.outdated.is_empty()
            && self.missing.is_empty()
            && self.changed.is_empty()
            && self.obsolete.is_empty()
    }

    /// Removes the differences. New addresses come before routes, which have them as sources, and old ones are
    /// removed last, so that a connection whose address moves to another interface never loses it.
    pub(super) fn apply(&self, netlink: &Netlink, eth0: u32) -> Result<()> {
        let (v4, v6) = self.set.split_at(self.set.partition_point(|wanted| wanted.address.is_ipv4()));
        // The kernel lists the newest IPv6 address first, and prefers it among equals.
        for wanted in v4.iter().chain(v6.iter().rev()) {
            // An IPv6 address has one prefix length on an interface.
            let other = self.outdated.iter().map(|old| old.address).find(|old| {
                old.address.is_ipv6() && (old.address, old.interface) == (wanted.address, wanted.interface)
            });
            if let Some(other) = other {
                address::delete(netlink, other.interface, other.address, other.prefix_length)?;
            }
            address::set(netlink, wanted)?;
        }
        routes::add(netlink, eth0, &self.missing)?;
        for route in &self.changed {
            routes::replace(netlink, eth0, route)?;
        }
        routes::delete(netlink, &self.obsolete.iter().collect::<Vec<_>>())?;
        for old in &self.outdated {
            let old = old.address;
            address::delete(netlink, old.interface, old.address, old.prefix_length)?;
        }
        Ok(())
    }

    /// Names the differences.
    pub(super) fn names(&self) -> Vec<&'static str> {
        let mut names = Vec::new();
        if !self.set.is_empty() || !self.outdated.is_empty() {
            names.push("the set of addresses");
        }
        let all = || {
            let obsolete = self.obsolete.iter().map(|route| &route.route);
            self.missing.iter().chain(&self.changed).copied().chain(obsolete)
        };
        if all().any(|route| route.is_default() && route.destination.is_ipv4()) {
            names.push("the default route");
        }
        if all().any(|route| route.is_default() && route.destination.is_ipv6()) {
            names.push("the default route of IPv6");
        }
        if all().any(|route| !route.is_default()) {
            names.push("the set of routes");
        }
        names
    }
}

/// Removes the daemon's addresses and routes from a namespace that another tool has made.
pub(super) fn remove(netlink: &Netlink) -> Result<()> {
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut all = ours(netlink, family, None)?;
        all.retain(|route| route.protocol == routes::PROTOCOL);
        routes::delete(netlink, &all.iter().collect::<Vec<_>>())?;
    }
    for found in address::list(netlink)?.iter().filter(|found| found.protocol == address::PROTOCOL) {
        let found = found.address;
        address::delete(netlink, found.interface, found.address, found.prefix_length)?;
    }
    Ok(())
}

/// The desired addresses of a container. `eth0` has those of the uplink; the others are on the loopback device, where
/// the kernel accepts packets for them and does not prefer them as sources.
fn addresses(state: &HostState, record: &ContainerRecord, eth0: u32) -> Vec<HostAddress> {
    let all = state.addresses.iter().filter(|own| own.address.is_ipv4() || record.ipv6);
    let mut wanted: Vec<HostAddress> = Vec::new();
    for own in all {
        // A container cannot have temporary addresses, so the host's preference among them becomes a lifetime.
        let is_temporary = own.address.is_ipv6() && own.secondary;
        let deprecated = own.deprecated || (is_temporary && !state.prefers_temporary);
        let own = HostAddress { deprecated, ..*own };
        let own = if state.is_of_eth0(&own) {
            HostAddress { interface: eth0, ..own }
        } else {
            let prefix_length = if own.address.is_ipv4() { 32 } else { 128 };
            HostAddress { interface: LOOPBACK, prefix_length, ..own }
        };
        if !wanted.iter().any(|other| is_same(other, &own)) {
            wanted.push(own);
        }
    }
    wanted
}

fn is_same(one: &HostAddress, other: &HostAddress) -> bool {
    let key = |own: &HostAddress| (own.interface, own.address, own.prefix_length);
    key(one) == key(other)
}

/// Whether the daemon has added an address. An earlier version added the primary one without a mark.
fn is_ours(found: &Listed, state: &HostState, eth0: u32) -> bool {
    let HostAddress { address, interface, .. } = found.address;
    found.protocol == address::PROTOCOL || (interface == eth0 && is_primary(state, address))
}

fn is_primary(state: &HostState, address: IpAddr) -> bool {
    state.primaries.contains(&address)
}

/// The routes that the daemon may have added to a namespace: those by `eth0`, those that are errors, and marked ones.
fn ours(netlink: &Netlink, family: AddressFamily, eth0: Option<u32>) -> Result<Vec<Route>> {
    let mut all = routes::list(netlink, family)?;
    all.retain(|route| {
        let is_by_eth0 = || route.hops.iter().any(|hop| Some(hop.interface) == eth0);
        let is_table = matches!(route.route.table, TABLE_MAIN | TABLE_DEFAULT);
        let is_error = !matches!(
            route.route.kind,
            RouteType::Unicast
                | RouteType::Local
                | RouteType::Broadcast
                | RouteType::Anycast
                | RouteType::Multicast
        );
        is_table && (is_error || is_by_eth0() || route.protocol == routes::PROTOCOL)
    });
    Ok(all)
}
