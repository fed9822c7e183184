//! The ephemeral ports: aligned power-of-two blocks, one for each container.
//!
//! A block that is given back rests before somebody else has it, because peers may remember its connections: they keep the
//! end of one in mind for a minute (`TIME_WAIT`), and may still send to it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    ports::{PortRange, PortSet},
};

/// Smallest number of ephemeral ports that a container can have.
pub const SMALLEST_BLOCK: u16 = 16;

/// Hands out blocks and takes them back.
#[derive(Clone, Debug)]
pub struct EphemeralPool {
    managed: PortSet,
    free: PortSet,
    rest: Duration,
    /// Blocks that have been given back; the oldest first.
    resting: Vec<Resting>,
    /// Blocks that have rested long enough and that nobody has had since; the oldest first. They are free.
    rested: Vec<Resting>,
    /// Blocks that who had them before has again, as they rested until then.
    again: Vec<Resting>,
    /// Ports that somebody else uses, although they are free here.
    used: PortSet,
}

/// A block that has been given back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resting {
    /// Who had it. None in what an earlier version has written down.
    #[serde(default)]
    pub name: Option<String>,
    /// Its ports.
    pub block: PortRange,
    /// Since when it rests, by the monotonic clock, which goes on when a daemon is replaced.
    pub since: Duration,
}

/// Checks a number of ports per container.
pub fn check_block_size(size: u16) -> Result<()> {
    if !size.is_power_of_two() {
        return Err(Error::usage(format!(
            "{size} ephemeral ports per container: expected a power of two, such as {}",
            size.checked_next_power_of_two().unwrap_or(1 << 15).max(SMALLEST_BLOCK)
        )));
    }
    if size < SMALLEST_BLOCK {
        return Err(Error::usage(format!(
            "{size} ephemeral ports per container: expected at least {SMALLEST_BLOCK}"
        )));
    }
    Ok(())
}

impl EphemeralPool {
    /// A pool of which nothing is given out yet, and in which blocks rest for some time.
    pub fn new(managed: PortSet, rest: Duration) -> Self {
        Self {
            free: managed.clone(),
            managed,
            rest,
            resting: Vec::new(),
            rested: Vec::new(),
            again: Vec::new(),
            used: PortSet::default(),
        }
    }

    /// A block for a container: that which it had, if nobody else has had it since and it has this size, or else a free one. Peers that
    /// remember its connections remember them as of the same container.
    pub fn allocate_to(&mut self, name: &str, size: u16, now: Duration) -> Result<PortRange> {
        check_block_size(size)?;
        self.wake(now);
        let is_own = |resting: &Resting| {
            let block = PortSet::from(resting.block);
            resting.name.as_deref() == Some(name)
                && block.count() == usize::from(size)
                && block.difference(&self.managed).is_empty()
                && block.intersection(&self.used).is_empty()
        };
        let resting = if let Some(place) = self.resting.iter().rposition(is_own) {
            self.resting.remove(place)
        } else if let Some(place) = self.rested.iter().rposition(is_own) {
            let rested = self.rested.remove(place);
            self.free = self.free.difference(&rested.block.into());
            rested
        } else {
            return self.allocate(size, now);
        };
        let block = resting.block;
        self.again.push(resting);
        Ok(block)
    }

    /// The first free block of `size` ports whose first port is a multiple of `size`, of those that nobody has had as long as
    /// there are any.
    ///
    /// A conflict if there is none.
    pub fn allocate(&mut self, size: u16, now: Duration) -> Result<PortRange> {
        check_block_size(size)?;
        self.wake(now);
        // A block is passed over as a whole: what is left of it is not aligned.
        let free = self.free.difference(&self.used);
        let unused =
            self.rested.iter().fold(free.clone(), |free, rested| free.difference(&rested.block.into()));
        let first = |ports: &PortSet| ports.ranges().iter().find_map(|range| first_block(*range, size));
        let block = first(&unused).or_else(|| first(&free)).ok_or_else(|| {
            Error::conflict(format!(
                "no aligned block of {size} ephemeral ports is free in {} ({} of {} ports are in use{}{}): delete a \
                 container or start the daemon with more --ephemeral-ports",
                self.managed,
                self.managed.count() - self.free.count() - self.number_resting(),
                self.managed.count(),
                self.about_resting(now),
                self.about_used(),
            ))
        })?;
        self.take(block);
        Ok(block)
    }

