//! Lookup of a container's objects in the kernel.

use portmap_common::slot::veth_ifindex;

use crate::{
    error::{Error, Result},
    kernel::{
        link::{self, Interface},
        namespace::Namespace,
        netlink::Netlink,
        session::NetSession,
    },
    model::ContainerRecord,
};

/// The host veth of a container; `None` if it has been deleted, or if an interface of another tool has its
/// index.
pub(in crate::daemon) fn veth(netlink: &Netlink, record: &ContainerRecord) -> Result<Option<Interface>> {
    let found = link::find_by_index(netlink, veth_ifindex(record.slot))?;
    Ok(found.filter(|interface| interface.name == record.host_veth()))
}

/// Runs `work` in the container's namespace. Returns `None` if the path no longer refers to the namespace on
/// record.
///
/// # Errors
///
/// Those of `work`, or if the namespace cannot be entered.
pub(in crate::daemon) fn visit<T: Send>(
    record: &ContainerRecord,
    work: impl FnOnce(&NetSession) -> Result<T> + Send,
) -> Result<Option<T>> {
    let Some(recorded) = record.namespace else { return Ok(None) };
    let Some(namespace) = Namespace::try_open(&record.netns)? else { return Ok(None) };
    namespace.run_if(recorded, work)
}

/// Like [`visit`], for callers that need the namespace.
///
/// # Errors
///
/// Also if the path no longer refers to the namespace on record.
pub(in crate::daemon) fn visit_existing<T: Send>(
    record: &ContainerRecord,
    work: impl FnOnce(&NetSession) -> Result<T> + Send,
) -> Result<T> {
    visit(record, work)?.ok_or_else(|| netns_gone(record))
}

/// The error that a container's file no longer refers to the namespace on record.
pub(in crate::daemon) fn netns_gone(record: &ContainerRecord) -> Error {
    Error::failure(format!(
        "{} no longer refers to the network namespace of container {:?}",
        record.netns.display(),
        record.name
    ))
}

/// The container's namespace; `None` if the path no longer refers to the namespace on record.
///
/// # Errors
///
/// If the path cannot be opened or identified.
pub(in crate::daemon) fn open_netns(record: &ContainerRecord) -> Result<Option<Namespace>> {
    let Some(recorded) = record.namespace else { return Ok(None) };
    let Some(namespace) = Namespace::try_open(&record.netns)? else { return Ok(None) };
    Ok(namespace.is(recorded)?.then_some(namespace))
}
