//! Leftovers without a record: recognised by portmap's names and removed, or named where they cannot be told from others' work.

use portmap_common::slot::veth_ifindex;

use super::{container::attach::ALIAS, host::setup::LO_SETTINGS};
use crate::{
    error::{Failures, Result},
    kernel::{
        clsact,
        link::{self, Interface},
        namespace,
        netlink::Netlink,
        sysctl::{self, Sysctls},
    },
};

/// The slot in the name of a host veth.
pub(super) fn slot_of(name: &str) -> Option<u16> {
    name.strip_prefix("pm")?.parse().ok()
}

/// The slot of an interface that is a host veth in every respect: name, index and alias. An interface that differs in any is
/// another tool's.
pub(super) fn slot_of_ours(interface: &Interface) -> Option<u16> {
    let slot = slot_of(&interface.name).filter(|slot| interface.index == veth_ifindex(*slot));
    slot.filter(|_| interface.alias.as_ref().is_some_and(|alias| alias.starts_with(ALIAS)))
}

/// Removes host veths that are left.
pub(super) fn remove_interfaces(netlink: &Netlink, notices: &mut Vec<String>) -> Result<()> {
    let mut failures = Failures::default();
    for interface in link::all(netlink)?.into_iter().filter(|interface| slot_of_ours(interface).is_some()) {
        failures.note(link::delete(netlink, interface.index, &interface.name));
        let name = interface.alias.as_deref().and_then(|alias| alias.strip_prefix(ALIAS)).unwrap_or_default();
        notices.push(format!(
            "removed {}, the interface of container {name:?}, which has no record",
            interface.name
        ));
        let path = namespace::path_of(name);
        if path.exists() {
            notices.push(format!(
                "{} may have been made for it, or by another tool: run `ip netns del {name}` if nothing needs it",
                path.display()
            ));
        }
    }
    failures.into_result()
}

/// Removes filters that are left at the host's interfaces: no others have our handle and priority.
pub(super) fn remove_filters(netlink: &Netlink) -> Result<()> {
    let mut failures = Failures::default();
    for interface in link::all(netlink)? {
        for ingress in [true, false] {
            failures.note(clsact::delete_filter(netlink, &interface.name, ingress));
        }
    }
    failures.into_result()
}

/// Names the sysctls that portmap changes and that may still have its values.
pub(super) fn name_settings(notices: &mut Vec<String>) -> Result<()> {
    let sysctls = Sysctls::open()?;
    for setting in LO_SETTINGS {
        let name = sysctl::of_interface("ipv4", "lo", setting);
        if sysctls.read(&name)? == "1" {
            notices.push(format!(
                "/proc/sys/net/{name} is 1 and stays so: its previous value is unknown, the kernel's default is 0"
            ));
        }
    }
    let reserved = sysctls.reserved_ports()?;
    if !reserved.is_empty() {
        notices.push(format!(
            "/proc/sys/net/ipv4/ip_local_reserved_ports has {} ports and stays so: which of them portmap added is unknown",
            reserved.count()
        ));
    }
    Ok(())
}
