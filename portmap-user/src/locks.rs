//! Locks with an order. A thread that holds one must take only locks of a higher rank; then no two threads
//! can ever wait for each other. A debug build checks that at every lock and panics at a violation, whether
//! or not another thread waits.

use std::{
    fmt,
    ops::{Deref, DerefMut},
    sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

/// All locks of the daemon under which another one is taken, in the order in which a thread may take them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// `Operations::accepting`: held for reading by every operation, so that a teardown waits for all of
    /// them.
    Accepting,
    /// `Host::refresh`: held by the thread that compares the host's state with the kernel, and has containers
    /// follow.
    HostRefresh,
    /// The lock of one container, in `Operations::containers`: held while it is added, changed, checked or
    /// removed.
    Container,
    /// `Host::ownership`: the claim that no other daemon works here, with the record of the host; held while that
    /// record changes or pins are restored, and by a teardown.
    Ownership,
    /// `Registry::state`: who owns what. Held to change that and its records on disk; work that may take
    /// long, such as a netlink request or a visit to a namespace, is done before or after.
    Registry,
    /// The index of the containers' locks; held to look one up.
    ContainerIndex,
    /// The maps that are accessed by system calls, inside `Maps`: held for one system call, or to list the
    /// few keys of one map.
    Maps,
    /// `Host::state`: held to copy a pointer.
    HostState,
    /// `Registry::published`: held to copy a pointer.
    Snapshot,
    /// The lock file, inside `Store`: held while it is checked, and taken again if it has been removed.
    LockFile,
    /// The count of lost lines, inside `log::Lines`: a line may be written while any other lock is held.
    Log,
}

/// A mutex with a rank.
///
/// A panic while one is held leaves no half-done change behind, because every change is a single step; so a
/// poisoned lock is taken like any other.
pub struct Ranked<T> {
    rank: Rank,
    mutex: Mutex<T>,
}

impl<T> Ranked<T> {
    /// A lock of this rank around a value.
    pub const fn new(rank: Rank, value: T) -> Self {
        Self { rank, mutex: Mutex::new(value) }
    }

    /// Waits for the lock.
    pub fn lock(&self) -> Held<MutexGuard<'_, T>> {
        let rank = held::take(self.rank);
        Held { guard: self.mutex.lock().unwrap_or_else(PoisonError::into_inner), _rank: rank }
    }
}

/// A lock with a rank that many can hold for reading.
pub struct RankedRw<T> {
    rank: Rank,
    lock: RwLock<T>,
}

impl<T> RankedRw<T> {
    /// A lock of this rank around a value.
    pub const fn new(rank: Rank, value: T) -> Self {
        Self { rank, lock: RwLock::new(value) }
    }

    /// Waits until no thread writes.
    pub fn read(&self) -> Held<RwLockReadGuard<'_, T>> {
        let rank = held::take(self.rank);
        Held { guard: self.lock.read().unwrap_or_else(PoisonError::into_inner), _rank: rank }
    }

    /// Waits until no thread reads or writes.
    pub fn write(&self) -> Held<RwLockWriteGuard<'_, T>> {
        let rank = held::take(self.rank);
        Held { guard: self.lock.write().unwrap_or_else(PoisonError::into_inner), _rank: rank }
    }
}

/// A lock that is held; dropping it releases the lock.
pub struct Held<G> {
    guard: G,
    _rank: held::Entry,
}

impl<G: Deref> Deref for Held<G> {
    type Target = G::Target;

    fn deref(&self) -> &G::Target {
        &self.guard
    }
}

impl<G: DerefMut> DerefMut for Held<G> {
    fn deref_mut(&mut self) -> &mut G::Target {
        &mut self.guard
    }
}

impl<T> fmt::Debug for Ranked<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Ranked({:?})", self.rank)
    }
}

impl<T> fmt::Debug for RankedRw<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "RankedRw({:?})", self.rank)
    }
}

/// The locks that each thread holds, in debug builds.
#[cfg(debug_assertions)]
mod held {
    use std::{cell::RefCell, marker::PhantomData, thread};

    use super::Rank;

    thread_local! {
        static RANKS: RefCell<Vec<Rank>> = const { RefCell::new(Vec::new()) };
    }

    /// Stands for a lock that the thread holds. It is released where it was taken.
    pub(super) struct Entry(Rank, PhantomData<*const ()>);

    pub(super) fn take(rank: Rank) -> Entry {
        RANKS.with_borrow_mut(|ranks| {
            // A second panic while the first one unwinds would end the process without a word of the first.
            if let Some(highest) = ranks.iter().max().filter(|highest| **highest >= rank)
                && !thread::panicking()
            {
                panic!("the lock {rank:?} is taken while {highest:?} is held: see `Rank` for the order");
            }
            ranks.push(rank);
        });
        Entry(rank, PhantomData)
    }

    impl Drop for Entry {
        fn drop(&mut self) {
            RANKS.with_borrow_mut(|ranks| {
                if let Some(last) = ranks.iter().rposition(|rank| *rank == self.0) {
                    ranks.remove(last);
                }
            });
        }
    }
}

#[cfg(not(debug_assertions))]
mod held {
    use super::Rank;

    pub(super) struct Entry;

    pub(super) const fn take(_rank: Rank) -> Entry {
        Entry
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_in_the_right_order_is_granted() {
        let (registry, maps) = (Ranked::new(Rank::Registry, 1), Ranked::new(Rank::Maps, 2));
        let state = RankedRw::new(Rank::HostState, 3);
        let mut held = registry.lock();
        *held += *maps.lock() + *state.read();
        assert_eq!(*held, 6);
        drop(held);
        assert_eq!(*maps.lock(), 2, "a released lock is forgotten");
        assert_eq!(*registry.lock(), 6);
    }

    #[test]
    #[should_panic(expected = "the lock Registry is taken while Maps is held")]
    fn lock_in_the_wrong_order_panics() {
        let (registry, maps) = (Ranked::new(Rank::Registry, ()), Ranked::new(Rank::Maps, ()));
        let _maps = maps.lock();
        let _registry = registry.lock();
    }

    #[test]
    #[should_panic(expected = "the lock Accepting is taken while Accepting is held")]
    fn lock_taken_twice_panics() {
        let open = RankedRw::new(Rank::Accepting, true);
        let _one = open.read();
        // A writer that waits in between would make this wait for ever.
        let _another = open.read();
    }
}
