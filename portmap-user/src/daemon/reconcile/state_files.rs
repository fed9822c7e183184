//! Restoration of state files that were removed while the daemon runs, from its memory.

use super::reconciler::Reconciler;
use crate::error::Result;

impl Reconciler {
    /// Rewrites missing files: the ownership file, the record of the host, the records of containers. Returns
    /// true if any was missing.
    ///
    /// # Errors
    ///
    /// If one of them cannot be written.
    pub(super) fn restore_state(&self) -> Result<bool> {
        let (host, was_ownership_lost) = {
            let mut ownership = self.host.ownership();
            (ownership.host().cloned(), ownership.restore()?)
        };
        let was_directory_lost = self.env.store.restore()?;
        if was_directory_lost {
            host.iter().try_for_each(|host| self.env.store.set_host(host))?;
        }
        let were_records_lost = self.registry.restore_records()?;
        Ok(was_ownership_lost || was_directory_lost || were_records_lost)
    }
}
