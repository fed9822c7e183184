//! Removing what nobody owns: interfaces, links and map entries of containers whose record is lost.

use std::{collections::BTreeSet, fs};

use portmap_common::{gcra::GcraState, slot::SLOTS, tables::Endpoint};
use tracing::warn;

use super::{
    Daemon,
    lost::{slot_of, slot_of_ours},
};
use crate::{
    error::{Context as _, Result},
    kernel::{bpffs, link, netlink::Netlink},
};

impl Daemon {
    /// Removes what looks like a container's in every respect and belongs to none: name, index and alias of an interface,
    /// the name of a link's pin, an entry in a map. What differs in any is somebody else's and stays.
    pub(super) fn sweep(&self) -> Result<()> {
        let owned: BTreeSet<u16> =
            self.registry().containers.values().map(|entry| entry.record.slot).collect();
        let netlink = Netlink::open()?;
        let mut orphans = Vec::new();
        for interface in link::all(&netlink)? {
            if slot_of_ours(&interface).is_some_and(|slot| !owned.contains(&slot)) {
                warn!("removing {}, the interface of a container that is not on record", interface.name);
                orphans.push(interface.index);
            }
        }
        if !orphans.is_empty() {
            link::delete_all(&netlink, &orphans)?;
        }
        let links = self.settings.pins.links();
        for pin in fs::read_dir(&links).context(|| format!("cannot read {}", links.display()))? {
            let pin = pin.context(|| format!("cannot read {}", links.display()))?;
            let name = pin.file_name().to_string_lossy().into_owned();
            if slot_of(name.split('-').next().unwrap_or_default()).is_some_and(|slot| !owned.contains(&slot))
            {
                bpffs::unpin(&pin.path())?;
            }
        }
        let maps = &self.maps;
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
