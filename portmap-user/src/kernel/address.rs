//! IPv4 and IPv6 addresses and routes.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteScope, RouteType},
};
use nix::libc::{EADDRNOTAVAIL, EEXIST};
use rtnetlink::{AddressMessageBuilder, RouteMessageBuilder};

use super::{
    link::{self, Interface},
    netlink::Netlink,
};
use crate::kernel::error::{Context as _, Error, Failure, Result};

/// An address and its prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address<A> {
    /// The address.
    pub address: A,
    /// Length of the prefix in bits.
    pub prefix_length: u8,
}

/// The addresses of an interface that containers can share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// The first primary IPv4 address with global scope.
    pub v4: Option<Address<Ipv4Addr>>,
    /// The first global IPv6 address that is permanent and usable.
    pub v6: Option<Address<Ipv6Addr>>,
}

/// Returns the shareable addresses of an interface.
pub fn of_interface(netlink: &Netlink, interface: &Interface) -> Result<Addresses> {
    // The kernel dumps the addresses of all interfaces.
    let messages = netlink
        .list(&RouteNetlinkMessage::GetAddress(AddressMessage::default()), |answer| match answer {
            RouteNetlinkMessage::NewAddress(message) if message.header.index == interface.index => {
                Some(message)
            }
            _ => None,
        })
        .context(|| format!("cannot list the addresses of {}", interface.name))?;
    let mut found = Addresses::default();
    for message in messages.iter().filter(|message| message.header.scope == AddressScope::Universe) {
        let flags = flags(message);
        let prefix_length = message.header.prefix_len;
        match local(message) {
            Some(IpAddr::V4(address)) if !flags.contains(AddressFlags::Secondary) => {
                found.v4.get_or_insert(Address { address, prefix_length });
            }
            Some(IpAddr::V6(address)) if !flags.intersects(NOT_SHARED) => {
                found.v6.get_or_insert(Address { address, prefix_length });
            }
            _ => {}
        }
    }
    Ok(found)
}

/// Whether an interface has any IPv4 address.
pub fn has_v4(netlink: &Netlink, index: u32) -> Result<bool> {
    let mut question = AddressMessage::default();
    question.header.family = AddressFamily::Inet;
    let found = netlink
        .list(&RouteNetlinkMessage::GetAddress(question), |answer| match answer {
            RouteNetlinkMessage::NewAddress(message) => (message.header.index == index).then_some(()),
            _ => None,
        })
        .context(|| format!("cannot list the addresses of interface {index}"))?;
    Ok(!found.is_empty())
}

/// Returns the broadcast addresses of all IPv4 networks of the host except loopback: the lowest and the
/// highest address of each, and explicitly configured ones.
pub fn broadcasts(netlink: &Netlink) -> Result<BTreeSet<Ipv4Addr>> {
    let mut question = AddressMessage::default();
    question.header.family = AddressFamily::Inet;
    let found = netlink
        .list(&RouteNetlinkMessage::GetAddress(question), |answer| match answer {
            RouteNetlinkMessage::NewAddress(message) => Some(broadcasts_of(&message)),
            _ => None,
        })
        .context(|| "cannot list the host's addresses")?;
    Ok(found.into_iter().flatten().filter(|address| !address.is_loopback()).collect())
}

/// The broadcast addresses of one address's network.
fn broadcasts_of(message: &AddressMessage) -> Vec<Ipv4Addr> {
    let mut found = Vec::new();
    let (mut own, mut network) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(IpAddr::V4(address)) => own = Some(*address),
            // The peer's address on a point-to-point link.
            AddressAttribute::Address(IpAddr::V4(address)) => network = Some(*address),
            AddressAttribute::Broadcast(address) if !address.is_broadcast() => found.push(*address),
            _ => {}
        }
    }
    found.extend(network.or(own).into_iter().flat_map(|address| ends(address, message.header.prefix_len)));
    found
}

