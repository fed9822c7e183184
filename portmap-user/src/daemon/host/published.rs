//! The reservation of published ports. They are outside the daemon's pools (`--published-ports`), so the host may
//! assign them to its own sockets; each is in `ip_local_reserved_ports` while a container owns it.
//!
//! The sets of ports come from functions that are called under the lock, so that a later change of the registry
//! finds its ports treated by its own call.

use super::Host;
use crate::{
    error::{Error, Result},
    model::{HostRecord, PortSet},
    state::Store,
};

impl Host {
    /// Reserves ports that containers own or are about to get. Returns true if any was not reserved.
    ///
    /// # Errors
    ///
    /// If the record of the host cannot be written, or the sysctl cannot be changed.
    pub(in crate::daemon) fn reserve(&self, store: &Store, ports: impl FnOnce() -> PortSet) -> Result<bool> {
        let mut ownership = self.ownership();
        let lacking = ports().difference(&self.sysctls.reserved_ports()?);
        if lacking.is_empty() {
            return Ok(false);
        }
        let record = recorded(ownership.host())?;
        // The record is written first, so that a teardown after a crash knows the ports.
        let record = HostRecord { reserved: record.reserved.union(&lacking), ..record };
        store.set_host(&record)?;
        ownership.note(&record);
        self.sysctls.reserve_ports(&lacking)?;
        Ok(true)
    }

    /// Ends the reservation of all ports that the daemon has reserved, except the `needed` ones.
    ///
    /// # Errors
    ///
    /// If the sysctl cannot be changed, or the record of the host cannot be written.
    pub(in crate::daemon) fn unreserve(&self, store: &Store, needed: impl FnOnce() -> PortSet) -> Result<()> {
        let mut ownership = self.ownership();
        let record = recorded(ownership.host())?;
        let over = record.reserved.difference(&needed());
        if over.is_empty() {
            return Ok(());
        }
        let now = self.sysctls.reserved_ports()?;
        self.sysctls.set_reserved_ports(&now.difference(&over))?;
        let record = HostRecord { reserved: record.reserved.difference(&over), ..record };
        store.set_host(&record)?;
        ownership.note(&record);
        Ok(())
    }
}

fn recorded(record: Option<&HostRecord>) -> Result<HostRecord> {
    record.cloned().ok_or_else(|| Error::failure("the daemon has no record of the host: restart it"))
}
