//! IPv4 and IPv6 addresses of interfaces.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressProtocol, AddressScope, CacheInfo},
};
use nix::libc::EADDRNOTAVAIL;

use super::netlink::Netlink;
use crate::kernel::error::{Context as _, Result};

/// A global unicast address of an interface: of the host, or of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostAddress {
    /// The address.
    pub address: IpAddr,
    /// Length of its prefix in bits.
    pub prefix_length: u8,
    /// Index of its interface.
    pub interface: u32,
    /// Whether it should not be the source of new connections (`IFA_F_DEPRECATED`).
    pub deprecated: bool,
    /// Of IPv4, whether another address of its network is the primary one; of IPv6, whether it is temporary. Both
    /// have the same flag.
    pub secondary: bool,
    /// Whether the kernel made no route to its prefix (`IFA_F_NOPREFIXROUTE`).
    pub no_prefix_route: bool,
    /// Metric of the route to its prefix (`IFA_RT_PRIORITY`), if one is set.
    pub route_metric: Option<u32>,
}

/// An address as the kernel lists it.
#[derive(Clone, Copy, Debug)]
pub struct Listed {
    /// The address.
    pub address: HostAddress,
    /// Remaining preferred lifetime in seconds; `u32::MAX`: for ever.
    pub preferred_for: u32,
    /// Who added it (`IFA_PROTO`); 0 if that is not recorded.
    pub protocol: u8,
}

/// `IFA_PROTO` of the addresses that portmap gives to containers. iproute2 and the kernel do not use it.
pub const PROTOCOL: u8 = 0x70;

/// Lists the global unicast addresses of all interfaces, in the kernel's order by IP version and interface. IPv6
/// addresses whose duplicate detection has not succeeded are left out.
pub fn list(netlink: &Netlink) -> Result<Vec<Listed>> {
    let mut found = netlink
        .list(&RouteNetlinkMessage::GetAddress(AddressMessage::default()), |answer| match answer {
            RouteNetlinkMessage::NewAddress(message) => listed(&message),
            _ => None,
        })
        .context(|| "cannot list the addresses")?;
    found.sort_by_key(|listed| (listed.address.address.is_ipv6(), listed.address.interface));
    Ok(found)
}

fn listed(message: &AddressMessage) -> Option<Listed> {
    let address = local(message)?;
    let flags = flags(message);
    let is_global = message.header.scope == AddressScope::Universe && is_global_unicast(address);
    if !is_global || flags.intersects(AddressFlags::Tentative.union(AddressFlags::Dadfailed)) {
        return None;
    }
    let (mut preferred_for, mut route_metric, mut protocol) = (u32::MAX, None, 0);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::CacheInfo(info) => preferred_for = info.ifa_preferred,
            AddressAttribute::RoutePriority(metric) => {
                route_metric = Some(*metric).filter(|metric| *metric != 0);
            }
            AddressAttribute::Protocol(by) => protocol = u8::from(*by),
            _ => {}
        }
    }
    let address = HostAddress {
        address,
        prefix_length: message.header.prefix_len,
        interface: message.header.index,
        deprecated: flags.contains(AddressFlags::Deprecated),
        secondary: flags.contains(AddressFlags::Secondary),
        no_prefix_route: flags.contains(AddressFlags::Noprefixroute),
        route_metric,
    };
    Some(Listed { address, preferred_for, protocol })
}

/// Whether an address can be one of a host on a network: neither unspecified nor loopback, link-local, multicast
/// or broadcast. IPv4 link-local addresses are told by their scope, because clouds use some of them as ordinary
/// ones.
pub const fn is_global_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            !(address.is_unspecified()
                || address.is_loopback()
                || address.is_multicast()
                || address.is_broadcast())
        }
        IpAddr::V6(address) => {
            !(address.is_unspecified()
                || address.is_loopback()
                || address.is_multicast()
                || address.is_unicast_link_local())
        }
    }
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

/// Adds an address, or changes its lifetime if it exists. Without duplicate address detection, because all
/// containers share the host's addresses, and would be each other's duplicates. The kernel makes no route to its
/// prefix: the routes of a container are those of the host.
pub fn set(netlink: &Netlink, address: &HostAddress) -> Result<()> {
    let mut message = AddressMessage::default();
    let (ip, prefix_length) = (address.address, address.prefix_length);
    message.header.family = if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    message.header.index = address.interface;
    message.header.prefix_len = prefix_length;
    message.attributes.extend([AddressAttribute::Local(ip), AddressAttribute::Address(ip)]);
    let mut flags = AddressFlags::Noprefixroute;
    if let IpAddr::V4(v4) = ip {
        // The kernel sets no broadcast address by itself.
        message.attributes.extend(ends(v4, prefix_length).pop().map(AddressAttribute::Broadcast));
    } else {
        flags |= AddressFlags::Nodad;
    }
    let mut lifetime = CacheInfo::default();
    lifetime.ifa_valid = u32::MAX;
    lifetime.ifa_preferred = if address.deprecated { 0 } else { u32::MAX };
    message.attributes.extend([
        AddressAttribute::Flags(flags),
        AddressAttribute::CacheInfo(lifetime),
        AddressAttribute::Protocol(AddressProtocol::Other(PROTOCOL)),
    ]);
    netlink
        .request(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE)
        .context(|| format!("cannot add the address {ip}/{prefix_length}"))
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