    /// Takes a block that is free. Who has had part of it before has lost it.
    fn take(&mut self, block: PortRange) {
        let block = PortSet::from(block);
        self.free = self.free.difference(&block);
        self.rested.retain(|rested| block.intersection(&rested.block.into()).is_empty());
    }

    /// Takes a particular block, that of a container found again. A conflict if part of it is not free.
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

    /// Gives a block back that nobody has used.
    pub fn cancel(&mut self, block: PortRange) {
        if let Some(place) = self.again.iter().position(|resting| resting.block == block) {
            let resting = self.again.remove(place);
            self.resting.push(resting);
            self.resting.sort_by_key(|resting| resting.since);
        }
        if self.resting.iter().any(|resting| resting.block == block) {
            return;
        }
        self.free_again(block);
    }

    fn free_again(&mut self, block: PortRange) {
        // Only what is managed: the block may come from a pool that was larger.
        self.free = self.free.union(&PortSet::from(block).intersection(&self.managed));
    }

    /// Gives back the block that a container had.
    pub fn release(&mut self, name: &str, block: PortRange, now: Duration) {
        // That of a container whose removal an earlier daemon began was not taken from this pool, and may rest already.
        self.take(block);
        self.resting.retain(|resting| resting.block != block);
        self.again.retain(|resting| resting.block != block);
        self.resting.push(Resting { name: Some(name.to_owned()), block, since: now });
        self.wake(now);
    }

    /// Has a block, given back to another pool, rest as long as is left. What is not free of it belongs to somebody.
    pub fn rest(&mut self, resting: Resting, now: Duration) {
        let is_free = PortSet::from(resting.block).difference(&self.free).is_empty();
        if is_free && resting.since <= now {
            self.take(resting.block);
            self.resting.push(resting);
            self.resting.sort_by_key(|resting| resting.since);
            self.wake(now);
        }
    }

    /// The blocks that rest.
    pub fn resting(&self) -> &[Resting] {
        &self.resting
    }

    /// Ends the rest of those that have had enough of it.
    fn wake(&mut self, now: Duration) {
        let rest = self.rest;
        let enough = self.resting.partition_point(|resting| now.saturating_sub(resting.since) >= rest);
        let rested: Vec<_> = self.resting.drain(..enough).collect();
        for resting in rested {
            self.free_again(resting.block);
            self.rested.push(resting);
        }
    }

    fn number_resting(&self) -> usize {
        let managed = |resting: &Resting| PortSet::from(resting.block).intersection(&self.managed).count();
        self.resting.iter().map(managed).sum()
    }

    /// What there is to say of blocks that rest.
    fn about_resting(&self, now: Duration) -> String {
        let Some(Resting { since, .. }) = self.resting.first() else { return String::new() };
        let left = self.rest.saturating_sub(now.saturating_sub(*since)).as_secs() + 1;
        format!(", {} rest, the first for another {left} s", self.number_resting())
    }

    /// What there is to say of blocks that somebody else uses.
    fn about_used(&self) -> String {
        match self.used.intersection(&self.free).count() {
            0 => String::new(),
            count => format!(", blocks with {count} ports of the host's connections are passed over"),
        }
    }

    /// Has blocks passed over in which others, processes of the host, use ports; instead of those that were before.
    pub fn pass_over(&mut self, used: PortSet) {
        self.used = used;
    }

    /// The ports that no container has.
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
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_hours(1);

    fn pool(text: &str) -> EphemeralPool {
        EphemeralPool::new(text.parse().expect("a port list"), Duration::ZERO)
    }

    /// All blocks of `size` that fit, until there are no more.
    fn drain(pool: &mut EphemeralPool, size: u16) -> Vec<PortRange> {
        std::iter::from_fn(|| pool.allocate(size, NOW).ok()).collect()
    }

