//! Routes: those of the host, and those of a container, which all leave by one interface without a gateway.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{
        RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteNextHop, RoutePreference,
        RouteProtocol, RouteScope, RouteType, RouteVia,
    },
};
use nix::libc::{EEXIST, ENOENT, ESRCH};

use super::{
    link,
    netlink::{Netlink, Request},
};
use crate::kernel::error::{Context as _, Error, Failure, Result};

/// The routing tables that every lookup asks in the end (`linux/rtnetlink.h`).
pub const TABLE_DEFAULT: u32 = 253;
/// The table of ordinary routes.
pub const TABLE_MAIN: u32 = RouteHeader::RT_TABLE_MAIN as u32;
/// The table of local and broadcast addresses.
pub const TABLE_LOCAL: u32 = 255;

/// Who added a route (`rtm_protocol`), for those that portmap gives to containers. iproute2 and the kernel do not
/// use this number.
pub const PROTOCOL: RouteProtocol = RouteProtocol::Other(0x70);

/// A destination in the global Internet, by which the kernel is asked what it does with one. Nothing is sent there.
const SOMEWHERE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(1, 0, 0, 1)), IpAddr::V6(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 1))];

/// A way to a next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Index of the interface.
    pub interface: u32,
    /// The gateway; `None`: the destination is on the link.
    pub gateway: Option<IpAddr>,
}

/// What a routing table says about a destination, apart from next hops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRoute {
    /// The destination's network.
    pub destination: IpAddr,
    /// Length of its prefix in bits.
    pub prefix_length: u8,
    /// Unicast, or which error senders get.
    pub kind: RouteType,
    /// The routing table.
    pub table: u32,
    /// The metric, which is also called priority; the lowest wins.
    pub metric: u32,
    /// Type of service (IPv4).
    pub tos: u8,
    /// The preferred source (`RTA_PREFSRC`).
    pub source: Option<IpAddr>,
    /// MTU, `advmss` and the other `RTAX` metrics.
    pub metrics: Vec<RouteMetric>,
    /// Preference of the router (IPv6).
    pub preference: Option<RoutePreference>,
}

/// What identifies a route: two with the same key exclude each other.
pub type Key = (u32, IpAddr, u8, u8, u32);

impl HostRoute {
    /// A default route that every other one precedes, without properties of its own.
    pub fn last_resort(is_v6: bool) -> Self {
        let destination = if is_v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        Self {
            destination,
            prefix_length: 0,
            kind: RouteType::Unicast,
            table: TABLE_MAIN,
            metric: u32::MAX - 1,
            tos: 0,
            source: None,
            metrics: Vec::new(),
            preference: None,
        }
    }

    /// The route's identity.
    pub const fn key(&self) -> Key {
        (self.table, self.destination, self.prefix_length, self.tos, self.metric)
    }

    /// Whether it is a default route.
    pub const fn is_default(&self) -> bool {
        self.prefix_length == 0
    }
}

/// A route as the kernel lists it.
#[derive(Clone, Debug)]
pub struct Route {
    /// The destination, and the route's properties apart from next hops.
    pub route: HostRoute,
    /// The next hops; several with multipath. Empty for errors, and for next-hop objects if the kernel hides their
    /// contents (`nexthop_compat_mode` 0).
    pub hops: Vec<Hop>,
    /// Id of the next-hop object, if it uses one.
    pub object: Option<u32>,
    /// Who added it.
    pub protocol: RouteProtocol,
    /// Whether it has properties besides these, such as an encapsulation.
    pub has_more: bool,
}

impl Route {
    /// Whether it is a way to other machines: a unicast route that is neither link-local nor multicast.
    pub fn leads_outside(&self) -> bool {
        let is_link_local = match self.route.destination {
            IpAddr::V4(v4) => v4.is_link_local() || v4.is_multicast(),
            IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.is_multicast(),
        };
        self.route.kind == RouteType::Unicast && self.route.table != TABLE_LOCAL && !is_link_local
    }
}

/// Lists all routes of an IP version, in all tables, in the kernel's order.
pub fn list(netlink: &Netlink, family: AddressFamily) -> Result<Vec<Route>> {
    let mut question = RouteMessage::default();
    question.header.address_family = family;
    netlink
        .list(&RouteNetlinkMessage::GetRoute(question), |answer| match answer {
            RouteNetlinkMessage::NewRoute(message) if message.header.address_family == family => {
                Some(message.into())
            }
            _ => None,
        })
        .context(|| "cannot list the routes")
}

