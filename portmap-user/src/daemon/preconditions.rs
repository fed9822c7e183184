//! What must hold before a daemon or a teardown touches anything.

use nix::unistd::geteuid;
use portmap_common::slot::slot_of_loopback;

use super::container::attach::ETH0;
use crate::{
    error::{Error, Kind, Result},
    kernel::{
        link::{self, LOOPBACK},
        netlink::Netlink,
    },
};

/// Fails unless this process may do what the daemon does.
pub(super) fn check_root() -> Result<()> {
    if geteuid().is_root() {
        return Ok(());
    }
    Err(Error::new(
        Kind::NotPermitted,
        "portmap changes network namespaces and loads BPF programs: run it as root",
    ))
}

/// Refuses the network namespace of a container: interfaces and pins with portmap's names there belong to the host's daemon.
pub(super) fn check_namespace(netlink: &Netlink) -> Result<()> {
    let slot = link::find_by_index(netlink, LOOPBACK)?.and_then(|lo| slot_of_loopback(lo.mac));
    // A namespace that used to be a container's keeps the address of its loopback device.
    if slot.is_some() && link::find(netlink, ETH0)?.is_some() {
        return Err(Error::usage(
            "this network namespace is that of a container of portmap (see the address of its `lo`): run this in the host's",
        ));
    }
    Ok(())
}
