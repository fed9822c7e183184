//! Admission of operations: any number in parallel, one at a time on each container, none after a teardown.

use std::sync::RwLockReadGuard;

use super::keyed_lock::KeyedLock;
use crate::{
    error::{Error, Result},
    locks::{Held, Rank, RankedRw},
};

/// Admits operations.
pub(super) struct Operations {
    /// Whether the daemon accepts operations. Every operation holds the lock for reading, so a teardown waits
    /// for all of them.
    accepting: RankedRw<bool>,
    containers: KeyedLock,
}

impl Default for Operations {
    fn default() -> Self {
        Self { accepting: RankedRw::new(Rank::Accepting, true), containers: KeyedLock::default() }
    }
}

impl Operations {
    /// Begins an operation. A teardown waits until the returned guard is dropped.
    ///
    /// # Errors
    ///
    /// A conflict after a teardown.
    pub(super) fn begin(&self) -> Result<Held<RwLockReadGuard<'_, bool>>> {
        let accepting = self.accepting.read();
        if *accepting {
            Ok(accepting)
        } else {
            Err(Error::conflict("portmap has been torn down on this host: start portmapd again"))
        }
    }

    /// Waits until no operation runs, and refuses all later ones.
    pub(super) fn stop_accepting(&self) {
        *self.accepting.write() = false;
    }

    /// Whether there has been a teardown.
    pub(super) fn has_stopped(&self) -> bool {
        !*self.accepting.read()
    }

    /// Runs `work` while no other operation works on the container.
    pub(super) fn on<T>(&self, container: &str, work: impl FnOnce() -> T) -> T {
        self.containers.with(container, work)
    }
}
