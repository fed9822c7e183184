//! Deprovisioning: removes a container's objects from the kernel. Idempotent, so `del`, rollback and recovery
//! share it.

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

/// Removes a container's interfaces and links, and its namespace if portmap created it. Restores an existing
/// namespace.
///
/// # Errors
///
/// All failures. A failure does not stop the removal of the rest.
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
        // This is only a warning, because a namespace of another tool must not keep the container from being
        // removed.
        if let Err(error) = restored {
            let (name, netns) = (&record.name, record.netns.display());
            warn!("container {name:?}: cannot restore all settings of {netns}: {error}");
        }
    }
    failures.into_result()
}

/// Deletes the veth pairs of several containers in one request.
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

/// Deletes a container's veth pair.
fn delete_veth(netlink: &Netlink, record: &ContainerRecord) -> Result<()> {
    match lookup::veth(netlink, record)? {
        Some(interface) => Ok(link::delete(netlink, interface.index, &interface.name)?),
        None => Ok(()),
    }
}
