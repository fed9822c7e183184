//! Progress of the takeover of an earlier daemon's containers.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::api::{Finding, Health};

/// The progress of the takeover, in containers.
#[derive(Debug, Default)]
pub(super) struct Progress {
    found: AtomicUsize,
    checked: AtomicUsize,
    /// Checked containers that had drifted from their records.
    drifted: AtomicUsize,
}

impl Progress {
    /// The progress at the start: no container has been checked.
    pub(super) fn new(found: usize) -> Self {
        Self { found: found.into(), ..Self::default() }
    }

    /// Counts a container as checked.
    pub(super) fn note_checked(&self) {
        self.checked.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a container as drifted, and returns the number of those before it.
    pub(super) fn note_drifted(&self) -> usize {
        self.drifted.fetch_add(1, Ordering::Relaxed)
    }

    /// Number of containers that had drifted.
    pub(super) fn drifted(&self) -> usize {
        self.drifted.load(Ordering::Relaxed)
    }

    /// The numbers of checked and of found containers.
    pub(super) fn get(&self) -> (usize, usize) {
        (self.checked.load(Ordering::Relaxed), self.found.load(Ordering::Relaxed))
    }

    /// The finding for `doctor`, until all containers are checked.
    pub(super) fn finding(&self) -> Option<Finding> {
        let (checked, found) = self.get();
        let text = || {
            format!(
                "{checked} of {found} containers of the earlier daemon have been checked; all are in service"
            )
        };
        (checked < found).then(|| Finding::new("takeover", Health::Notice, text()))
    }
}