impl From<RouteMessage> for Route {
    fn from(message: RouteMessage) -> Self {
        let header = message.header;
        let unspecified: IpAddr = match header.address_family {
            AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
            _ => Ipv4Addr::UNSPECIFIED.into(),
        };
        let mut found = Self {
            route: HostRoute {
                destination: unspecified,
                prefix_length: header.destination_prefix_length,
                kind: header.kind,
                table: header.table.into(),
                metric: 0,
                tos: header.tos,
                source: None,
                metrics: Vec::new(),
                preference: None,
            },
            hops: Vec::new(),
            object: None,
            protocol: header.protocol,
            has_more: header.source_prefix_length != 0,
        };
        let (mut interface, mut gateway) = (None, None);
        for attribute in message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => {
                    found.route.destination = ip(&address).unwrap_or(unspecified);
                }
                RouteAttribute::Table(table) => found.route.table = table,
                RouteAttribute::Priority(metric) => found.route.metric = metric,
                RouteAttribute::PrefSource(address) => found.route.source = ip(&address),
                RouteAttribute::Metrics(metrics) => found.route.metrics = metrics,
                RouteAttribute::Preference(preference) => found.route.preference = Some(preference),
                RouteAttribute::Oif(index) => interface = Some(index),
                RouteAttribute::Gateway(address) => gateway = ip(&address),
                RouteAttribute::Via(via) => gateway = ip_of_via(&via),
                RouteAttribute::MultiPath(hops) => found.hops = hops.iter().map(hop).collect(),
                RouteAttribute::NhId(id) => found.object = Some(id),
                RouteAttribute::CacheInfo(_) | RouteAttribute::Expires(_) => {}
                _ => found.has_more = true,
            }
        }
        if let Some(interface) = interface {
            found.hops.insert(0, Hop { interface, gateway });
        }
        found
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

fn ip_of_via(via: &RouteVia) -> Option<IpAddr> {
    match via {
        RouteVia::Inet(address) => Some((*address).into()),
        RouteVia::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

fn hop(hop: &RouteNextHop) -> Hop {
    let gateway = hop.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        RouteAttribute::Via(via) => ip_of_via(via),
        _ => None,
    });
    Hop { interface: hop.interface_index, gateway }
}

/// Completes routes whose next-hop objects the kernel has not listed, by one question for each object: by which
/// next hop the kernel sends to the route's destination.
pub fn resolve_objects(netlink: &Netlink, routes: &mut [Route]) {
    let mut known: HashMap<u32, Option<Hop>> = HashMap::new();
    for route in routes.iter_mut().filter(|route| route.hops.is_empty()) {
        let Some(object) = route.object else { continue };
        let destination = route.route.destination;
        let asked = if destination.is_unspecified() {
            SOMEWHERE[usize::from(destination.is_ipv6())]
        } else {
            destination
        };
        let hop = known.entry(object).or_insert_with(|| look_up(netlink, asked, None).map(|(hop, _)| hop));
        route.hops.extend(*hop);
    }
}

/// The source address that the kernel selects for a destination in the Internet by an interface.
pub fn source_by(netlink: &Netlink, interface: u32, is_v6: bool) -> Option<IpAddr> {
    look_up(netlink, SOMEWHERE[usize::from(is_v6)], Some(interface)).and_then(|(_, source)| source)
}

/// The next hop and the source that the kernel uses for a destination; `None` if it sends nothing there.
fn look_up(netlink: &Netlink, destination: IpAddr, interface: Option<u32>) -> Option<(Hop, Option<IpAddr>)> {
    let mut question = RouteMessage::default();
    let is_v4 = destination.is_ipv4();
    question.header.address_family = if is_v4 { AddressFamily::Inet } else { AddressFamily::Inet6 };
    question.header.destination_prefix_length = if is_v4 { 32 } else { 128 };
    question.attributes.push(RouteAttribute::Destination(destination.into()));
    question.attributes.extend(interface.map(RouteAttribute::Oif));
    let RouteNetlinkMessage::NewRoute(answer) = netlink.get(RouteNetlinkMessage::GetRoute(question)).ok()?
    else {
        return None;
    };
    let found = Route::from(answer);
    let is_unicast = found.route.kind == RouteType::Unicast;
    found.hops.first().filter(|_| is_unicast).map(|hop| (*hop, found.route.source))
}

/// Request to add a route by an interface.
fn request(route: &HostRoute, interface: u32, flags: u16) -> Request {
    (RouteNetlinkMessage::NewRoute(message(route, interface)), NLM_F_CREATE | flags)
}

