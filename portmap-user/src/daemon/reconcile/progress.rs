//! Progress of the takeover of an earlier daemon's containers.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::api::{Finding, Health};

/// How many of the containers that the daemon found have been checked.
#[derive(Debug, Default)]
pub(super) struct Progress {
    found: AtomicUsize,
    checked: AtomicUsize,
    /// How many of those had drifted from their records.
    drifted: AtomicUsize,
}

impl Progress {
    /// No container has been checked yet.
    pub(super) fn new(found: usize) -> Self {
        Self { found: found.into(), ..Self::default() }
    }

    /// Counts a container as checked.
    pub(super) fn note_checked(&self) {
        self.checked.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a container as drifted, and returns how many were before it.
    pub(super) fn note_drifted(&self) -> usize {
        self.drifted.fetch_add(1, Ordering::Relaxed)
    }

    /// Number of containers that had drifted.
    pub(super) fn drifted(&self) -> usize {
        self.drifted.load(Ordering::Relaxed)
    }

    /// Numbers of containers: checked, and found.
    pub(super) fn get(&self) -> (usize, usize) {
        (self.checked.load(Ordering::Relaxed), self.found.load(Ordering::Relaxed))
    }

    /// The finding of `doctor`, as long as checks are outstanding.
    pub(super) fn finding(&self) -> Option<Finding> {
        let (checked, found) = self.get();
        let text = || {
            format!(
                "{checked} of {found} containers of the earlier daemon are checked; the others are in service as they \
                 were"
            )
        };
        (checked < found).then(|| Finding::new("takeover", Health::Notice, text()))
    }
}
