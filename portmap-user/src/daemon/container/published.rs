//! Published ports of a container: the host reserves them before it is asked who uses them, and as long as the
//! container owns them.

use tracing::warn;

use super::Containers;
use crate::{error::Result, model::PortSet};

impl Containers {
    /// Has the host reserve the published ones of `ports`, so that it assigns none of them to a socket.
    ///
    /// It is called before the host's sockets are read, and again when the registry lists the ports: in between, the
    /// removal of a container with the same ports may have ended the reservation.
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

    /// Ends the reservation of published ports that no container owns any more. Only called for their sake: `ports`
    /// are those that a container has lost. A failure is logged only, because the command has succeeded without it,
    /// and the next start tries again.
    pub(super) fn unreserve_published(&self, ports: &PortSet) {
        if self.env.published(ports).is_empty() {
            return;
        }
        let needed = || self.env.managed_ports().union(&self.registry.snapshot().static_ports());
        if let Err(error) = self.host.unreserve(&self.env.store, needed) {
            warn!(
                "{error}: the host does not assign the ports {ports} to its sockets until the daemon restarts"
            );
        }
    }
}
