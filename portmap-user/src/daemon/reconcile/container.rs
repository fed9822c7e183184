//! Reconciliation of one container with its record.

use portmap_common::tables::Endpoint;
use tracing::{info, warn};

use super::reconciler::Reconciler;
use crate::{
    daemon::container::{
        attach::{hooks_inside, veth_hook},
        lookup, netns,
        provision::endpoint,
    },
    error::Result,
    kernel::{
        link::{self, Interface},
        netlink::Netlink,
        programs,
        session::NetSession,
    },
    model::ContainerRecord,
};

/// The state in which a reconciliation found a container that must be in service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ContainerStatus {
    /// Its interfaces exist; the repairs are listed.
    Present(Vec<String>),
    /// Its interfaces were missing and have been recreated.
    Detached,
    /// Its namespace no longer exists.
    NetnsGone,
}

impl Reconciler {
    /// Reconciles a container with its record. The caller holds the container's lock.
    ///
    /// # Errors
    ///
    /// The first repair that failed.
    pub(super) fn reconcile_container(
        &self,
        netlink: &Netlink,
        record: &ContainerRecord,
    ) -> Result<ContainerStatus> {
        let Some(veth) = lookup::veth(netlink, record)? else {
            let Some(namespace) = lookup::open_netns(record)? else { return Ok(ContainerStatus::NetnsGone) };
            self.containers.reconnect(netlink, record, namespace)?;
            return Ok(ContainerStatus::Detached);
        };
        let mut repaired = self.reconcile_host_side(netlink, record, &veth)?;
        let eth0 = veth.peer.unwrap_or_default();
        match lookup::visit(record, |inside| self.reconcile_inside(inside, record, eth0))? {
            Some(inside) => repaired.extend(inside),
            // For example, the process whose pid identified the namespace has ended, and others still run in
            // it.
            None => self.reconcile_unreachable(netlink, record)?,
        }
        Ok(ContainerStatus::Present(repaired))
    }

    /// Reconciles the host veth, its program, and the container's map entries.
    fn reconcile_host_side(
        &self,
        netlink: &Netlink,
        record: &ContainerRecord,
        veth: &Interface,
    ) -> Result<Vec<String>> {
        let (env, mut repaired) = (&self.env, Repairs::default());
        if !veth.is_up {
            link::set_up(netlink, veth.index, &veth.name)?;
        }
        repaired.note(!veth.is_up, "its host veth, which was down");
        let state = self.host.state();
        let is_changed = netns::ensure_link(netlink, &state, veth.index, &veth.name)?;
        repaired.note(is_changed, "the host veth's MAC address or MTU");
        let eth0 = veth.peer.unwrap_or_default();
        repaired.note(self.ensure_endpoint(record, eth0)?, "its entry in pm_endpoints");
        let hook = veth_hook(&env.settings.pins, record);
        repaired.note(programs::ensure(netlink, &env.settings.pins, &hook)?, hook.program);
        let cookie = record.namespace.and_then(|namespace| namespace.cookie);
        if let Some((guard, cookie)) = env.guard.as_ref().zip(cookie) {
            repaired.note(guard.add(record.slot, cookie)?, "its entry in pm_guarded");
        }
        Ok(repaired.0)
    }

    /// Ensures the container's entry in `pm_endpoints`. Returns true if it was changed.
    fn ensure_endpoint(&self, record: &ContainerRecord, eth0: u32) -> Result<bool> {
        let maps = &self.env.maps;
        let found = maps.endpoint(record.slot)?;
        // The flags change with the container's limits.
        let Endpoint { generation, flags, .. } = found;
        let expected = Endpoint { generation, flags, ..endpoint(&self.env, record, eth0) };
        if found != expected {
            maps.change_endpoint(record.slot, expected)?;
        }
        Ok(found != expected)
    }

