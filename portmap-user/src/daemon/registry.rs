//! The registry: the only owner of the containers' entries, of the pool of ephemeral ports, and of the port
//! map.
//!
//! A writer changes the entries under the registry's lock and publishes a snapshot. Readers use the snapshot,
//! so they never wait for a writer.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
};

use portmap_common::{
    slot::{SLOTS, veth_ifindex},
    tables::{PORTS, PortEntry},
};
use tracing::warn;

use super::env::Env;
use crate::{
    api::ContainerState,
    error::{Error, Failures, Result},
    kernel::{self, clock, namespace, port_table::PortTable},
    locks::{Rank, Ranked, RankedRw},
    model::{
        ContainerRecord, EphemeralPool, Limit, NetnsId, Phase, PortRange, PortSet, Process, TrafficSpec,
    },
};

/// All containers, and the owner of each port.
pub(super) struct Registry {
    env: Arc<Env>,
    /// The port map `pm_ports`, an array of atomics. Only the registry writes it, under the lock of `state`.
    ports: PortTable,
    state: Ranked<State>,
    /// The containers after the last change.
    published: RankedRw<Arc<Snapshot>>,
}

struct State {
    pool: EphemeralPool,
    containers: Snapshot,
}

/// The containers at one point in time, by name.
#[derive(Clone, Default)]
pub(super) struct Snapshot(BTreeMap<Arc<str>, Arc<Entry>>);

/// A container: its record, and the state that the daemon keeps in memory only.
#[derive(Clone)]
pub(super) struct Entry {
    /// Its desired state, as on disk.
    pub(super) record: ContainerRecord,
    /// Ports that a running update reserves for it.
    pending_ports: PortSet,
    /// Its interface is missing, and the daemon cannot recreate it.
    pub(super) is_broken: bool,
    /// An earlier daemon added it, and this one has not checked it yet.
    pub(super) is_unchecked: bool,
}

/// A new container before it has a slot and a block of ephemeral ports.
pub(super) struct Admission {
    pub(super) name: String,
    /// The path of an existing network namespace; `None` if the daemon creates one.
    pub(super) netns: Option<PathBuf>,
    pub(super) pid: Option<u32>,
    pub(super) owner: Option<Process>,
    pub(super) ports: PortSet,
    /// Size of its block of ephemeral ports; `None` for the daemon's default.
    pub(super) block: Option<u16>,
    pub(super) ipv6: bool,
    pub(super) traffic: TrafficSpec,
    pub(super) egress: Option<Limit>,
    pub(super) ingress: Option<Limit>,
    pub(super) inherit_sysctls: bool,
    /// Ports of the host's sockets. The pool skips blocks that contain one of them.
    pub(super) host_ports: PortSet,
    /// Slots whose interface name or index an interface of another tool has.
    pub(super) foreign_slots: BTreeSet<u16>,
}

/// The reason for which the registry refuses a request.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// Other containers own a requested resource. Some of them may have ended without the daemon noticing.
    #[error("{0}")]
    Taken(Error),
    /// Anything else.
    #[error(transparent)]
    Failed(#[from] Error),
}

impl Refusal {
    fn taken(message: impl Into<String>) -> Self {
        Self::Taken(Error::conflict(message))
    }

    /// Appends a sentence to the message.
    pub(super) fn and(self, more: &str) -> Self {
        let add = |error: Error| Error::new(error.kind, format!("{error}; {more}"));
        match self {
            Self::Taken(error) => Self::Taken(add(error)),
            Self::Failed(error) => Self::Failed(add(error)),
        }
    }
}

impl From<kernel::Error> for Refusal {
    fn from(error: kernel::Error) -> Self {
        Self::Failed(error.into())
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Taken(error) | Refusal::Failed(error) => error,
        }
    }
}

