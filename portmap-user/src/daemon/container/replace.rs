//! Replacing a container: a client that starts its container again need not know whether the earlier one was removed.

use tracing::info;

use super::{Containers, lookup};
use crate::{
    api::AddRequest,
    daemon::registry::Refusal,
    error::{Error, Result},
    kernel::{namespace::Namespace, netlink::Netlink},
    model::ContainerRecord,
};

impl Containers {
    /// Removes the container that a request replaces. It stays if its namespace exists at its path and is not the
    /// requested one: then the admission refuses the name. It also stays if another container has one of the
    /// requested ports, so that a request without hope costs nothing.
    ///
    /// # Errors
    ///
    /// If another container has a port, or a removal fails.
    pub(super) fn remove_replaced(&self, netlink: &Netlink, request: &AddRequest) -> Result<(), Refusal> {
        let containers = self.registry.snapshot();
        let Some(entry) = containers.get(&request.name) else { return Ok(()) };
        if !is_replaceable(&entry.record, request)? {
            return Ok(());
        }
        self.registry.new_ports(&request.name, &request.ports)?;
        let record = self.registry.begin_removal(&request.name)?;
        info!("container {:?}: replaced; the earlier one was in {}", record.name, record.netns.display());
        Ok(self.remove(netlink, &record)?)
    }
}

/// Whether the namespace of a container has ended, is no longer at its path, or is the requested one.
fn is_replaceable(record: &ContainerRecord, request: &AddRequest) -> Result<bool> {
    let Some(own) = lookup::open_netns(record)? else { return Ok(true) };
    let Some(path) = &request.netns else { return Ok(false) };
    let requested = Namespace::try_open(path).map_err(Error::from)?;
    let is_same = requested.zip(own.id().ok()).map(|(requested, own)| requested.is(own));
    Ok(is_same.transpose()?.unwrap_or(false))
}
