//! Update of a container in service.

use tracing::warn;

use super::{Containers, add::Changed, limits};
use crate::{
    api::UpdateRequest,
    daemon::{host::sockets::HostSockets, registry::Refusal},
    error::Result,
    kernel::netlink::Netlink,
    model::{ContainerRecord, PortSet},
};

impl Containers {
    /// Changes a container's static ports and its limits. An empty request reinstalls its qdiscs and its
    /// policer.
    ///
    /// A failure is rolled back. New ports are published before old ones are withdrawn; ports in both sets
    /// are not touched.
    ///
    /// # Errors
    ///
    /// [`Refusal::Taken`] if other containers own one of the ports.
    pub(in crate::daemon) fn update(&self, name: &str, request: UpdateRequest) -> Result<Changed, Refusal> {
        let mut warnings = self.check_host_sockets(name, request.ports.as_ref(), request.take)?;
        let before = self.registry.begin_update(name, request.ports.as_ref())?;
        let updated = self.updated(&before, request).and_then(|after| {
            let warning = self.commit(&Netlink::open()?, &before, &after)?;
            Ok((after, warning))
        });
        match updated {
            Ok((after, warning)) => {
                warnings.extend(warning);
                Ok(Changed { entry: self.registry.publish(after), warnings })
            }
            Err(error) => {
                self.registry.cancel_update(name);
                Err(error.into())
            }
        }
    }

    /// The record of a container after an update.
    ///
    /// # Errors
    ///
    /// If it would have too many labels.
    fn updated(&self, before: &ContainerRecord, request: UpdateRequest) -> Result<ContainerRecord> {
        // Without `..`, so that a new field of the request is a compile error here.
        let UpdateRequest { ports, take: _, traffic, labels } = request;
        let traffic = traffic.or(before.traffic);
        let (egress, ingress) = limits::for_traffic(&self.env, &self.host.state(), &traffic);
        Ok(ContainerRecord {
            ports: ports.unwrap_or_else(|| before.ports.clone()),
            labels: before.labels.clone().changed(&labels)?,
            traffic,
            egress,
            ingress,
            ..before.clone()
        })
    }

    /// Returns the warnings for new ports that processes of the host use. Ports that the container already
    /// owns are not checked.
    fn check_host_sockets(
        &self,
        name: &str,
        ports: Option<&PortSet>,
        take: bool,
    ) -> Result<Vec<String>, Refusal> {
        let Some(ports) = ports else { return Ok(Vec::new()) };
        // The registry is asked first, because the operator cannot override its refusals.
        let new = self.registry.new_ports(name, ports)?;
        Ok(HostSockets::read(&self.host.state(), &new).check(&new, take)?)
    }

    /// Gives a container in service the limits of another record, which has the same ports.
    ///
    /// # Errors
    ///
    /// If a step fails; then the container keeps its limits.
    pub(in crate::daemon) fn change_limits(
        &self,
        netlink: &Netlink,
        before: &ContainerRecord,
        after: ContainerRecord,
    ) -> Result<()> {
        self.commit(netlink, before, &after)?;
        self.registry.set_record(after);
        Ok(())
    }

    /// Applies the new limits, then writes the new record, which is the commit point. May return a warning.
    fn commit(
        &self,
        netlink: &Netlink,
        before: &ContainerRecord,
        after: &ContainerRecord,
    ) -> Result<Option<String>> {
        // If the daemon is killed before it writes the record, the next daemon applies the limits of the old
        // one.
        let limited = ContainerRecord { ports: before.ports.clone(), ..after.clone() };
        let applied = self
            .apply_limits(netlink, &limited)
            .and_then(|warning| self.env.store.set_container(after).map(|()| warning));
        if applied.is_err()
            && let Err(left) = self.apply_limits(netlink, before)
        {
            warn!("container {:?}: the rollback of its limits failed: {left}", before.name);
        }
        // Publishing the ports cannot fail. After a crash, the next daemon publishes the recorded ports.
        applied
    }
}
