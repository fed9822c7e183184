//! Who may change a container: one after the other. Different containers are changed at the same time.

use std::{collections::BTreeMap, sync::Arc};

use crate::locks::{Rank, Ranked};

/// A lock for each name that somebody works on, or waits for.
pub(super) struct Turns(Ranked<BTreeMap<String, Arc<Ranked<()>>>>);

impl Default for Turns {
    fn default() -> Self {
        Self(Ranked::new(Rank::Turns, BTreeMap::new()))
    }
}

impl Turns {
    /// Does `work` when nobody else works on the container any more.
    pub(super) fn take<T>(&self, name: &str, work: impl FnOnce() -> T) -> T {
        let new = || Arc::new(Ranked::new(Rank::Turn, ()));
        let turn = self.0.lock().entry(name.to_owned()).or_insert_with(new).clone();
        // A panic of whoever had it before leaves what a failure leaves, which whoever comes next copes with.
        let held = turn.lock();
        let result = work();
        drop(held);
        let mut all = self.0.lock();
        // One is in the map, one here; with more, somebody waits.
        if Arc::strong_count(&turn) == 2 {
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
    fn one_name_is_worked_on_by_one_at_a_time() {
        let turns = Turns::default();
        let (order, seen) = mpsc::channel();
        thread::scope(|scope| {
            turns.take("a", || {
                let (begun, has_begun) = mpsc::channel();
                let (turns, other) = (&turns, order.clone());
                scope.spawn(move || {
                    begun.send(()).expect("somebody waits");
                    turns.take("a", || other.send("later").expect("somebody listens"));
                });
                has_begun.recv().expect("it begins");
                // Another name does not wait.
                let beside = || turns.take("b", || order.send("beside").expect("somebody listens"));
                scope.spawn(beside).join().expect("it ends");
                order.send("first").expect("somebody listens");
            });
        });
        drop(order);
        assert_eq!(seen.iter().collect::<Vec<_>>(), ["beside", "first", "later"]);
        assert!(turns.0.lock().is_empty());
    }
}
