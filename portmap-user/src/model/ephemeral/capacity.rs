//! What a pool can still give.

use std::time::Duration;

use super::{EphemeralPool, MIN_BLOCK, PortRange, PortSet};

/// The ports and blocks of a pool at one point in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolCapacity {
    /// Number of ports of the pool.
    pub total: usize,
    /// Ports that a container can get.
    pub free: usize,
    /// Ports of containers.
    pub owned: usize,
    /// Ports in quarantine.
    pub quarantined: usize,
    /// Ports that processes of the host use, and that no container owns.
    pub host: usize,
    /// Time until the next quarantined block is free; `None` if no block is in quarantine.
    pub next_free: Option<Duration>,
    /// The blocks, by ascending size: each size of which the pool could contain a block, or a container has one.
    pub blocks: Vec<BlockCapacity>,
}

/// The blocks of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockCapacity {
    /// Number of ports of a block.
    pub size: u16,
    /// How many containers can get a block of this size, if no other size is requested.
    pub free: usize,
    /// How many containers have one.
    pub owned: usize,
    /// How many are in quarantine.
    pub quarantined: usize,
}

impl EphemeralPool {
    /// The capacity at the time `now`. `owned` are the containers' blocks, `used` the ports that processes of the
    /// host use: a block with one of them is not given.
    pub fn capacity(&self, owned: &[PortRange], used: &PortSet, now: Duration) -> PoolCapacity {
        let end = |since: Duration| since.saturating_add(self.quarantine);
        // A quarantine that has ended is noticed with the next allocation.
        let is_over = |since: Duration| now.saturating_sub(since) >= self.quarantine;
        let (over, kept): (Vec<_>, Vec<_>) =
            self.quarantined.iter().partition(|quarantined| is_over(quarantined.since));
        let over: PortSet = over.iter().map(|quarantined| quarantined.block).collect::<Vec<_>>().into();
        let free = self.free.union(&over.intersection(&self.managed));
        let usable = free.difference(used);
        let kept_ports: PortSet = kept.iter().map(|quarantined| quarantined.block).collect::<Vec<_>>().into();
        let quarantined = kept_ports.intersection(&self.managed).count();
        let sizes = (MIN_BLOCK.trailing_zeros()..u16::BITS).map(|bits| 1_u16 << bits);
        let blocks = sizes.filter_map(|size| {
            let has_size = |block: &PortRange| block.count() == usize::from(size);
            let row = BlockCapacity {
                size,
                free: aligned_blocks(&usable, size),
                owned: owned.iter().filter(|block| has_size(block)).count(),
                quarantined: kept.iter().filter(|quarantined| has_size(&quarantined.block)).count(),
            };
            let is_possible = aligned_blocks(&self.managed, size) + row.owned + row.quarantined > 0;
            is_possible.then_some(row)
        });
        PoolCapacity {
            total: self.managed.count(),
            free: usable.count(),
            owned: self.managed.count() - free.count() - quarantined,
            quarantined,
            host: free.count() - usable.count(),
            next_free: kept.iter().map(|quarantined| end(quarantined.since).saturating_sub(now)).min(),
            blocks: blocks.collect(),
        }
    }
}

/// Number of blocks of `size` ports, aligned to their size, in a set.
fn aligned_blocks(ports: &PortSet, size: u16) -> usize {
    let size = usize::from(size);
    let of_range = |range: &PortRange| {
        let first = usize::from(range.first()).div_ceil(size);
        ((usize::from(range.last()) + 1) / size).saturating_sub(first)
    };
    ports.ranges().iter().map(of_range).sum()
}