/// The lowest and the highest address of a network; none for /31 and /32, where they are no broadcasts.
pub fn ends(address: Ipv4Addr, prefix_length: u8) -> Vec<Ipv4Addr> {
    let hosts = u32::MAX.checked_shr(prefix_length.into()).unwrap_or_default();
    if hosts <= 1 {
        return Vec::new();
    }
    vec![(address.to_bits() & !hosts).into(), (address.to_bits() | hosts).into()]
}

/// Flags of IPv6 addresses that are not shared: temporary addresses (which have the flag of secondary ones),
/// deprecated ones, and those whose duplicate detection has not succeeded.
const NOT_SHARED: AddressFlags = AddressFlags::Secondary
    .union(AddressFlags::Deprecated)
    .union(AddressFlags::Tentative)
    .union(AddressFlags::Dadfailed);

fn flags(message: &AddressMessage) -> AddressFlags {
    let flags = message.attributes.iter().find_map(|attribute| {
        if let AddressAttribute::Flags(flags) = attribute { Some(*flags) } else { None }
    });
    flags.unwrap_or(AddressFlags::empty())
}

/// The interface's own address: `IFA_LOCAL`, or `IFA_ADDRESS`, which IPv6 uses unless the link is
/// point-to-point.
fn local(message: &AddressMessage) -> Option<IpAddr> {
    let (mut local, mut address) = (None, None);
    for attribute in &message.attributes {
        if let AddressAttribute::Local(found) = attribute {
            local = Some(*found);
        } else if let AddressAttribute::Address(found) = attribute {
            address = Some(*found);
        }
    }
    local.or(address)
}

/// A default route.
#[derive(Clone, Copy, Debug)]
pub struct DefaultRoute {
    /// Index of its interface.
    pub interface: u32,
    /// Its gateway, if it has one.
    pub gateway: Option<IpAddr>,
}

/// Returns the default routes of the main table for one IP version, by metric.
pub fn default_routes(netlink: &Netlink, family: AddressFamily) -> Result<Vec<DefaultRoute>> {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    let messages = netlink
        .list(&RouteNetlinkMessage::GetRoute(message), |answer| match answer {
            RouteNetlinkMessage::NewRoute(message) if is_default(&message, family) => Some(message),
            _ => None,
        })
        .context(|| "cannot list the routes")?;
    let mut routes: Vec<(u32, DefaultRoute)> = messages
        .into_iter()
        .filter_map(|message| {
            let (mut interface, mut gateway, mut metric) = (None, None, 0);
            for attribute in message.attributes {
                if let RouteAttribute::Oif(index) = attribute {
                    interface = Some(index);
                } else if let RouteAttribute::Gateway(RouteAddress::Inet(address)) = attribute {
                    gateway = Some(address.into());
                } else if let RouteAttribute::Gateway(RouteAddress::Inet6(address)) = attribute {
                    gateway = Some(address.into());
                } else if let RouteAttribute::Priority(priority) = attribute {
                    metric = priority;
                }
            }
            Some((metric, DefaultRoute { interface: interface?, gateway }))
        })
        .collect();
    routes.sort_by_key(|(metric, _)| *metric);
    Ok(routes.into_iter().map(|(_, route)| route).collect())
}

fn is_default(message: &RouteMessage, family: AddressFamily) -> bool {
    message.header.address_family == family
        && message.header.destination_prefix_length == 0
        && message.header.table == RouteHeader::RT_TABLE_MAIN
        && message.header.kind == RouteType::Unicast
}