    #[test]
    fn as_many_blocks_as_fit_aligned() {
        for (ports, size, count) in [
            ("32768-57344", 1024, 24),
            ("32768-57344", 512, 48),
            ("30001-30999", 16, 61),
            ("30001-30999", 256, 3),
            ("30001-30999", 512, 1),
            ("64512-65535", 1024, 1),
            ("32768-65535", 32768, 1),
            ("40000-40015,40032-40047", 32, 0),
        ] {
            assert_eq!(drain(&mut pool(ports), size).len(), count, "{ports} in blocks of {size}");
        }
    }

    #[test]
    fn blocks_are_aligned_disjoint_and_first_fit() {
        let blocks = drain(&mut pool("30001-30999"), 16);
        assert_eq!(blocks[0], PortRange::new(30016, 30031).expect("a range"));
        for (place, block) in blocks.iter().enumerate() {
            assert_eq!(block.first() % 16, 0);
            assert_eq!(block.count(), 16);
            assert_eq!(usize::from(block.first()), 30016 + 16 * place);
        }
    }

    #[test]
    fn the_last_port_can_be_given_out() {
        let mut pool = pool("65520-65535");
        assert_eq!(pool.allocate(16, NOW).expect("a block").last(), 65535);
        assert!(pool.free().is_empty());
    }

    #[test]
    fn a_released_block_is_free_again() {
        let mut pool = pool("32768-34815");
        let first = pool.allocate(1024, NOW).expect("a block");
        let second = pool.allocate(1024, NOW).expect("a block");
        let error = pool.allocate(1024, NOW).expect_err("nothing is left");
        assert_eq!(error.kind, crate::error::Kind::Conflict);
        assert!(error.message.contains("2048 of 2048 ports are in use"), "{error}");
        pool.release("a", first, NOW);
        assert_eq!(pool.allocate(1024, NOW), Ok(first));
        pool.release("b", second, NOW);
        pool.reserve(second).expect("it is free");
        assert!(pool.reserve(second).expect_err("it is taken").message.contains("in use"));
        assert!(pool.reserve(PortRange::new(1024, 2047).expect("a range")).is_err());
    }

    #[test]
    fn a_block_rests_before_it_is_given_out_again() {
        let rest = Duration::from_mins(1);
        let mut pool = EphemeralPool::new("32768-34815".parse().expect("ports"), rest);
        let (first, second) =
            (pool.allocate(1024, NOW).expect("a block"), pool.allocate(1024, NOW).expect("a block"));
        pool.release("a", first, NOW);
        let error = pool.allocate(1024, NOW).expect_err("it rests");
        assert!(
            error.message.contains("1024 of 2048 ports are in use, 1024 rest, the first for another"),
            "{error}"
        );
        pool.wake(NOW + rest);
        assert_eq!(pool.allocate(1024, NOW), Ok(first));
        pool.release("b", second, NOW);
        assert!(pool.reserve(second).expect_err("it rests").message.contains("in use"));
    }

    #[test]
    fn a_name_that_comes_back_has_its_block_again() {
        let rest = Duration::from_mins(1);
        let mut pool = EphemeralPool::new("32768-34815".parse().expect("ports"), rest);
        let first = pool.allocate_to("a", 1024, NOW).expect("a block");
        for restart in 1..8 {
            pool.release("a", first, NOW + restart * rest / 10);
            assert_eq!(pool.allocate_to("a", 1024, NOW + restart * rest / 10), Ok(first));
        }
        pool.release("a", first, NOW + rest);
        let second = pool.allocate_to("b", 1024, NOW + rest).expect("the other one");
        assert_ne!(second, first);
        assert!(pool.allocate_to("c", 1024, NOW + rest).is_err(), "the other one rests");
        assert!(pool.allocate_to("a", 512, NOW + rest).is_err(), "it had a larger one");
        // An attempt that comes to nothing leaves it as it was.
        assert_eq!(pool.allocate_to("a", 1024, NOW + rest), Ok(first));
        pool.cancel(first);
        assert!(pool.allocate_to("c", 1024, NOW + rest).is_err(), "it rests again");
        assert_eq!(pool.allocate_to("c", 1024, NOW + rest + rest), Ok(first));
    }

