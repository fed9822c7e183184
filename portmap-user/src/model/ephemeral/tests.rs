//! Allocation of blocks, and their quarantine.

use super::*;

const NOW: Duration = Duration::from_hours(1);

fn pool(text: &str) -> EphemeralPool {
    EphemeralPool::new(text.parse().expect("a port list"), Duration::ZERO)
}

/// Allocates blocks of `size` until the pool is exhausted.
fn drain(pool: &mut EphemeralPool, size: u16) -> Vec<PortRange> {
    std::iter::from_fn(|| pool.allocate(size, NOW).ok()).collect()
}

#[test]
fn pool_allocates_every_aligned_block() {
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
fn pool_blocks_are_aligned_disjoint_and_first_fit() {
    let blocks = drain(&mut pool("30001-30999"), 16);
    assert_eq!(blocks[0], PortRange::new(30016, 30031).expect("a range"));
    for (index, block) in blocks.iter().enumerate() {
        assert_eq!(block.first() % 16, 0);
        assert_eq!(block.count(), 16);
        assert_eq!(usize::from(block.first()), 30016 + 16 * index);
    }
}

#[test]
fn pool_allocates_the_last_port() {
    let mut pool = pool("65520-65535");
    assert_eq!(pool.allocate(16, NOW).expect("a block").last(), 65535);
    assert!(pool.free().is_empty());
}

#[test]
fn pool_released_block_is_free_without_quarantine() {
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
fn quarantine_delays_reuse_of_a_block() {
    let quarantine = Duration::from_mins(1);
    let mut pool = EphemeralPool::new("32768-34815".parse().expect("ports"), quarantine);
    let (first, second) =
        (pool.allocate(1024, NOW).expect("a block"), pool.allocate(1024, NOW).expect("a block"));
    pool.release("a", first, NOW);
    let error = pool.allocate(1024, NOW).expect_err("it is in quarantine");
    assert!(
        error
            .message
            .contains("1024 of 2048 ports are in use, 1024 are in quarantine, the first for another"),
        "{error}"
    );
    pool.release_expired(NOW + quarantine);
    assert_eq!(pool.allocate(1024, NOW), Ok(first));
    pool.release("b", second, NOW);
    assert!(pool.reserve(second).expect_err("it is in quarantine").message.contains("in use"));
}

#[test]
fn quarantine_ends_for_the_previous_container() {
    let quarantine = Duration::from_mins(1);
    let mut pool = EphemeralPool::new("32768-34815".parse().expect("ports"), quarantine);
    let first = pool.allocate_to("a", 1024, NOW).expect("a block");
    for restart in 1..8 {
        pool.release("a", first, NOW + restart * quarantine / 10);
        assert_eq!(pool.allocate_to("a", 1024, NOW + restart * quarantine / 10), Ok(first));
    }
    pool.release("a", first, NOW + quarantine);
    let second = pool.allocate_to("b", 1024, NOW + quarantine).expect("the other one");
    assert_ne!(second, first);
    assert!(pool.allocate_to("c", 1024, NOW + quarantine).is_err(), "the other block is in quarantine");
    assert!(pool.allocate_to("a", 512, NOW + quarantine).is_err(), "it had a larger one");
    // A cancelled allocation leaves the quarantine unchanged.
    assert_eq!(pool.allocate_to("a", 1024, NOW + quarantine), Ok(first));
    pool.cancel(first);
    assert!(pool.allocate_to("c", 1024, NOW + quarantine).is_err(), "its quarantine goes on");
    assert_eq!(pool.allocate_to("c", 1024, NOW + quarantine + quarantine), Ok(first));
}

#[test]
fn pool_prefers_never_allocated_blocks() {
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
    // The last free block.
    assert!(pool.allocate_to("a", 1024, NOW).is_err());
    pool.release("e", first, NOW);
    pool.reserve(first).expect("it is free");
    pool.cancel(first);
    assert_eq!(pool.allocate_to("a", 1024, NOW), Ok(first));
}

#[test]
fn quarantine_restarts_when_a_block_is_released_twice() {
    let (ports, quarantine): (PortSet, _) = ("32768-33791".parse().expect("ports"), Duration::from_mins(1));
    let mut pool = EphemeralPool::new(ports, quarantine);
    let block = PortRange::new(32768, 33791).expect("a range");
    pool.release("a", block, NOW);
    pool.release("a", block, NOW + quarantine / 2);
    assert!(pool.allocate(1024, NOW + quarantine).is_err(), "the quarantine restarted");
    assert_eq!(pool.allocate(1024, NOW + quarantine + quarantine / 2), Ok(block));
    pool.release_expired(NOW + 4 * quarantine);
    assert!(pool.free().is_empty(), "it is in use");
}

#[test]
fn quarantine_continues_in_the_next_pool() {
    let (ports, quarantine): (PortSet, _) = ("32768-34815".parse().expect("ports"), Duration::from_mins(1));
    let mut pool = EphemeralPool::new(ports.clone(), quarantine);
    let first = pool.allocate(1024, NOW).expect("a block");
    pool.release("a", first, NOW);
    let mut next = EphemeralPool::new(ports.clone(), quarantine);
    let later = NOW + quarantine / 2;
    for quarantined in pool.quarantined() {
        next.continue_quarantine(quarantined.clone(), later);
    }
    let second = next.allocate(1024, later).expect("the other one");
    assert!(next.allocate(1024, later).is_err());
    assert_eq!(next.allocate(1024, NOW + quarantine), Ok(first));
    // Ignored: an allocated block, a record of another boot, and an expired quarantine.
    for (since, now) in [(NOW, NOW), (NOW + quarantine, NOW), (NOW, NOW + quarantine)] {
        next.continue_quarantine(Quarantined { name: None, block: second, since }, now);
        assert_eq!(next.quarantined(), []);
    }
    let mut free = EphemeralPool::new(ports, quarantine);
    free.continue_quarantine(Quarantined { name: None, block: first, since: NOW + quarantine }, NOW);
    assert_eq!(free.allocate(1024, NOW), Ok(first));
}

#[test]
fn pool_skips_blocks_in_use_by_the_host() {
    let mut pool = pool("32768-34815");
    pool.skip_blocks_with("33000".parse().expect("a port"));
    assert_eq!(pool.allocate(1024, NOW).expect("the other").first(), 33792);
    let error = pool.allocate(1024, NOW).expect_err("the host uses it");
    assert!(error.message.contains("blocks with 1 ports of the host's connections"), "{error}");
    pool.skip_blocks_with(PortSet::default());
    assert_eq!(pool.allocate(1024, NOW).expect("the host no longer uses it").first(), 32768);
}

#[test]
fn pool_block_size_must_be_a_power_of_two() {
    for size in [0, 1, 8, 15, 100, 1023] {
        assert!(check_block_size(size).is_err(), "{size}");
    }
    for size in [16, 1024, 32768] {
        assert!(check_block_size(size).is_ok(), "{size}");
    }
}

#[test]
fn pool_capacity_predicts_the_allocations() {
    for ports in ["32768-57344", "30001-30999", "65520-65535", "40000-40015,40032-40047", "1024-65535"] {
        let capacity = pool(ports).capacity(&[], &PortSet::default(), NOW);
        assert_eq!((capacity.total, capacity.free), (pool(ports).managed.count(), capacity.total), "{ports}");
        for row in &capacity.blocks {
            assert_eq!(drain(&mut pool(ports), row.size).len(), row.free, "{ports}, blocks of {}", row.size);
        }
        let largest = capacity.blocks.last().expect("a block of 16").size;
        if let Some(larger) = largest.checked_mul(2) {
            assert!(pool(ports).allocate(larger, NOW).is_err(), "{ports}, blocks of {larger}");
        }
    }
}

#[test]
fn pool_capacity_distinguishes_owned_quarantined_and_host_ports() {
    let mut pool = EphemeralPool::new("32768-36863".parse().expect("ports"), Duration::from_mins(1));
    let [a, b] = ["a", "b"].map(|name| pool.allocate_to(name, 1024, NOW).expect("a block"));
    let used: PortSet = "36000".parse().expect("a port");
    let of_1024 = |capacity: &PoolCapacity| {
        let row = capacity.blocks.iter().find(|row| row.size == 1024).expect("the size of a container");
        (row.free, row.owned, row.quarantined)
    };
    let sum = |c: &PoolCapacity| c.free + c.owned + c.quarantined + c.host;
    let both = pool.capacity(&[a, b], &PortSet::default(), NOW);
    assert_eq!((of_1024(&both), both.next_free), ((2, 2, 0), None));
    pool.release("a", a, NOW);
    let now = NOW + Duration::from_secs(20);
    let one = pool.capacity(&[b], &used, now);
    assert_eq!(of_1024(&one), (1, 1, 1), "one block has a port of the host");
    assert_eq!((one.free, one.owned, one.quarantined, one.host), (2047, 1024, 1024, 1));
    assert_eq!((sum(&one), one.next_free), (one.total, Some(Duration::from_secs(40))));
    let later = pool.capacity(&[b], &used, NOW + Duration::from_mins(1));
    assert_eq!((of_1024(&later), later.next_free), ((2, 1, 0), None), "the quarantine has ended");
    assert_eq!(sum(&later), later.total);
}
