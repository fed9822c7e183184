//! A container's namespace from inside: what is set there, followed when the host changes, and put back.

use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_route::AddressFamily;
use portmap_common::slot::loopback_mac;

use super::{
    HostFacts,
    container::{ETH0, loopback_hook},
    facts::Shared,
};
use crate::{
    error::{Error, Failures, Result},
    kernel::{
        address::{self, Address, DefaultRoute},
        clsact, inherit,
        link::{self, LOOPBACK, Mac},
        netlink::Netlink,
        offloads,
        programs::{self, AttachMode},
        sysctl::{self, Sysctls},
    },
    model::{ContainerRecord, SavedNetns, SavedSysctl},
    paths::Pins,
};

/// The lowest index that no interface of the calling thread's namespace has; usually that behind the loopback's. A conflict if
/// there is an `eth0`.
pub(super) fn free_index() -> Result<u32> {
    let netlink = Netlink::open()?;
    if link::find(&netlink, ETH0)?.is_some() {
        return Err(Error::conflict(format!(
            "the network namespace has an interface {ETH0} already, which is what the container's is called: rename or remove \
             it (`ip link set {ETH0} name …`), or pass another namespace"
        )));
    }
    let mut index = LOOPBACK + 1;
    while link::find_by_index(&netlink, index)?.is_some() {
        index += 1;
    }
    Ok(index)
}

/// What [`set_up`] will change in the calling thread's namespace.
pub(super) fn look() -> Result<SavedNetns> {
    let netlink = Netlink::open()?;
    let lo = link::find_by_index(&netlink, LOOPBACK)?
        .ok_or_else(|| Error::failure("the network namespace has no loopback device"))?;
    let sysctls = Sysctls::open()?;
    let name = all_rp_filter();
    let found = sysctls.read_if_present(&name)?.filter(|value| value != RP_FILTER);
    let rp_filter = found.map(|before| SavedSysctl { name, before, set: RP_FILTER.to_owned() });
    Ok(SavedNetns {
        lo_mac: lo.mac,
        lo_mtu: lo.mtu,
        local_ports: sysctls.local_port_range()?,
        had_clsact: clsact::has_qdisc(&netlink, "lo")?,
        lo_up: Some(lo.is_up),
        lo_has_address: address::has_v4(&netlink, LOOPBACK)?,
        sysctls: rp_filter.into_iter().collect(),
    })
}

/// Whether packets whose source is not reached by the interface that they came by are dropped, and that they are not.
const RP_FILTER: &str = "0";

/// The one setting that [`set_up`] changes and that goes with no interface of ours.
fn all_rp_filter() -> String {
    sysctl::of_interface("ipv4", "all", "rp_filter")
}

/// Settings of a container's namespace, with the values that it needs. Kernels without IPv6 lack some.
fn settings(record: &ContainerRecord) -> Vec<(String, &'static str)> {
    // Packets from the host and from other containers have the container's own address as their source, and may
    // be for 127.0.0.0/8.
    let mut all = ["accept_local", "route_localnet"]
        .map(|setting| (sysctl::of_interface("ipv4", ETH0, setting), "1"))
        .to_vec();
    // The route back to such a source is not by eth0; the larger of both values counts.
    all.extend(
        [all_rp_filter(), sysctl::of_interface("ipv4", ETH0, "rp_filter")].map(|name| (name, RP_FILTER)),
    );
    let of_eth0 = |setting| sysctl::of_interface("ipv6", ETH0, setting);
    all.push((of_eth0("disable_ipv6"), if record.ipv6 { "0" } else { "1" }));
    if record.ipv6 {
        all.extend(ETH0_IPV6.map(|(setting, value)| (of_eth0(setting), value)));
    }
    all
}

