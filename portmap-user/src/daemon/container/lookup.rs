//! Finding what belongs to a container in the kernel.

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

/// The host veth of a container; none if it was deleted with its namespace, or another tool's interface has its index.
pub(in crate::daemon) fn veth(netlink: &Netlink, record: &ContainerRecord) -> Result<Option<Interface>> {
    let found = link::find_by_index(netlink, veth_ifindex(record.slot))?;
    Ok(found.filter(|interface| interface.name == record.host_veth()))
}

/// Does `work` inside the container's namespace, in a single visit. Nothing if its file no longer stands for the namespace on
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

/// Like [`visit`], where nothing can be done without the namespace.
///
/// # Errors
///
/// Also if the file no longer stands for the namespace on record.
pub(in crate::daemon) fn visit_existing<T: Send>(
    record: &ContainerRecord,
    work: impl FnOnce(&NetSession) -> Result<T> + Send,
) -> Result<T> {
    visit(record, work)?.ok_or_else(|| {
        Error::failure(format!(
            "{} no longer stands for the network namespace of container {:?}",
            record.netns.display(),
            record.name
        ))
    })
}

/// The container's namespace, if its file still stands for the one on record.
///
/// # Errors
///
/// If that cannot be told.
pub(in crate::daemon) fn open_netns(record: &ContainerRecord) -> Result<Option<Namespace>> {
    let Some(recorded) = record.namespace else { return Ok(None) };
    let Some(namespace) = Namespace::try_open(&record.netns)? else { return Ok(None) };
    Ok(namespace.is(recorded)?.then_some(namespace))
}
