//! Admission: reserving a slot, ports, a block and a namespace for a container.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use super::{
    entries::Registry,
    refusal::Refusal,
    snapshot::{Entry, Snapshot},
    static_ports::{StaticPortGrant, StaticPortRequest},
};
use crate::{
    api::ContainerState,
    error::{Error, Result},
    kernel::{clock, namespace},
    model::{
        ContainerRecord, InterfaceName, Labels, NetnsId, Phase, PortSet, Process, TrafficSpec,
        ephemeral::check_block_size,
    },
};

/// A new container before it has a slot, a block of ephemeral ports and limits.
pub(in crate::daemon) struct Admission {
    pub(in crate::daemon) name: String,
    /// The path of an existing network namespace; `None` if the daemon creates one.
    pub(in crate::daemon) netns: Option<PathBuf>,
    pub(in crate::daemon) pid: Option<u32>,
    pub(in crate::daemon) owner: Option<Process>,
    /// Name of the container's interface.
    pub(in crate::daemon) interface: InterfaceName,
    pub(in crate::daemon) ports: StaticPortRequest,
    /// Size of its block of ephemeral ports; `None` for the daemon's default.
    pub(in crate::daemon) block: Option<u16>,
    pub(in crate::daemon) ipv6: bool,
    pub(in crate::daemon) traffic: TrafficSpec,
    pub(in crate::daemon) labels: Labels,
    pub(in crate::daemon) inherit_sysctls: bool,
    /// Ports of the host's sockets. None is chosen as an automatic port, and blocks that contain one are skipped.
    pub(in crate::daemon) host_ports: PortSet,
    /// Slots whose interface name or index an interface of another tool has.
    pub(in crate::daemon) foreign_slots: BTreeSet<u16>,
}

impl Registry {
    /// Fails unless a new container can have this name and these static ports.
    ///
    /// # Errors
    ///
    /// [`Refusal::Taken`] if another container has the name or one of the ports.
    pub(in crate::daemon) fn check_available(&self, name: &str, ports: &PortSet) -> Result<(), Refusal> {
        self.check_new(&self.snapshot(), name, ports)
    }

    fn check_new(&self, containers: &Snapshot, name: &str, ports: &PortSet) -> Result<(), Refusal> {
        if containers.get(name).is_some() {
            return Err(Refusal::taken(format!(
                "a container is already called {name:?}: choose another name"
            )));
        }
        self.check_static_ports(containers, name, ports)
    }

    /// The lowest free slot, without the `foreign` ones.
    ///
    /// # Errors
    ///
    /// [`Refusal::Taken`] if there is none.
    pub(in crate::daemon) fn free_slot(&self, foreign: &BTreeSet<u16>) -> Result<u16, Refusal> {
        self.snapshot().free_slot(foreign)
    }

    /// Assigns a slot and ports to a new container, and writes its record in state `adding`, so that the next
    /// daemon can roll back an interrupted `add`.
    ///
    /// # Errors
    ///
    /// [`Refusal::Taken`] if other containers own a resource that it needs; an error if its record cannot be
    /// written.
    pub(in crate::daemon) fn admit(&self, admission: Admission) -> Result<ContainerRecord, Refusal> {
        let now = clock::since_boot()?;
        let mut state = self.state.lock();
        // Another container may have been admitted since the checks.
        self.check_new(&state.containers, &admission.name, &admission.ports.numbered)?;
        let static_ports = self.grant(&state, &admission.name, &admission.ports, &admission.host_ports)?;
        let slot = state.containers.free_slot(&admission.foreign_slots)?;
        let block = admission.block.unwrap_or(self.env.settings.block);
        check_block_size(block)?;
        let pool = Arc::make_mut(&mut state.pool);
        pool.skip_blocks_with(admission.host_ports);
        let ephemeral_ports = pool.allocate_to(&admission.name, block, now).map_err(Refusal::Taken)?;
        let owns_netns = admission.netns.is_none() && admission.pid.is_none();
        let of_process = admission.pid.map(|pid| PathBuf::from(format!("/proc/{pid}/ns/net")));
        let netns = admission.netns.or(of_process).unwrap_or_else(|| namespace::path_of(&admission.name));
        let record = ContainerRecord {
            name: admission.name,
            slot,
            netns,
            namespace: None,
            owns_netns,
            pid: admission.pid,
            owner: admission.owner,
            interface: admission.interface,
            ports: static_ports.ports,
            automatic_ports: static_ports.automatic,
            ephemeral_ports,
            draining: Vec::new(),
            ipv6: admission.ipv6,
            traffic: admission.traffic,
            labels: admission.labels,
            egress: None,
            ingress: None,
            inherit_sysctls: admission.inherit_sysctls,
            before: None,
            phase: Phase::Adding,
        };
        if let Err(error) = self.env.store.set_container(&record) {
            Arc::make_mut(&mut state.pool).cancel(ephemeral_ports);
            return Err(error.into());
        }
        self.insert(&mut state, Entry::new(record.clone(), false));
        Ok(record)
    }

    /// Reserves a network namespace for the container `name`, because a namespace can be one container only.
    ///
    /// # Errors
    ///
    /// [`Refusal::Taken`] if another container uses the namespace.
    pub(in crate::daemon) fn claim_netns(&self, name: &str, id: NetnsId) -> Result<(), Refusal> {
        let mut state = self.state.lock();
        let has_it = |record: &&ContainerRecord| record.namespace.is_some_and(|own| own.is_same(id));
        if let Some(other) = state.containers.records().find(has_it) {
            return Err(Refusal::taken(format!(
                "{} is already the network namespace of container {:?}: expected another one",
                other.netns.display(),
                other.name
            )));
        }
        self.change(&mut state, name, |entry| entry.record.namespace = Some(id));
        Ok(())
    }

    /// Reserves the ports of an update of a container in service. Returns the container's record, and its new
    /// static ports if the update changes them.
    ///
    /// # Errors
    ///
    /// [`Refusal::Taken`] if other containers have ports that it needs; an error if the container is not in
    /// service.
    pub(in crate::daemon) fn begin_update(
        &self,
        name: &str,
        ports: Option<&StaticPortRequest>,
        host_ports: &PortSet,
    ) -> Result<(ContainerRecord, Option<StaticPortGrant>), Refusal> {
        let mut state = self.state.lock();
        let entry = state.containers.entry(name)?;
        if entry.state() != ContainerState::Ready {
            return Err(Error::conflict(format!(
                "container {name:?} is {}: expected one in service",
                entry.state().name()
            ))
            .into());
        }
        let record = entry.record.clone();
        let granted = ports.map(|ports| self.grant(&state, name, ports, host_ports)).transpose()?;
        let pending = granted.as_ref().map(|granted| granted.ports.clone()).unwrap_or_default();
        self.change(&mut state, name, |entry| entry.pending_ports = pending);
        Ok((record, granted))
    }

    /// Releases the ports that an update has reserved.
    pub(in crate::daemon) fn cancel_update(&self, name: &str) {
        self.change(&mut self.state.lock(), name, |entry| entry.pending_ports = PortSet::default());
    }
}