/// Gives the calling thread's namespace, a container's, the host's address and the container's ports.
pub(super) fn set_up(
    sysctls: &Sysctls,
    facts: &HostFacts,
    record: &ContainerRecord,
    eth0: u32,
) -> Result<()> {
    let netlink = Netlink::open()?;
    for (setting, value) in settings(record) {
        sysctls.write_if_present(&setting, value)?;
    }
    sysctls.set_local_port_range(record.ephemeral_ports)?;
    link::change_loopback(&netlink, Some(loopback_mac(record.slot)), facts.mtu)?;
    link::set_up(&netlink, LOOPBACK, "lo")?;
    // The host cannot see what a tunnel would have its segments be.
    offloads::disable_tunnel_segmentation(ETH0)?;
    link::set_up(&netlink, eth0, ETH0)?;
    conform(&netlink, sysctls, facts, record, eth0)?;
    Ok(())
}

/// Makes the calling thread's namespace, a container's, have what the host has now: MAC address, MTU, addresses and
/// default routes, and settings. What is so already is not touched. Returns whether anything was not.
pub(super) fn conform(
    netlink: &Netlink,
    sysctls: &Sysctls,
    facts: &HostFacts,
    record: &ContainerRecord,
    eth0: u32,
) -> Result<bool> {
    let mut changed = false;
    for (setting, value) in settings(record) {
        if sysctls.read_if_present(&setting)?.is_some_and(|found| found != value) {
            sysctls.write(&setting, value)?;
            changed = true;
        }
    }
    let is_up = link::find_by_index(netlink, eth0)?.is_some_and(|eth0| eth0.is_up);
    if !is_up {
        link::set_up(netlink, eth0, ETH0)?;
        changed = true;
    }
    changed |= conform_link(netlink, facts, eth0, ETH0)?;
    // The uplink's MTU on the loopback device, too: what is sent to the host or another container by it leaves
    // through eth0.
    if link::find_by_index(netlink, LOOPBACK)?.is_none_or(|lo| lo.mtu != facts.mtu) {
        link::change_loopback(netlink, None, facts.mtu)?;
        changed = true;
    }
    let interface = link::find_by_index(netlink, eth0)?.ok_or_else(|| no_eth0(record))?;
    let found = address::of_interface(netlink, &interface)?;
    changed |= exchange(netlink, eth0, found.v4, Some(facts.v4.own()))?;
    let had = default_route(netlink, AddressFamily::Inet, eth0)?;
    if had.map(|route| route.gateway) != Some(facts.v4.gateway.map(IpAddr::V4)) {
        address::set_default_route(netlink, eth0, facts.v4.gateway, had.is_some())?;
        changed = true;
    }
    if record.ipv6 {
        changed |= exchange(netlink, eth0, found.v6, facts.v6.map(Shared::own))?;
        if facts.v6.is_some() && default_route(netlink, AddressFamily::Inet6, eth0)?.is_none() {
            address::add_default_route6(netlink, eth0)?;
            changed = true;
        }
    }
    Ok(changed)
}

/// Makes an end of a container's veth pair have the host's MAC address and MTU. Returns whether it had others.
pub(super) fn conform_link(netlink: &Netlink, facts: &HostFacts, index: u32, name: &str) -> Result<bool> {
    let found = link::find_by_index(netlink, index)?;
    if found.is_some_and(|found| found.mac == facts.mac && found.mtu == facts.mtu) {
        return Ok(false);
    }
    link::change(netlink, index, facts.mac, facts.mtu, name)?;
    Ok(true)
}

