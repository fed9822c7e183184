//! Removal of orphans: interfaces, links and map entries of containers without a record.

use std::fs;

use portmap_common::{gcra::GcraState, slot::SLOTS, tables::Endpoint};
use tracing::warn;

use super::reconciler::Reconciler;
use crate::{
    daemon::leftovers::{slot_of, slot_of_ours},
    error::{Context as _, Result},
    kernel::{bpffs, link, netlink::Netlink},
};

impl Reconciler {
    /// Removes interfaces with the name, index and alias of a host veth, pinned links with the name of a
    /// container's, and map entries, if no container owns them. An interface that differs in one of the three
    /// belongs to another tool and stays.
    ///
    /// # Errors
    ///
    /// The first removal that fails.
    pub(super) fn remove_orphans(&self, netlink: &Netlink) -> Result<()> {
        let owned = self.registry.snapshot().slots();
        let mut orphans = Vec::new();
        for interface in link::all(netlink)? {
            if slot_of_ours(&interface).is_some_and(|slot| !owned.contains(&slot)) {
                warn!("removing {}, the interface of a container without a record", interface.name);
                orphans.push(interface.index);
            }
        }
        if !orphans.is_empty() {
            link::delete_all(netlink, &orphans)?;
        }
        let links = self.env.settings.pins.links();
        for pin in fs::read_dir(&links).context(|| format!("cannot read {}", links.display()))? {
            let pin = pin.context(|| format!("cannot read {}", links.display()))?;
            let name = pin.file_name().to_string_lossy().into_owned();
            if slot_of(name.split('-').next().unwrap_or_default()).is_some_and(|slot| !owned.contains(&slot))
            {
                bpffs::unpin(&pin.path())?;
            }
        }
        let maps = &self.env.maps;
        for slot in (1..SLOTS).filter(|slot| !owned.contains(slot)) {
            if maps.endpoint(slot)?.host_ifindex != 0 {
                maps.set_endpoint(slot, Endpoint::default())?;
            }
            if maps.limit(slot)?.ns_per_byte != 0 {
                maps.set_limit(slot, GcraState::default())?;
            }
        }
        Ok(())
    }
}
