//! Statistics, from the maps.

use std::collections::BTreeMap;

use portmap_common::{
    reason::{HostHook, Reason, ReasonCounts},
    slot::HOST_SLOT,
};

use super::Daemon;
use crate::{
    api::{ContainerStats, DropStats, HostStats, Reasons, Stats, Traffic},
    error::{Error, Result},
};

impl Daemon {
    /// Traffic of everybody.
    pub fn stats(&self) -> Result<Stats> {
        let names: Vec<(String, u16)> = self
            .registry()
            .containers
            .iter()
            .map(|(name, entry)| (name.clone(), entry.record.slot))
            .collect();
        let containers =
            names.iter().map(|(name, slot)| self.slot_stats(name, *slot)).collect::<Result<_>>()?;
        Ok(Stats { containers, host: self.host_stats()? })
    }

    /// Traffic of one container.
    pub fn container_stats(&self, name: &str) -> Result<ContainerStats> {
        let slot = self.registry().containers.get(name).map(|entry| entry.record.slot);
        self.slot_stats(name, slot.ok_or_else(|| Error::no_container(name))?)
    }

    fn slot_stats(&self, name: &str, slot: u16) -> Result<ContainerStats> {
        let maps = self.maps();
        let counters = maps.counters(slot)?;
        let traffic = counters
            .by_path()
            .into_iter()
            .filter(|(path, _)| *path != "reserved")
            .map(|(path, tally)| (path.to_owned(), Traffic { packets: tally.packets, bytes: tally.bytes }))
            .collect();
        Ok(ContainerStats { name: name.to_owned(), slot, traffic, drops: drops(&maps.drops(slot)?) })
    }

    fn host_stats(&self) -> Result<HostStats> {
        let maps = self.maps();
        let mut passed = BTreeMap::new();
        for hook in HostHook::ALL {
            passed.insert(hook.name().to_owned(), reasons(&maps.host(hook)?));
        }
        Ok(HostStats { passed, drops: drops(&maps.drops(HOST_SLOT)?) })
    }
}

fn drops(counts: &portmap_common::reason::Drops) -> DropStats {
    DropStats { rx: reasons(&counts.rx), tx: reasons(&counts.tx) }
}

fn reasons(counts: &ReasonCounts) -> Reasons {
    let with_packets = Reason::ALL.iter().map(|reason| (reason.name().to_owned(), counts.get(*reason)));
    with_packets.filter(|(_, packets)| *packets > 0).collect()
}
