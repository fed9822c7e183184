//! The inside of a container's network namespace: portmap configures it, keeps it equal to the host, and
//! restores it.
//!
//! Each function works in the namespace of its session.

use std::net::Ipv4Addr;

use portmap_common::slot::loopback_mac;

use super::{
    attach::loopback_hook,
    view::{self, Difference},
};
use crate::{
    daemon::host::HostState,
    error::{Error, Failures, Result},
    kernel::{
        address, clsact, inherit,
        link::{self, LOOPBACK, Mac},
        netlink::Netlink,
        offloads,
        programs::{self, AttachMode},
        session::NetSession,
        sysctl,
    },
    model::{ContainerRecord, SavedNetns, SavedSysctl},
    paths::Pins,
};

/// IPv6 sysctls of a container's `eth0`. They disable address generation, router solicitation and duplicate
/// address detection, because only the host talks to routers and neighbours.
const ETH0_IPV6: [(&str, &str); 5] = [
    ("accept_dad", "0"),
    ("accept_ra", "0"),
    ("autoconf", "0"),
    ("addr_gen_mode", "1"),
    ("router_solicitations", "0"),
];

/// Returns the lowest free interface index.
///
/// # Errors
///
/// A conflict if an interface with the name of the container's exists.
pub(super) fn free_index(inside: &NetSession, record: &ContainerRecord) -> Result<u32> {
    let (netlink, name) = (&inside.netlink, &record.interface);
    if link::find(netlink, name.as_str())?.is_some() {
        return Err(Error::conflict(format!(
            "the network namespace already has an interface {name}, the name of the container's interface: \
             choose another name (--container-interface), rename or remove it (`ip link set {name} name …`), \
             or pass another namespace"
        )));
    }
    let mut index = LOOPBACK + 1;
    while link::find_by_index(netlink, index)?.is_some() {
        index += 1;
    }
    Ok(index)
}

/// Reads the values that [`set_up`] changes, for [`restore`].
pub(super) fn snapshot(inside: &NetSession) -> Result<SavedNetns> {
    let (netlink, sysctls) = (&inside.netlink, inside.sysctls()?);
    let lo = link::find_by_index(netlink, LOOPBACK)?
        .ok_or_else(|| Error::failure("the network namespace has no loopback device"))?;
    let name = all_rp_filter();
    let found = sysctls.read_if_present(&name)?.filter(|value| value != RP_FILTER);
    let rp_filter = found.map(|before| SavedSysctl { name, before, set: RP_FILTER.to_owned() });
    Ok(SavedNetns {
        lo_mac: lo.mac,
        lo_mtu: lo.mtu,
        local_ports: sysctls.local_port_range()?,
        had_clsact: clsact::has_qdisc(netlink, "lo")?,
        lo_up: Some(lo.is_up),
        lo_has_address: address::has_v4(netlink, LOOPBACK)?,
        sysctls: rp_filter.into_iter().collect(),
    })
}

/// Reverse-path filtering is off, because packets arrive on another interface than the route to their source
/// uses.
const RP_FILTER: &str = "0";

/// The only sysctl that [`set_up`] changes outside portmap's own interfaces.
fn all_rp_filter() -> String {
    sysctl::of_interface("ipv4", "all", "rp_filter")
}

/// The sysctls of a container's namespace with their required values. Kernels without IPv6 lack some of them.
fn settings(record: &ContainerRecord) -> Vec<(String, &'static str)> {
    let eth0 = record.interface.as_str();
    // Packets from the host and from other containers have the container's own address as their source, and
    // their destination may be in 127.0.0.0/8.
    let mut all = ["accept_local", "route_localnet"]
        .map(|setting| (sysctl::of_interface("ipv4", eth0, setting), "1"))
        .to_vec();
    // The route back to such a source does not use eth0. The kernel applies the larger of both values.
    all.extend(
        [all_rp_filter(), sysctl::of_interface("ipv4", eth0, "rp_filter")].map(|name| (name, RP_FILTER)),
    );
    // An address that the host loses must not take others of its network with it.
    all.push((sysctl::of_interface("ipv4", eth0, "promote_secondaries"), "1"));
    let of_eth0 = |setting| sysctl::of_interface("ipv6", eth0, setting);
    all.push((of_eth0("disable_ipv6"), if record.ipv6 { "0" } else { "1" }));
    if record.ipv6 {
        all.extend(ETH0_IPV6.map(|(setting, value)| (of_eth0(setting), value)));
    }
    all
}

/// Configures the namespace of a new container.
pub(super) fn set_up(
    inside: &NetSession,
    state: &HostState,
    record: &ContainerRecord,
    eth0: u32,
) -> Result<()> {
    let (netlink, sysctls) = (&inside.netlink, inside.sysctls()?);
    for (setting, value) in settings(record) {
        sysctls.write_if_present(&setting, value)?;
    }
    sysctls.set_local_port_range(record.ephemeral_ports)?;
    link::change_loopback(netlink, Some(loopback_mac(record.slot)), state.mtu)?;
    link::set_up(netlink, LOOPBACK, "lo")?;
    // The programs on the host cannot check how the inner packet of a tunnel will be segmented.
    let name = record.interface.as_str();
    offloads::disable_tunnel_segmentation(name)?;
    link::set_up(netlink, eth0, name)?;
    ensure(inside, state, record, eth0)?;
    Ok(())
}

