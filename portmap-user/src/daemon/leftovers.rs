//! Leftovers without a record. Teardown recognises them by portmap's names and removes them, or reports them
//! if another tool could have made them.

use portmap_common::slot::veth_ifindex;

use super::{container::attach::ALIAS, host::setup::LO_SETTINGS};
use crate::{
    error::{Failures, Result},
    kernel::{
        clsact,
        link::{self, Interface},
        namespace,
        netlink::Netlink,
        sysctl::Sysctls,
    },
};

/// Returns the slot in the name of a host veth.
pub(super) fn slot_of(name: &str) -> Option<u16> {
    name.strip_prefix("pm")?.parse().ok()
}

/// Returns the slot of an interface whose name, index and alias are those of a host veth. An interface that
/// differs in one of them belongs to another tool.
pub(super) fn slot_of_ours(interface: &Interface) -> Option<u16> {
    let slot = slot_of(&interface.name).filter(|slot| interface.index == veth_ifindex(*slot));
    slot.filter(|_| interface.alias.as_ref().is_some_and(|alias| alias.starts_with(ALIAS)))
}

/// Removes leftover host veths.
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
                "{} belongs to this container or to another tool: run `ip netns del {name}` if it is unused",
                path.display()
            ));
        }
    }
    failures.into_result()
}

/// Removes leftover filters from the host's interfaces. Only portmap's filters have its handle and priority.
pub(super) fn remove_filters(netlink: &Netlink) -> Result<()> {
    let mut failures = Failures::default();
    for interface in link::all(netlink)? {
        for ingress in [true, false] {
            failures.note(clsact::delete_filter(netlink, &interface.name, ingress));
        }
    }
    failures.into_result()
}

/// Reports the sysctls that portmap changes and that may still have its values.
pub(super) fn name_settings(notices: &mut Vec<String>) -> Result<()> {
    let sysctls = Sysctls::open()?;
    for name in LO_SETTINGS {
        if sysctls.read_if_present(name)?.is_some_and(|value| value == "1") {
            notices.push(format!(
                "/proc/sys/net/{name} is 1 and stays unchanged: its previous value is unknown, the kernel's \
                 default is 0"
            ));
        }
    }
    let reserved = sysctls.reserved_ports()?;
    if !reserved.is_empty() {
        notices.push(format!(
            "/proc/sys/net/ipv4/ip_local_reserved_ports contains {} ports and stays unchanged: it is unknown \
             which of them portmap added",
            reserved.count()
        ));
    }
    Ok(())
}
