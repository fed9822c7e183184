//! The pool of ephemeral ports: aligned power-of-two blocks, one per container.
//!
//! A released block is quarantined before another container gets it, because peers may still hold its
//! connections: they keep them in `TIME_WAIT` for a minute, and may still send to them.

mod capacity;
pub mod resize;

use std::time::Duration;

use self::capacity::Uses;
pub use self::capacity::{BlockCapacity, PoolCapacity};
use super::ports::{PortRange, PortSet};
use crate::error::{Error, Result};

/// Minimum number of ephemeral ports of a container.
pub const MIN_BLOCK: u16 = 16;

/// Allocator of blocks of ephemeral ports.
#[derive(Clone, Debug)]
pub struct EphemeralPool {
    /// All ports of the pool.
    managed: PortSet,
    /// Ports that are neither allocated nor quarantined.
    free: PortSet,
    /// Duration of the quarantine.
    quarantine: Duration,
    /// Released blocks in quarantine, oldest first.
    quarantined: Vec<Quarantined>,
    /// Free blocks whose quarantine has expired and that were not allocated since, oldest first.
    expired: Vec<Quarantined>,
    /// Blocks allocated again to their previous container, with the quarantine that ended early.
    reclaimed: Vec<Quarantined>,
    /// Free ports that processes of the host use.
    used: PortSet,
}

/// A released block in quarantine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantined {
    /// Name of its previous container; `None` in records of earlier versions.
    pub name: Option<String>,
    /// Its ports.
    pub block: PortRange,
    /// When it was released, by the monotonic clock, which a restart of the daemon does not reset.
    pub since: Duration,
}

/// Fails unless `size` is a valid number of ephemeral ports per container.
pub fn check_block_size(size: u16) -> Result<()> {
    if !size.is_power_of_two() {
        return Err(Error::usage(format!(
            "{size} ephemeral ports per container: expected a power of two, such as {}",
            size.checked_next_power_of_two().unwrap_or(1 << 15).max(MIN_BLOCK)
        )));
    }
    if size < MIN_BLOCK {
        return Err(Error::usage(format!(
            "{size} ephemeral ports per container: expected at least {MIN_BLOCK}"
        )));
    }
    Ok(())
}

impl EphemeralPool {
    /// A pool in which nothing is allocated. Released blocks are quarantined for `quarantine`.
    pub fn new(managed: PortSet, quarantine: Duration) -> Self {
        Self {
            free: managed.clone(),
            managed,
            quarantine,
            quarantined: Vec::new(),
            expired: Vec::new(),
            reclaimed: Vec::new(),
            used: PortSet::default(),
        }
    }

    /// Allocates a block to a container: its previous one if that has this size and no other container has
    /// had it since, else a free one. The previous block needs no quarantine, because peers attribute its
    /// connections to the same container.
    pub fn allocate_to(&mut self, name: &str, size: u16, now: Duration) -> Result<PortRange> {
        check_block_size(size)?;
        self.release_expired(now);
        let is_own = |quarantined: &Quarantined| {
            let block = PortSet::from(quarantined.block);
            quarantined.name.as_deref() == Some(name)
                && block.count() == usize::from(size)
                && block.difference(&self.managed).is_empty()
                && block.intersection(&self.used).is_empty()
        };
        let own = if let Some(index) = self.quarantined.iter().rposition(is_own) {
            self.quarantined.remove(index)
        } else if let Some(index) = self.expired.iter().rposition(is_own) {
            let expired = self.expired.remove(index);
            self.free = self.free.difference(&expired.block.into());
            expired
        } else {
            return self.allocate(size, now);
        };
        let block = own.block;
        self.reclaimed.push(own);
        Ok(block)
    }

    /// Allocates the first free block of `size` ports that is aligned to its size. Blocks that were never
    /// allocated come first.
    ///
    /// A conflict if none is free.
    pub fn allocate(&mut self, size: u16, now: Duration) -> Result<PortRange> {
        check_block_size(size)?;
        self.release_expired(now);
        // A block with a used port is skipped as a whole, because the remainder is not aligned.
        let free = self.free.difference(&self.used);
        let never_allocated =
            self.expired.iter().fold(free.clone(), |free, expired| free.difference(&expired.block.into()));
        let first = |ports: &PortSet| ports.ranges().iter().find_map(|range| first_block(*range, size));
        let block = first(&never_allocated).or_else(|| first(&free)).ok_or_else(|| {
            Error::conflict(format!(
                "no aligned block of {size} ephemeral ports is free in {} ({} of {} ports are in use{}{}): delete a \
                 container or start the daemon with more --ephemeral-ports",
                self.managed,
                self.managed.count() - self.free.count() - self.quarantined_ports(),
                self.managed.count(),
                self.describe_quarantine(now),
                self.describe_used(),
            ))
        })?;
        self.take(block);
        Ok(block)
    }

    /// Allocates a free block. A previous container of any part of it can no longer reclaim that.
    fn take(&mut self, block: PortRange) {
        let block = PortSet::from(block);
        self.free = self.free.difference(&block);
        self.expired.retain(|expired| block.intersection(&expired.block.into()).is_empty());
    }