    fn reconcile_inside(
        &self,
        inside: &NetSession,
        record: &ContainerRecord,
        eth0: u32,
    ) -> Result<Vec<String>> {
        let (env, sysctls, mut repaired) = (&self.env, inside.sysctls()?, Repairs::default());
        let is_changed = netns::ensure(inside, &self.host.state(), record, eth0)?;
        repaired.note(is_changed, "addresses, routes or MTU inside");
        let is_right = sysctls.local_port_range()? == record.ephemeral_ports;
        if !is_right {
            sysctls.set_local_port_range(record.ephemeral_ports)?;
        }
        repaired.note(!is_right, "ip_local_port_range inside");
        for hook in hooks_inside(env.attach_mode, &env.settings.pins, record) {
            let was_missing = programs::ensure(&inside.netlink, &env.settings.pins, &hook)?;
            repaired.note(was_missing, hook.program);
        }
        Ok(repaired.0)
    }

    /// Reconciles the host side of a container whose namespace can no longer be entered.
    fn reconcile_unreachable(&self, netlink: &Netlink, record: &ContainerRecord) -> Result<()> {
        let pins = &self.env.settings.pins;
        programs::attach(netlink, pins, &veth_hook(pins, record))?;
        for hook in hooks_inside(self.env.attach_mode, pins, record) {
            programs::replace_by_link(pins, &hook)?;
        }
        warn!(
            "container {:?}: {} no longer refers to its network namespace; it stays in service",
            record.name,
            record.netns.display()
        );
        Ok(())
    }

    /// Reconciles the container `name`: with `with_limits` all its limits, otherwise only their host side.
    /// Removes it if its namespace no longer exists.
    pub(super) fn reconcile_one(&self, netlink: &Netlink, name: &str, with_limits: bool) {
        self.operations.on(name, || {
            if let Err(error) = self.take_over_first(name) {
                warn!("container {name:?}: takeover failed: {error}");
            }
            // A command may have removed it while this thread waited for the lock.
            let Some(record) = self.registry.snapshot().ready_record(name) else { return };
            let status = self.reconcile_with_limits(netlink, &record, with_limits);
            let mut is_broken = false;
            match status {
                Ok(ContainerStatus::Present(repaired)) if repaired.is_empty() => {}
                Ok(ContainerStatus::Present(repaired)) => {
                    info!("container {name:?}: repaired {}", repaired.join(", "));
                }
                Ok(ContainerStatus::Detached) => info!("container {name:?}: recreated its missing veth pair"),
                Ok(ContainerStatus::NetnsGone) => {
                    info!("container {name:?} ended with its network namespace");
                    if let Err(error) = self.containers.delete(netlink, name) {
                        warn!("container {name:?} has ended, but it cannot be removed completely: {error}");
                    }
                    return;
                }
                Err(error) => {
                    warn!("container {name:?} cannot be repaired: {error}");
                    is_broken = matches!(lookup::veth(netlink, &record), Ok(None));
                }
            }
            self.registry.set_broken(name, is_broken);
            self.registry.publish_all();
        });
    }

    fn reconcile_with_limits(
        &self,
        netlink: &Netlink,
        record: &ContainerRecord,
        with_limits: bool,
    ) -> Result<ContainerStatus> {
        let mut status = self.reconcile_container(netlink, record)?;
        match &mut status {
            ContainerStatus::NetnsGone => {}
            _ if with_limits => self.containers.apply_limits_or_police(netlink, record)?,
            ContainerStatus::Present(repaired) => {
                if self.containers.ensure_host_side_limits(netlink, record)? {
                    repaired.push("the host side of its limits".to_owned());
                }
            }
            ContainerStatus::Detached => {}
        }
        Ok(status)
    }
}

#[derive(Default)]
struct Repairs(Vec<String>);

impl Repairs {
    fn note(&mut self, was_missing: bool, what: &str) {
        if was_missing {
            self.0.push(what.to_owned());
        }
    }
}
