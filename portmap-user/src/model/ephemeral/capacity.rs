//! What a pool can still give.

use std::time::Duration;

use crate::model::ports::{PortRange, PortSet};

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

/// The ports of a pool, by use.
pub(super) struct Uses<'a> {
    pub(super) managed: &'a PortSet,
    /// Neither owned nor in quarantine.
    pub(super) free: PortSet,
    /// The containers' blocks.
    pub(super) owned: &'a [PortRange],
    /// The blocks in quarantine.
    pub(super) quarantined: Vec<PortRange>,
    /// Ports that processes of the host use.
    pub(super) used: &'a PortSet,
    /// Time until the next quarantined block is free.
    pub(super) next_free: Option<Duration>,
}

impl Uses<'_> {
    /// The capacity, with blocks from the size `smallest`.
    pub(super) fn capacity(self, smallest: u16) -> PoolCapacity {
        let Uses { managed, free, owned, quarantined, used, next_free } = self;
        let usable = free.difference(used);
        let quarantined_ports = PortSet::from(quarantined.clone()).intersection(managed).count();
        let sizes = (smallest.trailing_zeros()..u16::BITS).map(|bits| 1_u16 << bits);
        let blocks = sizes.filter_map(|size| {
            let with_size = |blocks: &[PortRange]| {
                blocks.iter().filter(|block| block.count() == usize::from(size)).count()
            };
            let row = BlockCapacity {
                size,
                free: aligned_blocks(&usable, size),
                owned: with_size(owned),
                quarantined: with_size(&quarantined),
            };
            let is_possible = aligned_blocks(managed, size) + row.owned + row.quarantined > 0;
            is_possible.then_some(row)
        });
        PoolCapacity {
            total: managed.count(),
            free: usable.count(),
            owned: managed.count() - free.count() - quarantined_ports,
            quarantined: quarantined_ports,
            host: free.count() - usable.count(),
            next_free,
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
