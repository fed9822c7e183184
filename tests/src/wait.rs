//! Waiting for a condition instead of for a while.

use std::{
    thread,
    time::{Duration, Instant},
};

/// How long a condition may take on the slowest machine, an emulated one; only a failing test ever waits as long.
pub const LIMIT: Duration = Duration::from_mins(1);

/// Waits until `condition` yields a value.
///
/// # Panics
///
/// If that takes longer than [`LIMIT`].
pub fn for_value<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < LIMIT, "waited {LIMIT:?} in vain for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until `condition` holds.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    for_value(what, || condition().then_some(()));
}
