//! Network interfaces.

use std::{collections::BTreeSet, os::fd::AsRawFd as _};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{
        InfoData, InfoPortKind, InfoVeth, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkLayerType,
        LinkMessage,
    },
};
use nix::libc::{EBUSY, EEXIST, ENODEV};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth};

use super::{namespace::Namespace, netlink::Netlink};
use crate::kernel::error::{Context as _, Error, Failure, Result};

/// An Ethernet address.
pub type Mac = [u8; 6];

/// A MAC address as people write it: `02:00:00:00:00:01`.
pub fn mac_text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Properties of an interface.
#[expect(clippy::struct_excessive_bools, reason = "they are independent properties")]
#[derive(Clone, Debug)]
pub struct Interface {
    /// Index in its namespace.
    pub index: u32,
    /// Name in its namespace.
    pub name: String,
    /// MAC address; zero if it has none.
    pub mac: Mac,
    /// MTU in bytes.
    pub mtu: u32,
    /// Whether frames have an Ethernet header.
    pub is_ethernet: bool,
    /// Whether frames have a header of another kind: those of `InfiniBand`. All other interfaces carry bare packets.
    pub has_foreign_header: bool,
    /// Whether it is administratively up.
    pub is_up: bool,
    /// Whether it has a carrier: a cable, or a peer that is up.
    pub has_carrier: bool,
    /// Whether it is a port of a bridge, bond or the like, which then has its addresses and receives its
    /// packets. The members of a VRF keep both.
    pub is_port: bool,
    /// Index of a veth's peer, in the peer's namespace.
    pub peer: Option<u32>,
    /// Alias (`ip link set alias`).
    pub alias: Option<String>,
    /// Interface group; 0 by default.
    pub group: u32,
}

impl From<LinkMessage> for Interface {
    fn from(message: LinkMessage) -> Self {
        let mut interface = Self {
            index: message.header.index,
            name: String::new(),
            mac: Mac::default(),
            mtu: 0,
            is_ethernet: message.header.link_layer_type == LinkLayerType::Ether,
            has_foreign_header: message.header.link_layer_type == LinkLayerType::Infiniband,
            is_up: message.header.flags.contains(LinkFlags::Up),
            has_carrier: message.header.flags.contains(LinkFlags::LowerUp),
            is_port: false,
            peer: None,
            alias: None,
            group: 0,
        };
        for attribute in message.attributes {
            if let LinkAttribute::IfName(name) = attribute {
                interface.name = name;
            } else if let LinkAttribute::Address(bytes) = attribute {
                interface.mac = bytes.try_into().unwrap_or_default();
            } else if let LinkAttribute::Mtu(mtu) = attribute {
                interface.mtu = mtu;
            } else if let LinkAttribute::Link(peer) = attribute {
                interface.peer = Some(peer);
            } else if let LinkAttribute::IfAlias(alias) = attribute {
                interface.alias = Some(alias);
            } else if let LinkAttribute::Group(group) = attribute {
                interface.group = group;
            } else if let LinkAttribute::LinkInfo(infos) = attribute {
                interface.is_port = infos
                    .iter()
                    .any(|info| matches!(info, LinkInfo::PortKind(kind) if *kind != InfoPortKind::Vrf));
            }
        }
        interface
    }
}

/// Index of the loopback device in every namespace.
pub const LOOPBACK: u32 = 1;

/// Smallest MTU of a link on which Linux speaks IPv6 (RFC 8200, section 5), in bytes.
pub const SMALLEST_IPV6_MTU: u32 = 1280;

/// Returns the speed of an interface in bytes per second, if its driver reports one. Drivers of virtual
/// interfaces, and those without a carrier, report an error, -1, nothing or zero.
pub fn speed(name: &str) -> Option<u64> {
    let megabits = super::pseudo::read_short(format!("/sys/class/net/{name}/speed")).ok()?;
    let megabits: u64 =
        megabits.trim().parse().ok().filter(|speed| (1..u64::from(u32::MAX)).contains(speed))?;
    Some(megabits * 1_000_000 / 8)
}

/// Finds an interface by name.
pub fn find(netlink: &Netlink, name: &str) -> Result<Option<Interface>> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    get(netlink, message, name)
}

/// Finds an interface by index.
pub fn find_by_index(netlink: &Netlink, index: u32) -> Result<Option<Interface>> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    get(netlink, message, &format!("interface {index}"))
}

/// Lists all interfaces.
pub fn all(netlink: &Netlink) -> Result<Vec<Interface>> {
    netlink.list(&question(LinkMessage::default()), interface).context(|| "cannot list the interfaces")
}

fn get(netlink: &Netlink, message: LinkMessage, name: &str) -> Result<Option<Interface>> {
    match netlink.get(question(message)) {
        Err(error) if error.raw_os_error() == Some(ENODEV) => Ok(None),
        other => Ok(interface(other.context(|| format!("cannot query {name}"))?)),
    }
}

/// Request for interfaces without their counters.
fn question(mut message: LinkMessage) -> RouteNetlinkMessage {
    message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    RouteNetlinkMessage::GetLink(message)
}

fn interface(answer: RouteNetlinkMessage) -> Option<Interface> {
    match answer {
        RouteNetlinkMessage::NewLink(message) => Some(message.into()),
        _ => None,
    }
}

