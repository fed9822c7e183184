//! The containers' entries: changed under one lock, published as snapshots, and kept equal to the records on disk.

use std::{mem, sync::Arc};

use tracing::warn;

use super::{
    changes,
    snapshot::{Entry, Snapshot},
};
use crate::{
    daemon::env::Env,
    error::{Failures, Result},
    kernel::{clock, port_table::PortTable},
    locks::{Rank, Ranked, RankedRw},
    model::{ContainerRecord, EphemeralPool, Phase, port_choice::Released},
};

/// All containers, and the owner of each port.
pub(in crate::daemon) struct Registry {
    pub(super) env: Arc<Env>,
    /// The port map `pm_ports`, an array of atomics. Only the registry writes it, under the lock of `state`.
    pub(super) ports: PortTable,
    pub(super) state: Ranked<State>,
    /// The state after the last change.
    published: RankedRw<Published>,
}

pub(super) struct State {
    /// Shared with the readers; a change makes a copy.
    pub(super) pool: Arc<EphemeralPool>,
    pub(super) containers: Snapshot,
    /// The static ports that containers have lost lately.
    pub(super) released: Released,
}

/// The registry's state for readers.
#[derive(Clone)]
pub(in crate::daemon) struct Published {
    pub(in crate::daemon) containers: Arc<Snapshot>,
    /// The pool that has given these containers their blocks.
    pub(in crate::daemon) pool: Arc<EphemeralPool>,
}

impl Registry {
    /// A registry of the containers of an earlier daemon.
    pub(in crate::daemon) fn new(
        env: Arc<Env>,
        ports: PortTable,
        pool: EphemeralPool,
        records: Vec<ContainerRecord>,
    ) -> Self {
        let restored = records
            .into_iter()
            .map(|record| (record.name.as_str().into(), Arc::new(Entry::restored(record))));
        let containers = Snapshot(restored.collect());
        let pool = Arc::new(pool);
        let published = Published { containers: Arc::new(containers.clone()), pool: pool.clone() };
        let published = RankedRw::new(Rank::Snapshot, published);
        let state = State { pool, containers, released: Released::default() };
        Self { env, ports, state: Ranked::new(Rank::Registry, state), published }
    }

    /// The containers after the last change.
    pub(in crate::daemon) fn snapshot(&self) -> Arc<Snapshot> {
        self.published.read().containers.clone()
    }

    /// The containers and the pool of ephemeral ports after the last change.
    pub(in crate::daemon) fn published(&self) -> Published {
        self.published.read().clone()
    }

    /// Waits for the lock, as a check for `/healthz`.
    pub(in crate::daemon) fn probe(&self) {
        drop(self.state.lock());
    }

    /// Writes the record of the container `name` in state `deleting`, and returns it.
    ///
    /// # Errors
    ///
    /// If there is no such container, or its record cannot be written.
    pub(in crate::daemon) fn begin_removal(&self, name: &str) -> Result<ContainerRecord> {
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
    pub(in crate::daemon) fn forget(&self, record: &ContainerRecord) -> Result<()> {
        let (mut state, store) = (self.state.lock(), &self.env.store);
        if record.phase == Phase::Adding {
            store.remove_container(&record.name)?;
            Arc::make_mut(&mut state.pool).cancel(record.ephemeral_ports);
        } else {
            let (mut pool, now) = (EphemeralPool::clone(&state.pool), clock::since_boot()?);
            let draining = record.draining.iter().map(|draining| draining.ports);
            // The block is released last, because a container of this name gets back what it had last.
            for range in draining.chain([record.ephemeral_ports]) {
                pool.release(&record.name, range, now);
            }
            // The quarantine is written first. A crash in between must not leave ports without owner and
            // quarantine.
            let written = store.set_quarantine(pool.quarantined());
            store.remove_container(&record.name)?;
            // On a full file system, the removal of the record can make room for the quarantine.
            if let Err(error) = written.or_else(|_full| store.set_quarantine(pool.quarantined())) {
                warn!("the quarantine of ports {} ends with this daemon: {error}", record.ephemeral_ports);
            }
            state.pool = Arc::new(pool);
            Self::note_released(&mut state, record.ports.clone());
        }
        state.containers.0.remove(record.name.as_str());
        self.publish_snapshot(&state, &record.name);
        Ok(())
    }

    /// Replaces the record of a container whose ports do not change.
    pub(in crate::daemon) fn set_record(&self, record: ContainerRecord) {
        let name = record.name.clone();
        self.change(&mut self.state.lock(), &name, |entry| entry.record = record);
    }

    /// Replaces a container's entry.
    pub(in crate::daemon) fn replace(&self, entry: Entry) {
        self.insert(&mut self.state.lock(), entry);
    }

    /// Sets whether a container's interface is missing and cannot be recreated.
    pub(in crate::daemon) fn set_broken(&self, name: &str, is_broken: bool) {
        self.change(&mut self.state.lock(), name, |entry| entry.is_broken = is_broken);
    }

    /// Sets whether a container of an earlier daemon must still be checked.
    pub(in crate::daemon) fn set_unchecked(&self, name: &str, is_unchecked: bool) {
        self.change(&mut self.state.lock(), name, |entry| entry.is_unchecked = is_unchecked);
    }

    /// Rewrites records that are missing on disk. Returns true if any was missing.
    ///
    /// # Errors
    ///
    /// All failures. A failure does not stop the others from being written.
    pub(in crate::daemon) fn restore_records(&self) -> Result<bool> {
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

    pub(super) fn insert(&self, state: &mut State, mut entry: Entry) -> Arc<Entry> {
        if let Some(known) = state.containers.get(&entry.record.name) {
            entry.life = known.life;
        }
        let entry = Arc::new(entry);
        state.containers.0.insert(entry.record.name.as_str().into(), entry.clone());
        self.publish_snapshot(state, &entry.record.name);
        entry
    }

    pub(super) fn change(&self, state: &mut State, name: &str, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = state.containers.0.get_mut(name) {
            change(Arc::make_mut(entry));
            self.publish_snapshot(state, name);
        }
    }

    /// Publishes the entries and the pool to the readers after a change of the container `name`, and sends the
    /// event of that change. The copy takes one pointer per container.
    fn publish_snapshot(&self, state: &State, name: &str) {
        let containers = Arc::new(state.containers.clone());
        let now = Published { containers: containers.clone(), pool: state.pool.clone() };
        let before = mem::replace(&mut *self.published.write(), now).containers;
        // Still under the lock of `state`, so events are in the order of the changes.
        let entry = |snapshot: &Snapshot| snapshot.get(name).cloned();
        changes::emit(&self.env.events, entry(&before).as_deref(), entry(&containers).as_deref());
    }
}
