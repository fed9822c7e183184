//! Another block for a container in service.

use std::time::Duration;

use super::{EphemeralPool, check_block_size, first_block};
use crate::{
    error::Result,
    model::ports::{PortRange, PortSet},
};

/// Another block of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resized {
    /// The new block.
    pub block: PortRange,
    /// Those of its ports that the container did not own before.
    pub added: PortSet,
}

impl EphemeralPool {
    /// Allocates `size` ports to a container that owns the block `current`, and ports that drain. The new
    /// block overlaps the old one where that is possible, so that few ports drain: a smaller one is its first
    /// part, and a larger one extends it if its neighbours are free.
    ///
    /// # Errors
    ///
    /// A conflict if no block of that size is free.
    pub fn resize(
        &mut self,
        name: &str,
        current: PortRange,
        draining: &PortSet,
        size: u16,
        now: Duration,
    ) -> Result<Resized> {
        check_block_size(size)?;
        self.release_expired(now);
        let owned = draining.union(&current.into());
        let in_place = if usize::from(size) <= current.count() {
            first_block(current, size)
        } else {
            let usable = owned.union(&self.free.difference(&self.used));
            let extended = aligned_with(current, size)
                .filter(|block| PortSet::from(*block).difference(&usable).is_empty());
            extended.or_else(|| draining.ranges().iter().find_map(|range| first_block(*range, size)))
        };
        let block = match in_place {
            Some(block) => block,
            None => self.allocate_to(name, size, now)?,
        };
        let added = PortSet::from(block).difference(&owned);
        for range in added.ranges() {
            self.take(*range);
        }
        Ok(Resized { block, added })
    }
}

/// The block of `size` ports, aligned to its size, that contains the first port of `range`.
fn aligned_with(range: PortRange, size: u16) -> Option<PortRange> {
    let first = range.first() - range.first() % size;
    PortRange::new(first, first.checked_add(size - 1)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1000);
    const QUARANTINE: Duration = Duration::from_mins(1);

    fn pool() -> EphemeralPool {
        EphemeralPool::new("32768-36863".parse().expect("ports"), QUARANTINE)
    }

    fn set(text: &str) -> PortSet {
        text.parse().expect("ports")
    }

    fn resized(block: &str, added: &str) -> Resized {
        Resized { block: set(block).ranges()[0], added: set(added) }
    }

    #[test]
    fn pool_extends_a_block_in_place() {
        let mut pool = pool();
        let current = pool.allocate(1024, NOW).expect("a block");
        let larger = pool.resize("a", current, &PortSet::default(), 2048, NOW);
        assert_eq!(larger, Ok(resized("32768-34815", "33792-34815")));
        assert_eq!(pool.free(), &set("34816-36863"));
        // A rollback returns the ports without quarantine.
        pool.cancel(set("33792-34815").ranges()[0]);
        assert_eq!(pool.free(), &set("33792-36863"));
    }

    #[test]
    fn pool_moves_a_block_whose_neighbours_are_taken() {
        let mut pool = pool();
        let current = pool.allocate(1024, NOW).expect("a block");
        pool.allocate(1024, NOW).expect("its neighbour");
        let larger = pool.resize("a", current, &PortSet::default(), 2048, NOW).expect("another place");
        assert_eq!(larger, resized("34816-36863", "34816-36863"));
        let error = pool.resize("b", larger.block, &set("32768-33791"), 4096, NOW).expect_err("too large");
        assert!(error.message.contains("no aligned block of 4096"), "{error}");
        // The neighbour is in use by the host.
        let mut pool = self::pool();
        let current = pool.allocate(1024, NOW).expect("a block");
        pool.skip_blocks_with(set("34000"));
        let larger = pool.resize("a", current, &PortSet::default(), 2048, NOW).expect("another place");
        assert_eq!(larger.block, set("34816-36863").ranges()[0]);
    }

    #[test]
    fn pool_shrinks_a_block_to_its_first_part() {
        let mut pool = pool();
        let current = pool.allocate(2048, NOW).expect("a block");
        let smaller = pool.resize("a", current, &PortSet::default(), 256, NOW).expect("a part");
        assert_eq!(smaller, resized("32768-33023", ""));
        // The same size again takes the former ports back.
        let again = pool.resize("a", smaller.block, &set("33024-34815"), 2048, NOW);
        assert_eq!(again, Ok(resized("32768-34815", "")));
        assert_eq!(pool.resize("a", current, &PortSet::default(), 2048, NOW), again);
        assert!(pool.resize("a", current, &PortSet::default(), 100, NOW).is_err());
    }

    #[test]
    fn pool_moves_back_to_ports_that_drain() {
        let mut pool = pool();
        let current = pool.allocate(1024, NOW).expect("a block");
        pool.allocate(1024, NOW).expect("its neighbour");
        let moved = pool.resize("a", current, &PortSet::default(), 2048, NOW).expect("another place");
        let smaller = pool.resize("a", moved.block, &current.into(), 1024, NOW).expect("a part");
        assert_eq!(smaller, resized("34816-35839", ""));
        let draining = set("32768-33791,35840-36863");
        let larger = pool.resize("a", smaller.block, &draining, 2048, NOW).expect("in place");
        assert_eq!(larger, resized("34816-36863", ""));
        assert!(pool.free().is_empty());
    }
}
