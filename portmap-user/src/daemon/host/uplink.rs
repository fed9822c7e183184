//! The uplink: the interface of the preferred default route.

use std::net::IpAddr;

use netlink_packet_route::route::RouteType;

use crate::{
    error::{Error, Result},
    kernel::{
        link::{self, Interface},
        netlink::Netlink,
        routes::{Route, TABLE_MAIN},
    },
};

/// Finds the interface with this name, or else that of the preferred default route. The interface in use is
/// kept if it has been renamed, or if another default route is preferred now.
pub(super) fn find(
    netlink: &Netlink,
    wanted: Option<&str>,
    routes: [&[Route]; 2],
    in_use: Option<u32>,
) -> Result<Interface> {
    if let Some(name) = wanted {
        let renamed = || in_use.map_or(Ok(None), |index| link::find_by_index(netlink, index));
        let found = link::find(netlink, name)?.map_or_else(renamed, |found| Ok(Some(found)))?;
        return found.ok_or_else(|| {
            Error::usage(format!("no such interface: {name:?}; `ip link` lists the existing ones"))
        });
    }
    // A default route of IPv6 counts only on a host without one of IPv4.
    let interfaces = routes.map(|routes| -> Vec<u32> {
        default_routes(routes).into_iter().flat_map(|route| &route.hops).map(|hop| hop.interface).collect()
    });
    let [v4, v6] = &interfaces;
    let interfaces = if v4.is_empty() { v6 } else { v4 };
    let index = in_use.filter(|index| interfaces.contains(index)).or(interfaces.first().copied());
    let index = index.ok_or_else(|| {
        Error::usage("no uplink: the host has no default route; name the uplink with --uplink")
    })?;
    link::find_by_index(netlink, index)?.ok_or_else(|| {
        Error::failure(format!("the default route's interface {index} does not exist any more"))
    })
}

/// The default routes, by metric.
fn default_routes(routes: &[Route]) -> Vec<&Route> {
    let mut found: Vec<&Route> = routes
        .iter()
        .filter(|route| {
            let found = &route.route;
            found.is_default() && found.table == TABLE_MAIN && found.kind == RouteType::Unicast
        })
        .collect();
    found.sort_by_key(|route| route.route.metric);
    found
}

/// The gateway of an interface's preferred default route.
pub(super) fn gateway<A>(
    routes: &[Route],
    interface: &Interface,
    right_version: impl Fn(IpAddr) -> Option<A>,
) -> Option<A> {
    let hops = default_routes(routes).into_iter().flat_map(|route| &route.hops);
    hops.filter(|hop| hop.interface == interface.index).filter_map(|hop| hop.gateway).find_map(right_version)
}
