//! Published ports of containers: the host reserves them before it is asked who uses them, and as long as a container
//! owns them.

use tracing::warn;

use super::Containers;
use crate::{error::Result, model::PortSet};

impl Containers {
    /// Has the host reserve the published ones of `ports`, so that it assigns none of them to a socket.
    ///
    /// It is called before the host's sockets are read, and again when the registry lists the ports, because another
    /// command may end the reservation of unlisted ports in between.
    ///
    /// # Errors
    ///
    /// If the reservation cannot be recorded or made.
    pub(super) fn reserve_published(&self, ports: &PortSet) -> Result<()> {
        let published = self.env.published(ports);
        if published.is_empty() {
            return Ok(());
        }
        self.host.reserve(&self.env.store, || published).map(|_was_lacking| ())
    }

    /// Ends the reservation of published ports that only the container `name` owns, because it is being removed.
    ///
    /// # Errors
    ///
    /// If the reservation cannot be ended; then the removal can be retried.
    pub(super) fn unreserve_all_of(&self, name: &str, ports: &PortSet) -> Result<()> {
        if self.env.published(ports).is_empty() {
            return Ok(());
        }
        self.unreserve_except(|| self.registry.snapshot().static_ports_except(name))
    }

    /// Ends the reservation of published ports after a command, if no container owns them: `ports` are those that it
    /// was about. A failure is logged only, because the next resync tries again.
    pub(super) fn unreserve_unowned(&self, ports: &PortSet) {
        if self.env.published(ports).is_empty() {
            return;
        }
        if let Err(error) = self.unreserve_except(|| self.registry.snapshot().static_ports()) {
            warn!("{error}: the host does not assign all of the ports {ports} to its sockets yet");
        }
    }

    /// Has the host reserve the published ports of containers, and no others that a daemon has reserved. Returns true
    /// if any was not reserved.
    ///
    /// # Errors
    ///
    /// If a reservation cannot be made or ended.
    pub(in crate::daemon) fn reconcile_reservations(&self) -> Result<bool> {
        let owned = || self.registry.snapshot().static_ports();
        let was_lacking = self.host.reserve(&self.env.store, || self.env.published(&owned()))?;
        self.unreserve_except(owned)?;
        Ok(was_lacking)
    }

    fn unreserve_except(&self, owned: impl FnOnce() -> PortSet) -> Result<()> {
        self.host.unreserve(&self.env.store, || self.env.managed_ports().union(&owned()))
    }
}
