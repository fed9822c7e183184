//! The containers at one point in time.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use portmap_common::slot::SLOTS;

use super::refusal::Refusal;
use crate::{
    api::ContainerState,
    error::{Error, Result},
    model::{ContainerRecord, Phase, PortRange, PortSet},
};

/// The containers at one point in time, by name.
#[derive(Clone, Default)]
pub(in crate::daemon) struct Snapshot(pub(super) BTreeMap<Arc<str>, Arc<Entry>>);

/// A container: its record, and the state that the daemon keeps in memory only.
#[derive(Clone)]
pub(in crate::daemon) struct Entry {
    /// Its desired state, as on disk.
    pub(in crate::daemon) record: ContainerRecord,
    /// Ports that a running update reserves for it.
    pub(super) pending_ports: PortSet,
    /// Its interface is missing, and the daemon cannot recreate it.
    pub(in crate::daemon) is_broken: bool,
    /// An earlier daemon added it, and this one has not checked it yet.
    pub(in crate::daemon) is_unchecked: bool,
    /// Distinguishes it from other containers of this daemon, earlier ones of the same name included.
    pub(in crate::daemon) life: Life,
}

/// The life of a container, from its addition or the daemon's start to its removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::daemon) struct Life(u64);

impl Life {
    /// A life that differs from all before.
    pub(in crate::daemon) fn next() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Self(LAST.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

impl Entry {
    /// An entry for a container whose record this daemon has written. The registry knows its life if it has an
    /// entry already.
    pub(in crate::daemon) fn new(record: ContainerRecord, is_broken: bool) -> Self {
        Self { record, pending_ports: PortSet::default(), is_broken, is_unchecked: false, life: Life::next() }
    }

    /// An entry for a container of an earlier daemon.
    pub(in crate::daemon) fn restored(record: ContainerRecord) -> Self {
        Self { is_unchecked: true, ..Self::new(record, false) }
    }

    /// Its static ports, with those that a running update reserves.
    fn static_ranges(&self) -> Vec<PortRange> {
        [self.record.ports.ranges(), self.pending_ports.ranges()].concat()
    }

    /// The container's state in the API.
    pub(in crate::daemon) fn state(&self) -> ContainerState {
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
    pub(in crate::daemon) fn get(&self, name: &str) -> Option<&Arc<Entry>> {
        self.0.get(name)
    }

    /// The entry of the container called `name`.
    ///
    /// # Errors
    ///
    /// If there is no such container.
    pub(in crate::daemon) fn entry(&self, name: &str) -> Result<&Entry> {
        self.get(name).map(AsRef::as_ref).ok_or_else(|| Error::no_container(name))
    }

    /// All containers, by name.
    pub(in crate::daemon) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.0.values().map(AsRef::as_ref)
    }

    /// The records of all containers, by name.
    pub(in crate::daemon) fn records(&self) -> impl Iterator<Item = &ContainerRecord> {
        self.entries().map(|entry| &entry.record)
    }

    /// The records of the containers whose desired state is in service.
    pub(in crate::daemon) fn ready(&self) -> impl Iterator<Item = &ContainerRecord> {
        self.records().filter(|record| record.phase == Phase::Ready)
    }

    /// The entries of the containers whose desired state is in service.
    pub(in crate::daemon) fn ready_entries(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.0.values().filter(|entry| entry.record.phase == Phase::Ready)
    }

    /// The record of a container whose desired state is in service.
    pub(in crate::daemon) fn ready_record(&self, name: &str) -> Option<ContainerRecord> {
        self.get(name).map(|entry| &entry.record).filter(|record| record.phase == Phase::Ready).cloned()
    }

    /// The names of all containers, by slot.
    pub(in crate::daemon) fn names_by_slot(&self) -> BTreeMap<u16, String> {
        self.records().map(|record| (record.slot, record.name.clone())).collect()
    }

    /// The slots of all containers.
    pub(in crate::daemon) fn slots(&self) -> BTreeSet<u16> {
        self.records().map(|record| record.slot).collect()
    }

    /// All ports of the containers whose desired state is in service.
    pub(in crate::daemon) fn owned_ports(&self) -> PortSet {
        let ranges: Vec<PortRange> =
            self.ready().flat_map(|record| record.all_ports().ranges().to_vec()).collect();
        ranges.into()
    }

    /// The static ports of all containers, with those that running updates reserve.
    pub(in crate::daemon) fn static_ports(&self) -> PortSet {
        self.entries().flat_map(Entry::static_ranges).collect::<Vec<_>>().into()
    }

    /// The same without those of the container `name`.
    pub(in crate::daemon) fn static_ports_except(&self, name: &str) -> PortSet {
        let others = self.entries().filter(|entry| entry.record.name != name);
        others.flat_map(Entry::static_ranges).collect::<Vec<_>>().into()
    }

    /// Number of containers.
    pub(in crate::daemon) fn len(&self) -> usize {
        self.0.len()
    }

    /// The lowest slot that no container has, without the `foreign` ones.
    pub(super) fn free_slot(&self, foreign: &BTreeSet<u16>) -> Result<u16, Refusal> {
        let taken = self.slots();
        (1..SLOTS)
            .find(|slot| !taken.contains(slot) && !foreign.contains(slot))
            .ok_or_else(|| Refusal::taken(format!("all {} slots are in use: delete a container", SLOTS - 1)))
    }
}