/// Ensures that the namespace has the host's MAC address, MTU, addresses and routes, and the required sysctls.
/// Idempotent; returns true if anything changed.
pub(in crate::daemon) fn ensure(
    inside: &NetSession,
    state: &HostState,
    record: &ContainerRecord,
    eth0: u32,
) -> Result<bool> {
    let (netlink, sysctls) = (&inside.netlink, inside.sysctls()?);
    let mut changed = false;
    for (setting, value) in settings(record) {
        if sysctls.read_if_present(&setting)?.is_some_and(|found| found != value) {
            sysctls.write(&setting, value)?;
            changed = true;
        }
    }
    let is_up = link::find_by_index(netlink, eth0)?.is_some_and(|eth0| eth0.is_up);
    if !is_up {
        link::set_up(netlink, eth0, record.interface.as_str())?;
        changed = true;
    }
    changed |= ensure_link(netlink, state, eth0, record.interface.as_str())?;
    // The loopback device needs the uplink's MTU, too, because its packets to the host and to other
    // containers leave by eth0.
    if link::find_by_index(netlink, LOOPBACK)?.is_none_or(|lo| lo.mtu != state.mtu) {
        link::change_loopback(netlink, None, state.mtu)?;
        changed = true;
    }
    let difference = Difference::read(netlink, state, record, eth0)?;
    if !difference.is_none() {
        difference.apply(netlink, eth0)?;
        changed = true;
    }
    Ok(changed)
}

/// Ensures that an end of a container's veth pair has the host's MAC address and MTU. Returns true if
/// anything changed.
pub(in crate::daemon) fn ensure_link(
    netlink: &Netlink,
    state: &HostState,
    index: u32,
    name: &str,
) -> Result<bool> {
    let found = link::find_by_index(netlink, index)?;
    if found.is_some_and(|found| found.mac == state.mac && found.mtu == state.mtu) {
        return Ok(false);
    }
    link::change(netlink, index, state.mac, state.mtu, name)?;
    Ok(true)
}

/// Lists the differences that [`ensure`] would repair.
pub(in crate::daemon) fn differences(
    inside: &NetSession,
    state: &HostState,
    record: &ContainerRecord,
    eth0: u32,
) -> Result<Vec<String>> {
    let (netlink, sysctls) = (&inside.netlink, inside.sysctls()?);
    let interface = link::find_by_index(netlink, eth0)?.ok_or_else(|| no_eth0(record))?;
    let lo_mtu = link::find_by_index(netlink, LOOPBACK)?.map(|lo| lo.mtu);
    let mut all = Vec::new();
    for (setting, value) in settings(record) {
        if let Some(found) = sysctls.read_if_present(&setting)?.filter(|found| found != value) {
            all.push(format!("{setting} is {found}, expected {value}"));
        }
    }
    if !interface.is_up {
        all.push(format!("{} is down", record.interface));
    }
    let mut expect = |is_so: bool, what: &str| {
        if !is_so {
            all.push(format!("{what} is not the host's"));
        }
    };
    expect(interface.mac == state.mac, &format!("the MAC address of {}", record.interface));
    expect(interface.mtu == state.mtu && lo_mtu == Some(state.mtu), "the MTU");
    for different in Difference::read(netlink, state, record, eth0)?.names() {
        expect(false, different);
    }
    Ok(all)
}

fn no_eth0(record: &ContainerRecord) -> Error {
    Error::failure(format!("container {:?} has no {} any more", record.name, record.interface))
}

/// Restores the settings that [`set_up`] changed, apart from those that were deleted with `eth0`.
pub(super) fn restore(
    inside: &NetSession,
    attach_mode: AttachMode,
    pins: &Pins,
    record: &ContainerRecord,
) -> Result<()> {
    let (netlink, mut failures) = (&inside.netlink, Failures::default());
    failures.note(programs::detach(netlink, &loopback_hook(attach_mode, pins, record)));
    failures.note(view::remove(netlink));
    if let Some(before) = &record.before {
        // The kernel refuses the all-zero address of a new loopback device, so portmap's address stays in
        // that case.
        let mac = (before.lo_mac != Mac::default()).then_some(before.lo_mac);
        failures.note(link::change_loopback(netlink, mac, before.lo_mtu));
        if before.lo_up == Some(false) {
            failures.note(link::set_down(netlink, LOOPBACK, "lo"));
            if !before.lo_has_address {
                failures.note(address::delete(netlink, LOOPBACK, Ipv4Addr::LOCALHOST.into(), 8));
            }
        }
        let sysctls = inside.sysctls()?;
        // The kernel refuses a port range that overlaps the privileged ports. The range is set before or
        // after those, because one of the two orders works.
        let set_range = || sysctls.set_local_port_range(before.local_ports);
        let is_range_set = set_range().is_ok();
        failures.note(inherit::restore(&before.sysctls));
        if !is_range_set {
            failures.note(set_range());
        }
        if attach_mode == AttachMode::Clsact && !before.had_clsact {
            failures.note(clsact::delete_qdisc_if_empty(netlink, "lo"));
        }
    }
    failures.into_result()
}
