//! Preconditions that a start and a teardown check before they change anything.

use nix::unistd::geteuid;
use portmap_common::slot::{slot_of_loopback, veth_ifindex};

use crate::{
    error::{Error, Kind, Result},
    kernel::{
        link::{self, LOOPBACK},
        netlink::Netlink,
    },
};

/// Fails unless this process has the daemon's privileges.
pub(super) fn check_root() -> Result<()> {
    if geteuid().is_root() {
        return Ok(());
    }
    Err(Error::new(
        Kind::NotPermitted,
        "portmap changes network namespaces and loads BPF programs: run it as root",
    ))
}

/// Refuses a name for the loopback interface that it does not have.
///
/// # Errors
///
/// Names both.
pub(super) fn check_loopback(netlink: &Netlink, expected: Option<&str>) -> Result<()> {
    let Some(expected) = expected else { return Ok(()) };
    let name = link::find_by_index(netlink, LOOPBACK)?.map(|lo| lo.name).unwrap_or_default();
    if name == expected {
        return Ok(());
    }
    Err(Error::usage(format!(
        "--lo-name {expected:?} is not the loopback interface: expected {name:?}, or no --lo-name"
    )))
}

/// Refuses the network namespace of a container, because the interfaces and pins with portmap's names belong
/// to the host's daemon.
pub(super) fn check_namespace(netlink: &Netlink) -> Result<()> {
    let slot = link::find_by_index(netlink, LOOPBACK)?.and_then(|lo| slot_of_loopback(lo.mac));
    // The namespace of a deleted container keeps the MAC address of its loopback device, but has no veth.
    let is_of = |slot| -> Result<bool> {
        Ok(link::all(netlink)?.iter().any(|found| found.peer == Some(veth_ifindex(slot))))
    };
    if slot.map_or(Ok(false), is_of)? {
        return Err(Error::usage(
            "this is the network namespace of a portmap container (see the MAC address of its `lo`): run \
             this in the host's",
        ));
    }
    Ok(())
}
