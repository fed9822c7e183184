//! Which operations may run: any number side by side, one at a time on each container, and none after a teardown.

use std::sync::RwLockReadGuard;

use super::keyed_lock::KeyedLock;
use crate::{
    error::{Error, Result},
    locks::{Held, Rank, RankedRw},
};

/// Admits operations.
pub(super) struct Operations {
    /// Whether the daemon still accepts operations. Each holds it for reading, so that a teardown waits for all of them.
    accepting: RankedRw<bool>,
    containers: KeyedLock,
}

impl Default for Operations {
    fn default() -> Self {
        Self { accepting: RankedRw::new(Rank::Accepting, true), containers: KeyedLock::default() }
    }
}

impl Operations {
    /// Begins an operation, which holds off a teardown as long as the returned value lives.
    ///
    /// # Errors
    ///
    /// A conflict after a teardown.
    pub(super) fn begin(&self) -> Result<Held<RwLockReadGuard<'_, bool>>> {
        let accepting = self.accepting.read();
        if *accepting {
            Ok(accepting)
        } else {
            Err(Error::conflict("portmap has been torn down here: start portmapd again"))
        }
    }

    /// Waits until no operation runs, and admits none afterwards.
    pub(super) fn stop_accepting(&self) {
        *self.accepting.write() = false;
    }

    /// Whether there has been a teardown.
    pub(super) fn has_stopped(&self) -> bool {
        !*self.accepting.read()
    }

    /// Does `work` on a container while no other operation works on it.
    pub(super) fn on<T>(&self, container: &str, work: impl FnOnce() -> T) -> T {
        self.containers.with(container, work)
    }
}
