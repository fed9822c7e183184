//! Waiting for a condition instead of for a fixed time.

use std::{
    thread,
    time::{Duration, Instant},
};

/// Time limit for a packet or an answer on the slowest machine (emulated, and busy). Only a failing test
/// waits that long.
pub const LIMIT: Duration = Duration::from_mins(2);

/// Minimum number of polls before a wait times out, because on a busy machine both the polls and the
/// condition are slow.
const MIN_POLLS: u32 = 1000;

/// Hard time limit.
const HARD_LIMIT: Duration = Duration::from_mins(10);

/// Waits until `condition` yields a value.
///
/// # Panics
///
/// Panics after [`LIMIT`] if the condition was polled as often as an idle machine does in a few seconds,
/// and after ten minutes in any case.
pub fn for_value<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    for polls in 0.. {
        if let Some(value) = condition() {
            return value;
        }
        let waited = start.elapsed();
        let may_wait = waited < LIMIT || (polls < MIN_POLLS && waited < HARD_LIMIT);
        assert!(may_wait, "timed out after {waited:?} and {polls} polls waiting for {what}");
        thread::sleep(Duration::from_millis(5));
    }
    unreachable!("the wait times out before the counter overflows")
}

/// Waits until `condition` holds.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    for_value(what, || condition().then_some(()));
}