/// A port whose owner in the port map differs from the records.
pub(super) struct WrongPort {
    pub(super) port: u16,
    /// The name of the desired owner, or else of the owner in the map.
    pub(super) container: Option<String>,
    /// The slot of the owner in the map.
    pub(super) slot: u16,
    /// The desired owner; `None` for the host.
    pub(super) expected: Option<ContainerRecord>,
}

impl Entry {
    /// An entry for a container whose record this daemon has written.
    pub(super) fn new(record: ContainerRecord, is_broken: bool) -> Self {
        Self { record, pending_ports: PortSet::default(), is_broken, is_unchecked: false }
    }

    /// An entry for a container of an earlier daemon.
    pub(super) fn restored(record: ContainerRecord) -> Self {
        Self { is_unchecked: true, ..Self::new(record, false) }
    }

    /// The container's state in the API.
    pub(super) fn state(&self) -> ContainerState {
        match self.record.phase {
            Phase::Adding => ContainerState::Adding,
            Phase::Deleting => ContainerState::Deleting,
            Phase::Ready if self.is_broken => ContainerState::Broken,
            Phase::Ready => ContainerState::Ready,
        }
    }
}

impl Snapshot {
    /// The container called `name`.
    pub(super) fn get(&self, name: &str) -> Option<&Arc<Entry>> {
        self.0.get(name)
    }

    /// The entry of the container called `name`.
    ///
    /// # Errors
    ///
    /// If there is no such container.
    pub(super) fn entry(&self, name: &str) -> Result<&Entry> {
        self.get(name).map(AsRef::as_ref).ok_or_else(|| Error::no_container(name))
    }

    /// All containers, by name.
    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.0.values().map(AsRef::as_ref)
    }

    /// The records of all containers, by name.
    pub(super) fn records(&self) -> impl Iterator<Item = &ContainerRecord> {
        self.entries().map(|entry| &entry.record)
    }

    /// The records of the containers whose desired state is in service.
    pub(super) fn ready(&self) -> impl Iterator<Item = &ContainerRecord> {
        self.records().filter(|record| record.phase == Phase::Ready)
    }

    /// The record of a container whose desired state is in service.
    pub(super) fn ready_record(&self, name: &str) -> Option<ContainerRecord> {
        self.get(name).map(|entry| &entry.record).filter(|record| record.phase == Phase::Ready).cloned()
    }

    /// The names of all containers, by slot.
    pub(super) fn names_by_slot(&self) -> BTreeMap<u16, String> {
        self.records().map(|record| (record.slot, record.name.clone())).collect()
    }

    /// The slots of all containers.
    pub(super) fn slots(&self) -> BTreeSet<u16> {
        self.records().map(|record| record.slot).collect()
    }

    /// All ports of the containers whose desired state is in service.
    pub(super) fn owned_ports(&self) -> PortSet {
        let ranges: Vec<PortRange> =
            self.ready().flat_map(|record| record.all_ports().ranges().to_vec()).collect();
        ranges.into()
    }

    /// Number of containers.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The lowest slot that no container has, without the `foreign` ones.
    fn free_slot(&self, foreign: &BTreeSet<u16>) -> Result<u16, Refusal> {
        let taken = self.slots();
        (1..SLOTS)
            .find(|slot| !taken.contains(slot) && !foreign.contains(slot))
            .ok_or_else(|| Refusal::taken(format!("all {} slots are in use: delete a container", SLOTS - 1)))
    }
}

impl Registry {
    /// A registry of the containers of an earlier daemon.
    pub(super) fn new(
        env: Arc<Env>,
        ports: PortTable,
        pool: EphemeralPool,
        records: Vec<ContainerRecord>,
    ) -> Self {
        let restored = records
            .into_iter()
            .map(|record| (record.name.as_str().into(), Arc::new(Entry::restored(record))));
        let containers = Snapshot(restored.collect());
        let published = RankedRw::new(Rank::Snapshot, Arc::new(containers.clone()));
        Self { env, ports, state: Ranked::new(Rank::Registry, State { pool, containers }), published }
    }

