//! State that somebody has removed under a running daemon, which knows it by heart.

use super::Daemon;
use crate::{
    error::{Failures, Result},
    model::Phase,
};

impl Daemon {
    /// Writes down again what is written down no more. Returns whether there was anything.
    pub(super) fn restore_state(&self) -> Result<bool> {
        let (host, was_left) = {
            let mut place = self.place.lock();
            (place.host().cloned(), place.restore()?)
        };
        let is_lost = self.store.restore()?;
        if is_lost {
            host.iter().try_for_each(|host| self.store.set_host(host))?;
        }
        // Files and entries change together, under this lock.
        let (registry, mut failures, mut were_lost) = (self.registry(), Failures::default(), false);
        for record in registry.containers.values().map(|entry| &entry.record) {
            if record.phase == Phase::Ready && !self.store.has_container(&record.name) {
                failures.note(self.store.set_container(record));
                were_lost = true;
            }
        }
        failures.into_result()?;
        Ok(was_left || is_lost || were_lost)
    }
}