/// A veth pair to create: the host veth in this namespace, `eth0` in a container's.
#[derive(Debug)]
pub struct VethPair<'a> {
    /// Name of the host's end.
    pub host_name: &'a str,
    /// Index of the host's end.
    pub host_index: u32,
    /// Alias of the host's end.
    pub alias: &'a str,
    /// Name of the container's end.
    pub container_name: &'a str,
    /// Index of the container's end.
    pub container_index: u32,
    /// The container's namespace.
    pub container: &'a Namespace,
    /// MAC address of both ends.
    pub mac: Mac,
    /// MTU of both ends in bytes.
    pub mtu: u32,
}

/// Creates a veth pair, both ends down.
///
/// All properties are part of the creating message, because a network manager that sees the new interface
/// first could overwrite a MAC address that is set later.
///
/// # Errors
///
/// [`Error::InterfaceExists`] if a name or index is taken.
pub fn create_veth(netlink: &Netlink, pair: &VethPair<'_>) -> Result<()> {
    let container_end = LinkUnspec::new_with_index(pair.container_index)
        .name(pair.container_name)
        .address(pair.mac.to_vec())
        .mtu(pair.mtu)
        .arp(false)
        .setns_by_fd(pair.container.file().as_raw_fd())
        .build();
    let message = LinkMessageBuilder::<LinkVeth>::new(pair.host_name, pair.container_name)
        .index(pair.host_index)
        .address(pair.mac.to_vec())
        .mtu(pair.mtu)
        .arp(false)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(container_end)))
        .build();
    let request = RouteNetlinkMessage::NewLink(message);
    netlink.request(request, NLM_F_CREATE | NLM_F_EXCL).map_err(|error| match error.raw_os_error() {
        // An index that is taken is EBUSY, a name EEXIST.
        Some(EEXIST | EBUSY) => Error::InterfaceExists {
            host: pair.host_name.to_owned(),
            container: pair.container_name.to_owned(),
            netns: pair.container.path().to_owned(),
        },
        _ => {
            Error::from(Failure::caused_by(format!("cannot create the veth pair {}", pair.host_name), error))
        }
    })?;
    // The kernel accepts an alias only for an existing interface.
    let message = LinkUnspec::new_with_index(pair.host_index).alias(pair.alias).build();
    set(netlink, message, &format!("the alias of {}", pair.host_name))
}

/// Sets an interface up.
pub fn set_up(netlink: &Netlink, index: u32, name: &str) -> Result<()> {
    set(netlink, LinkUnspec::new_with_index(index).up().build(), name)
}

/// Sets an interface down.
pub fn set_down(netlink: &Netlink, index: u32, name: &str) -> Result<()> {
    set(netlink, LinkUnspec::new_with_index(index).down().build(), name)
}

/// Sets an interface's MAC address and MTU.
pub fn change(netlink: &Netlink, index: u32, mac: Mac, mtu: u32, name: &str) -> Result<()> {
    set(netlink, LinkUnspec::new_with_index(index).address(mac.to_vec()).mtu(mtu).build(), name)
}

/// Sets the MTU, and optionally the MAC address, of the loopback device.
pub fn change_loopback(netlink: &Netlink, mac: Option<Mac>, mtu: u32) -> Result<()> {
    let mut message = LinkUnspec::new_with_index(LOOPBACK).mtu(mtu);
    if let Some(mac) = mac {
        message = message.address(mac.to_vec());
    }
    set(netlink, message.build(), "lo")
}

fn set(netlink: &Netlink, message: LinkMessage, what: &str) -> Result<()> {
    netlink.request(RouteNetlinkMessage::SetLink(message), 0).context(|| format!("cannot change {what}"))
}

/// Number of interfaces per batch, so that all acknowledgements fit into the socket's receive buffer.
const BATCH: usize = 64;

/// Deletes many interfaces at once. The kernel waits for several RCU grace periods per deletion, and for as
/// many to delete a group (`unregister_netdevice_many`).
pub fn delete_all(netlink: &Netlink, indices: &[u32]) -> Result<()> {
    let doing = || format!("cannot delete {} interfaces", indices.len());
    let taken: BTreeSet<u32> = all(netlink)?.into_iter().map(|interface| interface.group).collect();
    // An unused group contains only the interfaces that are added to it here.
    let group = (1..u32::MAX).rev().find(|group| !taken.contains(group)).unwrap_or_default();
    for indices in indices.chunks(BATCH) {
        let into_group = |index: &u32| {
            let mut message = LinkUnspec::new_with_index(*index).build();
            message.attributes.push(LinkAttribute::Group(group));
            (RouteNetlinkMessage::SetLink(message), 0)
        };
        match netlink.request_at_once(indices.iter().map(into_group).collect()) {
            // An interface has been deleted meanwhile.
            Err(error) if error.raw_os_error() == Some(ENODEV) => {}
            other => other.context(doing)?,
        }
    }
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::Group(group));
    match netlink.request(RouteNetlinkMessage::DelLink(message), 0) {
        Err(error) if error.raw_os_error() == Some(ENODEV) => Ok(()),
        other => other.context(doing),
    }
}

/// Deletes an interface. Idempotent.
pub fn delete(netlink: &Netlink, index: u32, name: &str) -> Result<()> {
    let message = LinkUnspec::new_with_index(index).build();
    match netlink.request(RouteNetlinkMessage::DelLink(message), 0) {
        Err(error) if error.raw_os_error() == Some(ENODEV) => Ok(()),
        other => other.context(|| format!("cannot delete {name}")),
    }
}
