//! Changes of a container's ephemeral ports while it is in service.

use std::{sync::Arc, time::Duration};

use portmap_common::tables::PortEntry;

use super::{entries::Registry, refusal::Refusal};
use crate::{
    error::Result,
    kernel::clock,
    model::{
        ContainerRecord, EphemeralPool, PortRange, PortSet,
        ephemeral::{check_block_size, resize::Resized},
    },
};

impl Registry {
    /// Reserves another block of `size` ports for a container, without those that the host uses. The caller
    /// holds the container's lock, and passes the present record.
    ///
    /// # Errors
    ///
    /// [`Refusal::Taken`] if no block of that size is free; an error if it is no valid size.
    pub(in crate::daemon) fn reserve_block(
        &self,
        record: &ContainerRecord,
        size: u16,
        host_ports: PortSet,
    ) -> Result<Resized, Refusal> {
        check_block_size(size)?;
        let now = clock::since_boot()?;
        let mut state = self.state.lock();
        let pool = Arc::make_mut(&mut state.pool);
        pool.skip_blocks_with(host_ports);
        let resized = pool.resize(&record.name, record.ephemeral_ports, &record.draining_ports(), size, now);
        resized.map_err(Refusal::Taken)
    }

    /// Returns ports that were reserved and never published.
    pub(in crate::daemon) fn cancel_block(&self, added: &PortSet) {
        let mut state = self.state.lock();
        for range in added.ranges() {
            Arc::make_mut(&mut state.pool).cancel(*range);
        }
    }

    /// Makes a container in service the owner of reserved ports, which its written record lists.
    pub(in crate::daemon) fn publish_added(&self, record: ContainerRecord, added: &PortSet) {
        let mut state = self.state.lock();
        let owner = self.port_entry(&record);
        for port in added.iter() {
            self.ports.set(port, owner);
        }
        let name = record.name.clone();
        self.change(&mut state, &name, |entry| entry.record = record);
    }

    /// Takes drained ports from a container: they are quarantined, and belong to the host. `after` is the
    /// container's record without them.
    ///
    /// # Errors
    ///
    /// If a file cannot be written; then the container keeps the ports.
    pub(in crate::daemon) fn release_drained(
        &self,
        after: ContainerRecord,
        drained: &[PortRange],
    ) -> Result<()> {
        let (mut state, store, now) = (self.state.lock(), &self.env.store, clock::since_boot()?);
        let mut pool = EphemeralPool::clone(&state.pool);
        for range in drained {
            pool.release(&after.name, *range, now);
        }
        // The quarantine is written first. After a crash in between, the next daemon finds the ports still
        // draining, and ignores their quarantine.
        store.set_quarantine(pool.quarantined())?;
        store.set_container(&after)?;
        state.pool = Arc::new(pool);
        for port in drained.iter().flat_map(|range| range.first()..=range.last()) {
            if self.owner_of(port).slot == after.slot {
                self.ports.set(port, PortEntry::default());
            }
        }
        let name = after.name.clone();
        self.change(&mut state, &name, |entry| entry.record = after);
        Ok(())
    }

    /// The names of the checked containers with ports that drain.
    pub(in crate::daemon) fn draining(&self) -> Vec<String> {
        let containers = self.snapshot();
        let draining = containers.entries().filter(|entry| {
            !entry.is_unchecked && !entry.record.draining.is_empty() && entry.record.is_ready()
        });
        draining.map(|entry| entry.record.name.clone()).collect()
    }
}

/// The latest end of a drain that begins now.
pub(in crate::daemon) fn drain_end(patience: Duration) -> Result<Duration> {
    Ok(clock::since_boot()?.saturating_add(patience))
}