    /// Allocates a particular block, that of a restored container. A conflict if part of it is not free.
    pub fn reserve(&mut self, block: PortRange) -> Result<()> {
        let wanted = PortSet::from(block);
        let missing = wanted.difference(&self.free);
        if !missing.is_empty() {
            let why = if missing.difference(&self.managed).is_empty() { "in use" } else { "not managed" };
            return Err(Error::conflict(format!("the ephemeral ports {missing} are {why}")));
        }
        self.take(block);
        Ok(())
    }

    /// Returns a block that was allocated and never used, or a part of one, without quarantine.
    pub fn cancel(&mut self, block: PortRange) {
        if let Some(index) = self.reclaimed.iter().position(|reclaimed| reclaimed.block == block) {
            let reclaimed = self.reclaimed.remove(index);
            self.quarantined.push(reclaimed);
            self.quarantined.sort_by_key(|quarantined| quarantined.since);
        }
        if self.quarantined.iter().any(|quarantined| quarantined.block == block) {
            return;
        }
        self.free_managed(block);
    }

    fn free_managed(&mut self, block: PortRange) {
        // The block may come from an earlier, larger pool.
        self.free = self.free.union(&PortSet::from(block).intersection(&self.managed));
    }

    /// Releases a container's block into quarantine.
    pub fn release(&mut self, name: &str, block: PortRange, now: Duration) {
        // A block whose release an earlier daemon began is not allocated here, and may be in quarantine
        // already.
        self.take(block);
        self.quarantined.retain(|quarantined| quarantined.block != block);
        self.reclaimed.retain(|reclaimed| reclaimed.block != block);
        self.quarantined.push(Quarantined { name: Some(name.to_owned()), block, since: now });
        self.release_expired(now);
    }

    /// Continues the quarantine of a block that an earlier daemon recorded, unless part of it is in use.
    pub fn continue_quarantine(&mut self, quarantined: Quarantined, now: Duration) {
        let is_free = PortSet::from(quarantined.block).difference(&self.free).is_empty();
        if is_free && quarantined.since <= now {
            self.take(quarantined.block);
            self.quarantined.push(quarantined);
            self.quarantined.sort_by_key(|quarantined| quarantined.since);
            self.release_expired(now);
        }
    }

    /// The blocks in quarantine.
    pub fn quarantined(&self) -> &[Quarantined] {
        &self.quarantined
    }

    /// Frees the blocks whose quarantine has expired.
    fn release_expired(&mut self, now: Duration) {
        let has_expired =
            |quarantined: &Quarantined| now.saturating_sub(quarantined.since) >= self.quarantine;
        let count = self.quarantined.partition_point(has_expired);
        let expired: Vec<_> = self.quarantined.drain(..count).collect();
        for quarantined in expired {
            self.free_managed(quarantined.block);
            self.expired.push(quarantined);
        }
    }

    /// The capacity at the time `now`. `owned` are the containers' blocks, `used` the ports that processes of the
    /// host use: a block with one of them is not given.
    pub fn capacity(&self, owned: &[PortRange], used: &PortSet, now: Duration) -> PoolCapacity {
        let left =
            |quarantined: &Quarantined| self.quarantine.saturating_sub(now.saturating_sub(quarantined.since));
        // A quarantine that has ended is noticed with the next allocation.
        let (kept, over): (Vec<_>, Vec<_>) =
            self.quarantined.iter().partition(|quarantined| !left(quarantined).is_zero());
        let next_free = kept.iter().map(|quarantined| left(quarantined)).min();
        let [kept, over] =
            [kept, over].map(|blocks| blocks.iter().map(|block| block.block).collect::<Vec<_>>());
        let free = self.free.union(&PortSet::from(over).intersection(&self.managed));
        Uses { managed: &self.managed, free, owned, quarantined: kept, used, next_free }.capacity(MIN_BLOCK)
    }

    fn quarantined_ports(&self) -> usize {
        let managed =
            |quarantined: &Quarantined| PortSet::from(quarantined.block).intersection(&self.managed).count();
        self.quarantined.iter().map(managed).sum()
    }

    /// Describes the quarantine for an error message.
    fn describe_quarantine(&self, now: Duration) -> String {
        let Some(Quarantined { since, .. }) = self.quarantined.first() else { return String::new() };
        let left = self.quarantine.saturating_sub(now.saturating_sub(*since)).as_secs() + 1;
        format!(", {} are in quarantine, the first for another {left} s", self.quarantined_ports())
    }

    /// Describes the ports that the host's processes use for an error message.
    fn describe_used(&self) -> String {
        match self.used.intersection(&self.free).count() {
            0 => String::new(),
            count => format!(", and blocks with {count} ports of the host's connections are skipped"),
        }
    }

    /// Replaces the set of ports in use by processes of the host. Blocks that contain one are not allocated.
    pub fn skip_blocks_with(&mut self, used: PortSet) {
        self.used = used;
    }

    /// The ports that are neither allocated nor quarantined.
    pub fn free(&self) -> &PortSet {
        &self.free
    }
}

/// The lowest aligned block of `size` ports inside `range`.
fn first_block(range: PortRange, size: u16) -> Option<PortRange> {
    let first = range.first().checked_next_multiple_of(size)?;
    let last = first.checked_add(size - 1)?;
    (last <= range.last()).then(|| PortRange::new(first, last))?
}

#[cfg(test)]
mod tests;
