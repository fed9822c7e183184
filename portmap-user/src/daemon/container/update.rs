//! Update of a container in service.

use tracing::warn;

use super::{Containers, add::Changed, limits};
use crate::{
    api::UpdateRequest,
    daemon::{
        host::sockets::HostSockets,
        registry::{Refusal, StaticPortGrant, StaticPortRequest},
    },
    durations::HumanDuration,
    error::Result,
    kernel::netlink::Netlink,
    model::{ContainerRecord, PortSet},
};

impl Containers {
    /// Changes a container's static ports, its block of ephemeral ports and its limits. An empty request
    /// reinstalls its qdiscs and its policer.
    ///
    /// A failure is rolled back. New ports are published before old ones are withdrawn; ports in both sets
    /// are not touched. Former ephemeral ports drain.
    ///
    /// # Errors
    ///
    /// [`Refusal::Taken`] if other containers own one of the ports, or no block of the size is free.
    pub(in crate::daemon) fn update(&self, name: &str, request: UpdateRequest) -> Result<Changed, Refusal> {
        let had = self.registry.snapshot().entry(name)?.record.ports.clone();
        let concerned = request.numbered_ports().map(|numbered| numbered.union(&had));
        let updated = self.update_reserved(name, request);
        if let Some(concerned) = concerned {
            self.unreserve_unowned(&concerned);
        }
        updated
    }

    /// The same, without ending the reservation of published ports.
    fn update_reserved(&self, name: &str, request: UpdateRequest) -> Result<Changed, Refusal> {
        let block = request.ephemeral_ports_per_container;
        let numbered = request.numbered_ports();
        let automatic = request.automatic_ports.clone();
        let ports = numbered.map(|numbered| StaticPortRequest { numbered, automatic });
        let (mut warnings, host_ports) = self.check_host_sockets(name, ports.as_ref(), request.take)?;
        let (before, granted) = self.registry.begin_update(name, ports.as_ref(), &host_ports)?;
        let updated = self.update_admitted(&before, granted, request);
        let after = match updated {
            Ok((after, warning)) => {
                warnings.extend(warning);
                after
            }
            Err(refusal) => {
                self.registry.cancel_update(name);
                self.try_drain(name);
                return Err(refusal);
            }
        };
        let mut entry = self.registry.publish(after);
        if block.is_some() {
            self.try_drain(name);
            entry = self.registry.snapshot().get(name).cloned().unwrap_or(entry);
            warnings.extend(self.drain_warning(&entry.record));
        }
        Ok(Changed { entry, warnings })
    }

    /// Applies an update whose static ports are reserved. Returns the new record, which is written and not yet
    /// published, and perhaps a warning.
    fn update_admitted(
        &self,
        record: &ContainerRecord,
        granted: Option<StaticPortGrant>,
        request: UpdateRequest,
    ) -> Result<(ContainerRecord, Option<String>), Refusal> {
        let (netlink, size) = (Netlink::open()?, request.ephemeral_ports_per_container);
        let mut after = self.updated(record, granted, request)?;
        let mut before = record.clone();
        if let Some(change) = size.map(|size| self.prepare_block(record, size)).transpose()?.flatten() {
            (after.ephemeral_ports, after.draining) = (change.block, change.draining);
            before = change.before;
        }
        let is_moved = after.ephemeral_ports != before.ephemeral_ports;
        let moved = if is_moved { self.use_block(&after) } else { Ok(()) };
        let new_ports = after.all_ports().difference(&record.all_ports());
        let reserved = moved.and_then(|()| self.reserve_published(&after.ports));
        let kept = reserved.and_then(|()| self.keep_tracked_connections(&new_ports));
        let committed = kept.and_then(|()| self.commit(&netlink, &before, &after));
        if committed.is_err()
            && is_moved
            && let Err(left) = self.use_block(&before)
        {
            warn!("container {:?}: the rollback of its ephemeral ports failed: {left}", before.name);
        }
        Ok((after, committed?))
    }

    /// Releases draining ports that no socket uses. A failure is no error, because the daemon tries again.
    fn try_drain(&self, name: &str) {
        if let Err(error) = self.drain(name) {
            warn!("container {name:?}: cannot release ephemeral ports yet: {error}");
        }
    }

    /// The warning for a container whose sockets still use former ephemeral ports.
    fn drain_warning(&self, record: &ContainerRecord) -> Option<String> {
        let ports = record.draining_ports();
        (!ports.is_empty()).then(|| {
            format!(
                "sockets of the container still use the former ephemeral ports {ports}: it keeps them until the \
                 sockets are closed, for at most {} (--ephemeral-ports-drain)",
                HumanDuration(self.env.settings.drain)
            )
        })
    }

    /// The record of a container after an update.
    ///
    /// # Errors
    ///
    /// If it would have too many labels.
    fn updated(
        &self,
        before: &ContainerRecord,
        granted: Option<StaticPortGrant>,
        request: UpdateRequest,
    ) -> Result<ContainerRecord> {
        // Without `..`, so that a new field of the request is a compile error here.
        let UpdateRequest {
            ports: _,
            automatic_ports: _,
            take: _,
            ephemeral_ports_per_container: _,
            traffic,
            labels,
        } = request;
        let present =
            || StaticPortGrant { ports: before.ports.clone(), automatic: before.automatic_ports.clone() };
        let static_ports = granted.unwrap_or_else(present);
        // As a takeover, an update that is not about it gives an existing container no limit on receiving.
        let may_get_ingress = before.ingress.is_some()
            || traffic.ingress_rate.is_some()
            || self.env.settings.shaping.ingress_for_existing;
        let traffic = traffic.or(before.traffic);
        let (egress, ingress) = limits::for_traffic(&self.env, &self.host.state(), &traffic);
        Ok(ContainerRecord {
            ports: static_ports.ports,
            automatic_ports: static_ports.automatic,
            labels: before.labels.clone().changed(&labels)?,
            traffic,
            egress,
            ingress: ingress.filter(|_| may_get_ingress),
            ..before.clone()
        })
    }

    /// Returns the warnings for new ports that processes of the host use, and the ports of the host's sockets.
    /// Ports that the container already owns are not checked.
    fn check_host_sockets(
        &self,
        name: &str,
        ports: Option<&StaticPortRequest>,
        take: bool,
    ) -> Result<(Vec<String>, PortSet), Refusal> {
        let Some(StaticPortRequest { numbered, automatic }) = ports else { return Ok(Default::default()) };
        // The registry is asked first, because the operator cannot override its refusals.
        let new = self.registry.new_ports(name, numbered)?;
        let choices = if automatic.is_empty() { &PortSet::default() } else { &self.env.settings.ports };
        self.reserve_published(&new)?;
        let sockets = HostSockets::read(&self.host.state(), &new.union(choices));
        let warnings = sockets.check(&new, take)?;
        self.registry.keep_host_connections(&sockets.connections(&new))?;
        Ok((warnings, sockets.ports()))
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
        let limited = ContainerRecord {
            ports: before.ports.clone(),
            automatic_ports: before.automatic_ports.clone(),
            ephemeral_ports: before.ephemeral_ports,
            draining: before.draining.clone(),
            ..after.clone()
        };
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
