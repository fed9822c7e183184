//! Deprovisioning: removing what the kernel has of a container. Idempotent, so it serves `del`, failed commands and recovery alike.

use std::collections::BTreeMap;

use portmap_common::slot::veth_ifindex;
use tracing::warn;

use super::{
    attach::{hooks_inside, veth_hook},
    lookup, netns,
};
use crate::{
    error::{Failures, Result},
    kernel::{bpffs, link, namespace, netlink::Netlink, programs::AttachMode},
    model::ContainerRecord,
    paths::Pins,
};

/// Removes a container's interfaces, links and namespace, as far as they exist and are its own.
///
/// # Errors
///
/// All that could not be removed, after everything else has been.
pub(in crate::daemon) fn deprovision(
    netlink: &Netlink,
    attach_mode: AttachMode,
    pins: &Pins,
    record: &ContainerRecord,
) -> Result<()> {
    let mut failures = Failures::default();
    failures.note(delete_veth(netlink, record));
    for hook in [veth_hook(pins, record)].iter().chain(&hooks_inside(attach_mode, pins, record)) {
        failures.note(bpffs::unpin(&hook.link));
    }
    if record.owns_netns {
        match lookup::open_netns(record) {
            Ok(Some(_same)) => failures.note(namespace::remove(&record.name)),
            Ok(None) => failures.note(namespace::remove_mount_point(&record.name)),
            Err(error) => failures.note(Err(error)),
        }
    } else {
        let restored =
            lookup::visit(record, |inside| netns::restore(inside, attach_mode, pins, record)).map(|_| ());
        // The namespace belongs to the tool that made it, and is no reason to keep the container.
        if let Err(error) = restored {
            let (name, netns) = (&record.name, record.netns.display());
            warn!("container {name:?}: {netns} keeps settings that portmap made: {error}");
        }
    }
    failures.into_result()
}

/// Deletes the host veths of several containers in one request, and with them the other ends.
///
/// # Errors
///
/// If the kernel refuses.
pub(in crate::daemon) fn delete_veths(netlink: &Netlink, records: &[ContainerRecord]) -> Result<()> {
    let names: BTreeMap<u32, String> =
        records.iter().map(|record| (veth_ifindex(record.slot), record.host_veth())).collect();
    let found = link::all(netlink)?.into_iter().map(|interface| (interface.index, interface.name));
    let own: Vec<u32> =
        found.filter(|(index, name)| names.get(index) == Some(name)).map(|(index, _)| index).collect();
    if own.len() > 1 {
        link::delete_all(netlink, &own)?;
    }
    Ok(())
}

/// Deletes the host veth, and with it the other end.
fn delete_veth(netlink: &Netlink, record: &ContainerRecord) -> Result<()> {
    match lookup::veth(netlink, record)? {
        Some(interface) => Ok(link::delete(netlink, interface.index, &interface.name)?),
        None => Ok(()),
    }
}