/// What in the calling thread's namespace, a container's, is not as [`conform`] makes it.
pub(super) fn differences(
    netlink: &Netlink,
    sysctls: &Sysctls,
    facts: &HostFacts,
    record: &ContainerRecord,
    eth0: u32,
) -> Result<Vec<String>> {
    let interface = link::find_by_index(netlink, eth0)?.ok_or_else(|| no_eth0(record))?;
    let lo_mtu = link::find_by_index(netlink, LOOPBACK)?.map(|lo| lo.mtu);
    let found = address::of_interface(netlink, &interface)?;
    let route = default_route(netlink, AddressFamily::Inet, eth0)?;
    let mut all = Vec::new();
    for (setting, value) in settings(record) {
        if let Some(found) = sysctls.read_if_present(&setting)?.filter(|found| found != value) {
            all.push(format!("{setting} is {found}, expected {value}"));
        }
    }
    if !interface.is_up {
        all.push("eth0 is down".to_owned());
    }
    let mut expect = |is_so: bool, what: &str| {
        if !is_so {
            all.push(format!("{what} is not the host's"));
        }
    };
    expect(interface.mac == facts.mac, "the MAC address of eth0");
    expect(interface.mtu == facts.mtu && lo_mtu == Some(facts.mtu), "the MTU");
    expect(found.v4 == Some(facts.v4.own()), "the address of eth0");
    expect(route.map(|route| route.gateway) == Some(facts.v4.gateway.map(IpAddr::V4)), "the default route");
    if record.ipv6 {
        let route = default_route(netlink, AddressFamily::Inet6, eth0)?;
        expect(found.v6 == facts.v6.map(Shared::own), "the IPv6 address of eth0");
        expect(facts.v6.is_none() || route.is_some(), "the default route of IPv6");
    }
    Ok(all)
}

fn no_eth0(record: &ContainerRecord) -> Error {
    Error::failure(format!("container {:?} has no {ETH0} any more", record.name))
}

/// Replaces an address by another. Returns whether they differ.
fn exchange<A: Into<IpAddr> + Copy + PartialEq>(
    netlink: &Netlink,
    eth0: u32,
    old: Option<Address<A>>,
    new: Option<Address<A>>,
) -> Result<bool> {
    if old == new {
        return Ok(false);
    }
    // The old one first: another of the same prefix would be second to it, and go with it.
    if let Some(old) = old {
        address::delete(netlink, eth0, old.address.into(), old.prefix_length)?;
    }
    if let Some(new) = new {
        address::add(netlink, eth0, new.address.into(), new.prefix_length)?;
    }
    Ok(true)
}

/// An interface's default route.
fn default_route(netlink: &Netlink, family: AddressFamily, index: u32) -> Result<Option<DefaultRoute>> {
    let routes = address::default_routes(netlink, family)?;
    Ok(routes.into_iter().find(|route| route.interface == index))
}

/// IPv6 settings of a container's `eth0`. The host alone speaks to routers and neighbours: the container makes itself
/// no addresses, asks for none, and does not ask whether anybody has the one that it is given.
const ETH0_IPV6: [(&str, &str); 5] = [
    ("accept_dad", "0"),
    ("accept_ra", "0"),
    ("autoconf", "0"),
    ("addr_gen_mode", "1"),
    ("router_solicitations", "0"),
];

/// Puts back what [`set_up`] changed in the calling thread's namespace and that did not go with `eth0`.
pub(super) fn restore(attach_mode: AttachMode, pins: &Pins, record: &ContainerRecord) -> Result<()> {
    let mut failures = Failures::default();
    failures.note(programs::detach(&loopback_hook(attach_mode, pins, record)));
    if let Some(before) = &record.before {
        let netlink = Netlink::open()?;
        // The kernel takes no all-zero address back, which is what a loopback device starts with; ours stays then.
        let mac = (before.lo_mac != Mac::default()).then_some(before.lo_mac);
        failures.note(link::change_loopback(&netlink, mac, before.lo_mtu));
        if before.lo_up == Some(false) {
            failures.note(link::set_down(&netlink, LOOPBACK, "lo"));
            if !before.lo_has_address {
                failures.note(address::delete(&netlink, LOOPBACK, Ipv4Addr::LOCALHOST.into(), 8));
            }
        }
        let sysctls = Sysctls::open()?;
        // A namespace does not give out ports that it keeps for the privileged, so one of both orders works.
        let set_range = || sysctls.set_local_port_range(before.local_ports);
        let is_range_set = set_range().is_ok();
        failures.note(inherit::restore(&before.sysctls));
        if !is_range_set {
            failures.note(set_range());
        }
        if attach_mode == AttachMode::Clsact && !before.had_clsact {
            failures.note(clsact::delete_qdisc_if_empty(&netlink, "lo"));
        }
    }
    failures.into_result()
}