fn message(route: &HostRoute, interface: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    let (is_v4, is_unicast) = (route.destination.is_ipv4(), route.kind == RouteType::Unicast);
    message.header = RouteHeader {
        address_family: if is_v4 { AddressFamily::Inet } else { AddressFamily::Inet6 },
        destination_prefix_length: route.prefix_length,
        tos: route.tos,
        protocol: PROTOCOL,
        // Without a gateway, the destination is on the link.
        scope: if is_v4 && is_unicast { RouteScope::Link } else { RouteScope::Universe },
        kind: route.kind,
        ..RouteHeader::default()
    };
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Table(route.table));
    if !route.is_default() {
        attributes.push(RouteAttribute::Destination(route.destination.into()));
    }
    if route.metric != 0 {
        attributes.push(RouteAttribute::Priority(route.metric));
    }
    if is_unicast {
        attributes.push(RouteAttribute::Oif(interface));
    }
    attributes.extend(route.source.map(|source| RouteAttribute::PrefSource(source.into())));
    if !route.metrics.is_empty() {
        attributes.push(RouteAttribute::Metrics(route.metrics.clone()));
    }
    attributes.extend(route.preference.map(RouteAttribute::Preference));
    message
}

/// Number of requests per batch, so that all acknowledgements fit into the socket's receive buffer.
const BATCH: usize = 64;

/// Adds routes by an interface. One with the same key is replaced, unless it is a default route.
///
/// # Errors
///
/// [`Error::DefaultRouteExists`] if there is another default route.
pub fn add(netlink: &Netlink, interface: u32, routes: &[&HostRoute]) -> Result<()> {
    for batch in routes.chunks(BATCH) {
        let requests = batch.iter().map(|route| request(route, interface, NLM_F_EXCL)).collect();
        if netlink.request_at_once(requests).is_ok() {
            continue;
        }
        // One by one for those that exist: also the ones that the batch has added.
        for route in batch {
            add_one(netlink, interface, route)?;
        }
    }
    Ok(())
}

fn add_one(netlink: &Netlink, interface: u32, route: &HostRoute) -> Result<()> {
    let (message, flags) = request(route, interface, NLM_F_EXCL);
    match netlink.request(message, flags) {
        Err(error) if error.raw_os_error() == Some(EEXIST) => {
            if route.is_default()
                && let Some(other) = other_default(netlink, interface, route)?
            {
                return Err(other);
            }
            replace(netlink, interface, route)
        }
        other => other.map_err(|error| failed(route, error)),
    }
}

/// Replaces a route by an interface that has the same key.
pub fn replace(netlink: &Netlink, interface: u32, route: &HostRoute) -> Result<()> {
    let (message, flags) = request(route, interface, NLM_F_REPLACE);
    netlink.request(message, flags).map_err(|error| failed(route, error))
}

fn failed(route: &HostRoute, error: io::Error) -> Error {
    let HostRoute { destination, prefix_length, .. } = route;
    Failure::caused_by(format!("cannot set the route to {destination}/{prefix_length}"), error).into()
}

/// The error that a default route by another interface has the key of one by this interface.
fn other_default(netlink: &Netlink, interface: u32, wanted: &HostRoute) -> Result<Option<Error>> {
    let is_v6 = wanted.destination.is_ipv6();
    let all = list(netlink, if is_v6 { AddressFamily::Inet6 } else { AddressFamily::Inet })?;
    let other = all
        .iter()
        .filter(|route| route.route.key() == wanted.key())
        .find_map(|route| route.hops.first().filter(|hop| hop.interface != interface));
    Ok(other.map(|hop| {
        let name = link::find_by_index(netlink, hop.interface).ok().flatten().map(|found| found.name);
        let by = format!(" by {}", name.unwrap_or_else(|| format!("interface {}", hop.interface)));
        let existing = hop.gateway.map_or_else(|| by.clone(), |gateway| format!("{by} (gateway {gateway})"));
        Error::DefaultRouteExists { is_v6, existing }
    }))
}

/// Removes routes. Idempotent.
pub fn delete(netlink: &Netlink, routes: &[&Route]) -> Result<()> {
    for route in routes {
        let interface = route.hops.first().map_or(0, |hop| hop.interface);
        let mut message = message(&route.route, interface);
        message.header.protocol = route.protocol;
        message.header.scope = RouteScope::NoWhere;
        match netlink.request(RouteNetlinkMessage::DelRoute(message), 0) {
            Err(error) if matches!(error.raw_os_error(), Some(ESRCH | ENOENT)) => {}
            other => other.map_err(|error| {
                let HostRoute { destination, prefix_length, .. } = route.route;
                Failure::caused_by(format!("cannot remove the route to {destination}/{prefix_length}"), error)
            })?,
        }
    }
    Ok(())
}
