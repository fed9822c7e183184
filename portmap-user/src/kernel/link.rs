//! Interfaces.

use std::{collections::BTreeSet, os::fd::AsRawFd as _};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoData, InfoVeth, LinkAttribute, LinkExtentMask, LinkFlags, LinkLayerType, LinkMessage},
};
use nix::libc::{EEXIST, ENODEV};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth};

use super::{namespace::Namespace, netlink::Netlink};
use crate::kernel::error::{Context as _, Error, Failure, Result};

/// An Ethernet address.
pub type Mac = [u8; 6];

/// What portmap needs to know of an interface.
#[derive(Clone, Debug)]
pub struct Interface {
    /// Index in its namespace.
    pub index: u32,
    /// Name in its namespace.
    pub name: String,
    /// Hardware address; all zero if it has none.
    pub mac: Mac,
    /// Largest packet, in bytes, link-layer header excluded.
    pub mtu: u32,
    /// Whether frames have an Ethernet header.
    pub is_ethernet: bool,
    /// Whether it is administratively up.
    pub is_up: bool,
    /// Whether there is something at the other end: a cable, a peer that is up.
    pub has_carrier: bool,
    /// For one end of a veth pair, the index of the other in its namespace.
    pub peer: Option<u32>,
    /// The description that can be set by `ip link set alias`.
    pub alias: Option<String>,
    /// The group that it is in; 0 unless somebody has put it into another.
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
            is_up: message.header.flags.contains(LinkFlags::Up),
            has_carrier: message.header.flags.contains(LinkFlags::LowerUp),
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
            }
        }
        interface
    }
}

/// Index of the loopback device, the same in every namespace.
pub const LOOPBACK: u32 = 1;

/// Speed of an interface in bytes per second, if it knows one. Virtual ones and those without a carrier do not, which
/// drivers say in several ways: by an error, by -1, by nothing or by zero.
pub fn speed(name: &str) -> Option<u64> {
    let megabits = super::pseudo::read_short(format!("/sys/class/net/{name}/speed")).ok()?;
    let megabits: u64 =
        megabits.trim().parse().ok().filter(|speed| (1..u64::from(u32::MAX)).contains(speed))?;
    Some(megabits * 1_000_000 / 8)
}

/// The interface called `name`, if there is one.
pub fn find(netlink: &Netlink, name: &str) -> Result<Option<Interface>> {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    get(netlink, message, name)
}

/// The interface with this index, if there is one.
pub fn find_by_index(netlink: &Netlink, index: u32) -> Result<Option<Interface>> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    get(netlink, message, &format!("interface {index}"))
}

/// All interfaces of the namespace.
pub fn all(netlink: &Netlink) -> Result<Vec<Interface>> {
    netlink.list(&question(LinkMessage::default()), interface).context(|| "cannot look at the interfaces")
}

fn get(netlink: &Netlink, message: LinkMessage, name: &str) -> Result<Option<Interface>> {
    match netlink.get(question(message)) {
        Err(error) if error.raw_os_error() == Some(ENODEV) => Ok(None),
        other => Ok(interface(other.context(|| format!("cannot look at {name}"))?)),
    }
}

/// Asks about interfaces, without their counters.
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

/// A veth pair to be made: one end here, the other in a container.
#[derive(Debug)]
pub struct VethPair<'a> {
    /// Name of the host's end.
    pub host_name: &'a str,
    /// Index of the host's end.
    pub host_index: u32,
    /// What `ip link` shows of the host's end besides its name.
    pub alias: &'a str,
    /// Name of the container's end.
    pub container_name: &'a str,
    /// Index of the container's end.
    pub container_index: u32,
    /// Where the container's end goes.
    pub container: &'a Namespace,
    /// Address of both ends.
    pub mac: Mac,
    /// Largest packet on both ends.
    pub mtu: u32,
}

/// Makes a veth pair, both ends down.
///
/// All properties are part of the creating message. Set later, an address could be overwritten by a manager of
/// network devices that saw the new interface first.
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
        Some(EEXIST) => Error::InterfaceExists {
            host: pair.host_name.to_owned(),
            container: pair.container_name.to_owned(),
            netns: pair.container.path().to_owned(),
        },
        _ => Error::from(Failure {
            operation: format!("cannot create the veth pair {}", pair.host_name),
            source: Some(Box::new(error)),
        }),
    })?;
    // The kernel takes an alias only from a message about an existing interface.
    let message = LinkUnspec::new_with_index(pair.host_index).alias(pair.alias).build();
    set(netlink, message, &format!("the alias of {}", pair.host_name))
}

/// Brings an interface up.
pub fn set_up(netlink: &Netlink, index: u32, name: &str) -> Result<()> {
    set(netlink, LinkUnspec::new_with_index(index).up().build(), name)
}

/// Takes an interface down.
pub fn set_down(netlink: &Netlink, index: u32, name: &str) -> Result<()> {
    set(netlink, LinkUnspec::new_with_index(index).down().build(), name)
}

/// Changes an interface's MAC address and MTU.
pub fn change(netlink: &Netlink, index: u32, mac: Mac, mtu: u32, name: &str) -> Result<()> {
    set(netlink, LinkUnspec::new_with_index(index).address(mac.to_vec()).mtu(mtu).build(), name)
}

/// Changes the MTU, and perhaps the MAC address, of the namespace's loopback device.
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

/// Interfaces that are put into a group in one system call: all answers must have room in the socket.
const BATCH: usize = 64;

/// Deletes many interfaces at once. The kernel waits several times for all CPUs when it deletes an interface, and no longer for
/// a group of them (`unregister_netdevice_many`).
pub fn delete_all(netlink: &Netlink, indices: &[u32]) -> Result<()> {
    let doing = || format!("cannot delete {} interfaces", indices.len());
    let taken: BTreeSet<u32> = all(netlink)?.into_iter().map(|interface| interface.group).collect();
    // The kernel gives no meaning to groups; one that nobody uses holds what we put there.
    let group = (1..u32::MAX).rev().find(|group| !taken.contains(group)).unwrap_or_default();
    for indices in indices.chunks(BATCH) {
        let into_group = |index: &u32| {
            let mut message = LinkUnspec::new_with_index(*index).build();
            message.attributes.push(LinkAttribute::Group(group));
            (RouteNetlinkMessage::SetLink(message), 0)
        };
        match netlink.request_at_once(indices.iter().map(into_group).collect()) {
            // One has gone by itself.
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

/// Deletes an interface. It is no error if there is none.
pub fn delete(netlink: &Netlink, index: u32, name: &str) -> Result<()> {
    let message = LinkUnspec::new_with_index(index).build();
    match netlink.request(RouteNetlinkMessage::DelLink(message), 0) {
        Err(error) if error.raw_os_error() == Some(ENODEV) => Ok(()),
        other => other.context(|| format!("cannot delete {name}")),
    }
}