/// Adds an address, without duplicate address detection.
pub fn add(netlink: &Netlink, index: u32, address: IpAddr, prefix_length: u8) -> Result<()> {
    let message = match address {
        IpAddr::V4(address) => {
            AddressMessageBuilder::<Ipv4Addr>::new().index(index).address(address, prefix_length).build()
        }
        IpAddr::V6(address) => {
            let builder = AddressMessageBuilder::<Ipv6Addr>::new().index(index);
            let mut message = builder.address(address, prefix_length).build();
            // All containers share this address, so detection would find them as duplicates.
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            message
        }
    };
    netlink
        .request(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
        .context(|| format!("cannot add the address {address}/{prefix_length}"))
}

/// Removes an address. Idempotent.
pub fn delete(netlink: &Netlink, index: u32, address: IpAddr, prefix_length: u8) -> Result<()> {
    let mut message = AddressMessage::default();
    message.header.family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.index = index;
    message.header.prefix_len = prefix_length;
    message.attributes.push(AddressAttribute::Local(address));
    match netlink.request(RouteNetlinkMessage::DelAddress(message), 0) {
        Err(error) if error.raw_os_error() == Some(EADDRNOTAVAIL) => Ok(()),
        other => other.context(|| format!("cannot remove the address {address}/{prefix_length}")),
    }
}

/// Sets an interface's IPv4 default route. With `instead` it replaces the existing one, which must be this
/// interface's.
///
/// # Errors
///
/// [`Error::DefaultRouteExists`] if there is one that must not be replaced.
pub fn set_default_route(
    netlink: &Netlink,
    index: u32,
    gateway: Option<Ipv4Addr>,
    instead: bool,
) -> Result<()> {
    let mut route = RouteMessageBuilder::<Ipv4Addr>::new().output_interface(index);
    route = match gateway {
        // Onlink, because the gateway may be outside the prefix, as with /32 addresses.
        Some(gateway) => route.gateway(gateway).onlink(),
        None => route.scope(RouteScope::Link),
    };
    let how = if instead { NLM_F_REPLACE } else { NLM_F_EXCL };
    netlink
        .request(RouteNetlinkMessage::NewRoute(route.build()), NLM_F_CREATE | how)
        .map_err(|error| no_route(netlink, AddressFamily::Inet, error))
}

/// The error of a rejected default route, with the existing one if that is the cause.
fn no_route(netlink: &Netlink, family: AddressFamily, error: io::Error) -> Error {
    let is_v6 = family == AddressFamily::Inet6;
    if error.raw_os_error() != Some(EEXIST) {
        let version = if is_v6 { "IPv6 " } else { "" };
        return Failure::caused_by(format!("cannot set the {version}default route"), error).into();
    }
    let found = default_routes(netlink, family).unwrap_or_default();
    let existing = found.first().map_or_else(String::new, |route| {
        let name = link::find_by_index(netlink, route.interface).ok().flatten().map(|found| found.name);
        let by = format!(" by {}", name.unwrap_or_else(|| format!("interface {}", route.interface)));
        route.gateway.map_or_else(|| by.clone(), |gateway| format!("{by} (gateway {gateway})"))
    });
    Error::DefaultRouteExists { is_v6, existing }
}

/// Adds an interface's IPv6 default route. It has no gateway, because that is often a link-local address, and
/// the interface has none.
///
/// # Errors
///
/// [`Error::DefaultRouteExists`] if there is one.
pub fn add_default_route6(netlink: &Netlink, index: u32) -> Result<()> {
    let route = RouteMessageBuilder::<Ipv6Addr>::new().output_interface(index).build();
    netlink
        .request(RouteNetlinkMessage::NewRoute(route), NLM_F_CREATE | NLM_F_EXCL)
        .map_err(|error| no_route(netlink, AddressFamily::Inet6, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_networks_of_more_than_two_have_broadcasts() {
        let ends = |text: &str, prefix| ends(text.parse().expect("an address"), prefix);
        let addresses =
            |texts: [&str; 2]| texts.map(|text| text.parse::<Ipv4Addr>().expect("an address")).to_vec();
        assert_eq!(ends("10.0.0.17", 28), addresses(["10.0.0.16", "10.0.0.31"]));
        assert_eq!(ends("10.0.0.2", 30), addresses(["10.0.0.0", "10.0.0.3"]));
        assert_eq!(ends("10.0.0.2", 0), addresses(["0.0.0.0", "255.255.255.255"]));
        for prefix in [31, 32] {
            assert_eq!(ends("10.0.0.2", prefix), Vec::<Ipv4Addr>::new());
        }
    }
}