    /// The containers after the last change.
    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        self.published.read().clone()
    }

    /// The owner of a port in the port map.
    pub(super) fn owner_of(&self, port: u16) -> PortEntry {
        self.ports.get(port)
    }

    /// Waits for the lock, as a check for `/healthz`.
    pub(super) fn probe(&self) {
        drop(self.state.lock());
    }

    /// Fails unless a new container can have this name and these static ports.
    ///
    /// # Errors
    ///
    /// [`Refusal::Taken`] if another container has the name or one of the ports.
    pub(super) fn check_available(&self, name: &str, ports: &PortSet) -> Result<(), Refusal> {
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
    pub(super) fn free_slot(&self, foreign: &BTreeSet<u16>) -> Result<u16, Refusal> {
        self.snapshot().free_slot(foreign)
    }

    /// Refuses static ports that the container `name` cannot own.
    fn check_static_ports(&self, containers: &Snapshot, name: &str, ports: &PortSet) -> Result<(), Refusal> {
        if ports.contains(0) {
            return Err(Error::usage("port 0 cannot be owned: expected ports between 1 and 65535").into());
        }
        let unmanaged = ports.difference(&self.env.settings.ports);
        if !unmanaged.is_empty() {
            let managed = if self.env.settings.ports.is_empty() {
                "none; start it with --ports".to_owned()
            } else {
                self.env.settings.ports.to_string()
            };
            return Err(Error::usage(format!(
                "the daemon does not manage the ports {unmanaged}: expected ports of {managed}"
            ))
            .into());
        }
        for entry in containers.entries().filter(|entry| entry.record.name != name) {
            let taken = ports.intersection(&entry.record.ports.union(&entry.pending_ports));
            if !taken.is_empty() {
                return Err(Refusal::taken(format!(
                    "the ports {taken} are owned by container {:?}",
                    entry.record.name
                )));
            }
        }
        Ok(())
    }

    /// Assigns a slot and ports to a new container, and writes its record in state `adding`, so that the next
    /// daemon can roll back an interrupted `add`.
    ///
    /// # Errors
    ///
    /// [`Refusal::Taken`] if other containers own a resource that it needs; an error if its record cannot be
    /// written.
    pub(super) fn admit(&self, admission: Admission) -> Result<ContainerRecord, Refusal> {
        let now = clock::since_boot()?;
        let mut state = self.state.lock();
        // Another container may have been admitted since the checks.
        self.check_new(&state.containers, &admission.name, &admission.ports)?;
        let slot = state.containers.free_slot(&admission.foreign_slots)?;
        state.pool.skip_blocks_with(admission.host_ports);
        let block = admission.block.unwrap_or(self.env.settings.block);
        let ephemeral_ports = state.pool.allocate_to(&admission.name, block, now).map_err(Refusal::Taken)?;
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
            ports: admission.ports,
            ephemeral_ports,
            ipv6: admission.ipv6,
            traffic: admission.traffic,
            egress: admission.egress,
            ingress: admission.ingress,
            inherit_sysctls: admission.inherit_sysctls,
            before: None,
            phase: Phase::Adding,
        };
        if let Err(error) = self.env.store.set_container(&record) {
            state.pool.cancel(ephemeral_ports);
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
    pub(super) fn claim_netns(&self, name: &str, id: NetnsId) -> Result<(), Refusal> {
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

    /// Puts a container into service: makes it the owner of its ports, and the host the owner of ports that
    /// it no longer has.
    pub(super) fn publish(&self, record: ContainerRecord) -> Arc<Entry> {
        let mut state = self.state.lock();
        let (owner, ports) = (self.port_entry(&record), record.all_ports());
        for port in ports.iter() {
            self.ports.set(port, owner);
        }
        if let Some(before) = state.containers.get(&record.name) {
            for port in before.record.all_ports().difference(&ports).iter() {
                self.ports.set(port, PortEntry::default());
            }
        }
        self.insert(&mut state, Entry::new(record, false))
    }

    /// Rewrites the flags of a container's ports.
    pub(super) fn publish_flags(&self, record: &ContainerRecord) {
        let _state = self.state.lock();
        let owner = self.port_entry(record);
        for port in record.all_ports().iter() {
            self.ports.set(port, owner);
        }
    }

    /// Makes the port map equal to the records.
    pub(super) fn publish_all(&self) {
        let state = self.state.lock();
        let mut owners = vec![PortEntry::default(); PORTS];
        for entry in state.containers.entries().filter(|entry| entry.state() == ContainerState::Ready) {
            let owner = self.port_entry(&entry.record);
            for port in entry.record.all_ports().iter() {
                owners[usize::from(port)] = owner;
            }
        }
        for (port, owner) in (0..=u16::MAX).zip(owners) {
            if self.ports.get(port) != owner {
                self.ports.set(port, owner);
            }
        }
    }

    /// Compares the port map with the records; returns the first port whose owner differs.
    pub(super) fn wrong_port(&self) -> Option<WrongPort> {
        let state = self.state.lock();
        let mut desired = vec![None; PORTS];
        for entry in state.containers.entries().filter(|entry| entry.state() == ContainerState::Ready) {
            for port in entry.record.all_ports().iter() {
                desired[usize::from(port)] = Some(&entry.record);
            }
        }
        let name_of = |slot| {
            let found = state.containers.records().find(|record| record.slot == slot);
            found.map(|record| record.name.clone())
        };
        (0..=u16::MAX).zip(desired).find_map(|(port, desired)| {
            let owner = self.ports.get(port);
            let expected = desired.map_or_else(PortEntry::default, |record| self.port_entry(record));
            (owner != expected).then(|| WrongPort {
                port,
                container: desired.map(|record| record.name.clone()).or_else(|| name_of(owner.slot)),
                slot: owner.slot,
                expected: desired.cloned(),
            })
        })
    }

    /// Takes a container out of service: makes the host the owner of its ports.
    pub(super) fn withdraw(&self, record: &ContainerRecord) {
        let _state = self.state.lock();
        let is_own = |port: &u16| self.ports.get(*port).slot == record.slot;
        for port in record.all_ports().iter().filter(is_own) {
            self.ports.set(port, PortEntry::default());
        }
    }

    /// Writes the record of the container `name` in state `deleting`, and returns it.
    ///
    /// # Errors
    ///
    /// If there is no such container, or its record cannot be written.
    pub(super) fn begin_removal(&self, name: &str) -> Result<ContainerRecord> {
        let mut record = self.snapshot().entry(name)?.record.clone();
        record.phase = Phase::Deleting;
        self.env.store.mark_deleting(&record)?;
        self.change(&mut self.state.lock(), name, |entry| entry.record.phase = Phase::Deleting);
        Ok(record)
    }

    /// Forgets a deprovisioned container. Its block is quarantined, unless the container was never in
    /// service.
    ///
    /// # Errors
    ///
    /// If its record cannot be removed; then the container stays in the registry.
    pub(super) fn forget(&self, record: &ContainerRecord) -> Result<()> {
        let (mut state, store) = (self.state.lock(), &self.env.store);
        if record.phase == Phase::Adding {
            store.remove_container(&record.name)?;
            state.pool.cancel(record.ephemeral_ports);
        } else {
            let mut pool = state.pool.clone();
            pool.release(&record.name, record.ephemeral_ports, clock::since_boot()?);
            // The quarantine is written first. A crash in between must not leave ports without owner and
            // quarantine.
            let written = store.set_quarantine(pool.quarantined());
            store.remove_container(&record.name)?;
            // On a full file system, the removal of the record can make room for the quarantine.
            if let Err(error) = written.or_else(|_full| store.set_quarantine(pool.quarantined())) {
                warn!("the quarantine of ports {} ends with this daemon: {error}", record.ephemeral_ports);
            }
            state.pool = pool;
        }
        state.containers.0.remove(record.name.as_str());
        self.publish_snapshot(&state);
        Ok(())
    }

    /// Reserves the ports of an update of a container in service. Returns the container's record.
    ///
    /// # Errors
    ///
    /// [`Refusal::Taken`] if another container has any of them; an error if the container is not in service.
    pub(super) fn begin_update(
        &self,
        name: &str,
        ports: Option<&PortSet>,
    ) -> Result<ContainerRecord, Refusal> {
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
        if let Some(ports) = ports {
            self.check_static_ports(&state.containers, name, ports)?;
        }
        self.change(&mut state, name, |entry| entry.pending_ports = ports.cloned().unwrap_or_default());
        Ok(record)
    }

    /// Releases the ports that an update has reserved.
    pub(super) fn cancel_update(&self, name: &str) {
        self.change(&mut self.state.lock(), name, |entry| entry.pending_ports = PortSet::default());
    }

    /// Those of `ports` that the container `name` does not own yet.
    ///
    /// # Errors
    ///
    /// [`Refusal::Taken`] if another container has any of them.
    pub(super) fn new_ports(&self, name: &str, ports: &PortSet) -> Result<PortSet, Refusal> {
        let containers = self.snapshot();
        let had = &containers.entry(name)?.record.ports;
        self.check_static_ports(&containers, name, ports)?;
        Ok(ports.difference(had))
    }

    /// Replaces the record of a container whose ports do not change.
    pub(super) fn set_record(&self, record: ContainerRecord) {
        let name = record.name.clone();
        self.change(&mut self.state.lock(), &name, |entry| entry.record = record);
    }

    /// Replaces a container's entry.
    pub(super) fn replace(&self, entry: Entry) {
        self.insert(&mut self.state.lock(), entry);
    }

    /// Sets whether a container's interface is missing and cannot be recreated.
    pub(super) fn set_broken(&self, name: &str, is_broken: bool) {
        self.change(&mut self.state.lock(), name, |entry| entry.is_broken = is_broken);
    }

    /// Sets whether a container of an earlier daemon must still be checked.
    pub(super) fn set_unchecked(&self, name: &str, is_unchecked: bool) {
        self.change(&mut self.state.lock(), name, |entry| entry.is_unchecked = is_unchecked);
    }

    /// Rewrites records that are missing on disk. Returns true if any was missing.
    ///
    /// # Errors
    ///
    /// All failures. A failure does not stop the others from being written.
    pub(super) fn restore_records(&self) -> Result<bool> {
        // The lock keeps files and entries consistent.
        let (state, mut failures, mut were_lost) = (self.state.lock(), Failures::default(), false);
        for record in state.containers.ready() {
            if !self.env.store.has_container(&record.name) {
                failures.note(self.env.store.set_container(record));
                were_lost = true;
            }
        }
        failures.into_result()?;
        Ok(were_lost)
    }

    /// The value of a container's ports in the port map.
    fn port_entry(&self, record: &ContainerRecord) -> PortEntry {
        let flags = self.env.port_flags(record);
        PortEntry { ifindex: veth_ifindex(record.slot), slot: record.slot, flags }
    }

    fn insert(&self, state: &mut State, entry: Entry) -> Arc<Entry> {
        let entry = Arc::new(entry);
        state.containers.0.insert(entry.record.name.as_str().into(), entry.clone());
        self.publish_snapshot(state);
        entry
    }

    fn change(&self, state: &mut State, name: &str, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = state.containers.0.get_mut(name) {
            change(Arc::make_mut(entry));
            self.publish_snapshot(state);
        }
    }

    /// Publishes the entries to the readers. The copy takes one pointer per container.
    fn publish_snapshot(&self, state: &State) {
        *self.published.write() = Arc::new(state.containers.clone());
    }
}
