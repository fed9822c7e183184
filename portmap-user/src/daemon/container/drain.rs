//! Draining: a container keeps the ephemeral ports of an earlier block while its sockets use them.

use tracing::{info, warn};

use super::{Containers, lookup};
use crate::{
    error::Result,
    kernel::{clock, sockets},
    model::{ContainerRecord, PortRange, PortSet},
};

impl Containers {
    /// Takes from a container those draining ports that none of its sockets uses any more, or whose time is
    /// over. The caller holds the container's lock.
    ///
    /// # Errors
    ///
    /// If the container's sockets cannot be listed, or its record cannot be written. It keeps the ports then.
    pub(in crate::daemon) fn drain(&self, name: &str) -> Result<()> {
        let Some(record) = self.registry.snapshot().ready_record(name) else { return Ok(()) };
        if record.draining.is_empty() {
            return Ok(());
        }
        let now = clock::since_boot()?;
        let (late, pending): (Vec<_>, Vec<_>) =
            record.draining.iter().copied().partition(|draining| draining.until <= now);
        let mut drained: Vec<PortRange> = late.iter().map(|draining| draining.ports).collect();
        let pending: Vec<PortRange> = pending.iter().map(|draining| draining.ports).collect();
        let is_used = lookup::visit(&record, |_inside| {
            Ok(pending.iter().map(|ports| sockets::is_any_in(*ports)).collect::<Result<Vec<_>, _>>()?)
        });
        match is_used {
            Ok(Some(is_used)) => {
                drained
                    .extend(pending.iter().zip(is_used).filter(|(_, used)| !used).map(|(ports, _)| *ports));
            }
            // Its sockets cannot be listed, so only time ends the drain.
            Ok(None) => {}
            Err(error) if drained.is_empty() => return Err(error),
            Err(error) => warn!("container {name:?}: {error}"),
        }
        if drained.is_empty() {
            return Ok(());
        }
        let mut after = record.clone();
        after.draining.retain(|draining| !drained.contains(&draining.ports));
        self.registry.release_drained(after, &drained)?;
        log(&record, &drained, &late.iter().map(|draining| draining.ports).collect::<Vec<_>>().into());
        Ok(())
    }
}

fn log(record: &ContainerRecord, drained: &[PortRange], late: &PortSet) {
    let name = &record.name;
    let unused = PortSet::from(drained.to_vec()).difference(late);
    if !unused.is_empty() {
        info!("container {name:?}: released the ephemeral ports {unused}, which it no longer uses");
    }
    if !late.is_empty() {
        warn!(
            "container {name:?}: released the ephemeral ports {late} at the end of --ephemeral-ports-drain; \
             packets of sockets that still use them are dropped"
        );
    }
}
