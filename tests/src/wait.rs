//! Waiting for a condition instead of for a while.

use std::{
    thread,
    time::{Duration, Instant},
};

/// How long a packet or an answer may take on the slowest machine, a busy one that is emulated; only a failing test ever
/// waits as long.
pub const LIMIT: Duration = Duration::from_mins(2);

/// How often a condition is looked at before it is given up, however long that takes: where the machine is busy, looking is
/// slow, and so is what is waited for.
const LOOKS: u32 = 1000;

/// When a condition is given up all the same.
const END: Duration = Duration::from_mins(10);

/// Waits until `condition` yields a value.
///
/// # Panics
///
/// If that takes longer than [`LIMIT`], and as many looks as a machine that is not busy has in a few seconds.
pub fn for_value<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    for looks in 0.. {
        if let Some(value) = condition() {
            return value;
        }
        let waited = start.elapsed();
        let may_come = waited < LIMIT || (looks < LOOKS && waited < END);
        assert!(may_come, "waited {waited:?} and looked {looks} times in vain for {what}");
        thread::sleep(Duration::from_millis(5));
    }
    unreachable!("the numbers do not end before the wait does")
}

/// Waits until `condition` holds.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    for_value(what, || condition().then_some(()));
}
