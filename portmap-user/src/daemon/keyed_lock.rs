//! A lock per container name: commands on one container are serialized, those on different containers run in
//! parallel.

use std::{collections::BTreeMap, sync::Arc};

use crate::locks::{Rank, Ranked};

/// The locks of all names that a thread holds or waits for.
pub(super) struct KeyedLock(Ranked<BTreeMap<String, Arc<Ranked<()>>>>);

impl Default for KeyedLock {
    fn default() -> Self {
        Self(Ranked::new(Rank::ContainerIndex, BTreeMap::new()))
    }
}

impl KeyedLock {
    /// Runs `work` while holding the lock of `name`.
    pub(super) fn with<T>(&self, name: &str, work: impl FnOnce() -> T) -> T {
        let new = || Arc::new(Ranked::new(Rank::Container, ()));
        let lock = self.0.lock().entry(name.to_owned()).or_insert_with(new).clone();
        // A holder that panicked has left the container as a failed command does. The next holder handles
        // that state.
        let held = lock.lock();
        let result = work();
        drop(held);
        let mut all = self.0.lock();
        // The map and this function have one reference each. A third one belongs to a waiting thread.
        if Arc::strong_count(&lock) == 2 {
            all.remove(name);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use super::*;

    #[test]
    fn keyed_lock_has_one_holder_per_name() {
        let locks = KeyedLock::default();
        let (order, seen) = mpsc::channel();
        thread::scope(|scope| {
            locks.with("a", || {
                let (begun, has_begun) = mpsc::channel();
                let (locks, other) = (&locks, order.clone());
                scope.spawn(move || {
                    begun.send(()).expect("the test waits");
                    locks.with("a", || other.send("second").expect("the test listens"));
                });
                has_begun.recv().expect("the thread starts");
                // Another name does not wait.
                let beside = || locks.with("b", || order.send("beside").expect("the test listens"));
                scope.spawn(beside).join().expect("the thread ends");
                order.send("first").expect("the test listens");
            });
        });
        drop(order);
        assert_eq!(seen.iter().collect::<Vec<_>>(), ["beside", "first", "second"]);
        assert!(locks.0.lock().is_empty());
    }
}