    #[test]
    fn a_block_is_kept_for_its_name_as_long_as_there_are_unused_ones() {
        let mut pool = pool("32768-36863");
        let first = pool.allocate_to("a", 1024, NOW).expect("a block");
        pool.release("a", first, NOW);
        let second = pool.allocate_to("b", 1024, NOW).expect("an unused one");
        assert_ne!(second, first);
        assert_eq!(pool.allocate_to("a", 1024, NOW), Ok(first));
        pool.release("a", first, NOW);
        for name in ["c", "d", "e"] {
            pool.allocate_to(name, 1024, NOW).expect("a block");
        }
        // It was the last one that was free.
        assert!(pool.allocate_to("a", 1024, NOW).is_err());
        pool.release("e", first, NOW);
        pool.reserve(first).expect("it is free");
        pool.cancel(first);
        assert_eq!(pool.allocate_to("a", 1024, NOW), Ok(first));
    }

    #[test]
    fn a_block_rests_once_although_it_is_released_twice() {
        let (ports, rest): (PortSet, _) = ("32768-33791".parse().expect("ports"), Duration::from_mins(1));
        let mut pool = EphemeralPool::new(ports, rest);
        let block = PortRange::new(32768, 33791).expect("a range");
        pool.release("a", block, NOW);
        pool.release("a", block, NOW + rest / 2);
        assert!(pool.allocate(1024, NOW + rest).is_err(), "it rests since the second time");
        assert_eq!(pool.allocate(1024, NOW + rest + rest / 2), Ok(block));
        pool.wake(NOW + 4 * rest);
        assert!(pool.free().is_empty(), "it is in use");
    }

    #[test]
    fn a_block_rests_in_the_next_pool_as_long_as_is_left() {
        let (ports, rest): (PortSet, _) = ("32768-34815".parse().expect("ports"), Duration::from_mins(1));
        let mut pool = EphemeralPool::new(ports.clone(), rest);
        let first = pool.allocate(1024, NOW).expect("a block");
        pool.release("a", first, NOW);
        let mut next = EphemeralPool::new(ports.clone(), rest);
        let later = NOW + rest / 2;
        for resting in pool.resting() {
            next.rest(resting.clone(), later);
        }
        let second = next.allocate(1024, later).expect("the other one");
        assert!(next.allocate(1024, later).is_err());
        assert_eq!(next.allocate(1024, NOW + rest), Ok(first));
        // What somebody has does not rest, and neither does what is from another boot, or has rested.
        for (since, now) in [(NOW, NOW), (NOW + rest, NOW), (NOW, NOW + rest)] {
            next.rest(Resting { name: None, block: second, since }, now);
            assert_eq!(next.resting(), []);
        }
        let mut free = EphemeralPool::new(ports, rest);
        free.rest(Resting { name: None, block: first, since: NOW + rest }, NOW);
        assert_eq!(free.allocate(1024, NOW), Ok(first));
    }

    #[test]
    fn blocks_that_others_use_are_passed_over() {
        let mut pool = pool("32768-34815");
        pool.pass_over("33000".parse().expect("a port"));
        assert_eq!(pool.allocate(1024, NOW).expect("the other").first(), 33792);
        let error = pool.allocate(1024, NOW).expect_err("somebody uses it");
        assert!(error.message.contains("blocks with 1 ports of the host's connections"), "{error}");
        pool.pass_over(PortSet::default());
        assert_eq!(pool.allocate(1024, NOW).expect("nobody uses it").first(), 32768);
    }

    #[test]
    fn odd_block_sizes_are_refused() {
        for size in [0, 1, 8, 15, 100, 1023] {
            assert!(check_block_size(size).is_err(), "{size}");
        }
        for size in [16, 1024, 32768] {
            assert!(check_block_size(size).is_ok(), "{size}");
        }
    }
}
