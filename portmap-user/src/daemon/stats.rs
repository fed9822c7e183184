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
    model::ContainerRecord,
};

impl Daemon {
    /// Traffic of everybody.
    pub fn stats(&self) -> Result<Stats> {
        let records: Vec<ContainerRecord> =
            self.registry().containers.values().map(|entry| entry.record.clone()).collect();
        let containers = records.iter().map(|record| self.stats_of(record)).collect::<Result<_>>()?;
        Ok(Stats { containers, host: self.host_stats()? })
    }

    /// Traffic of one container.
    pub fn container_stats(&self, name: &str) -> Result<ContainerStats> {
        self.checked(name)?;
        let record = self.registry().containers.get(name).map(|entry| entry.record.clone());
        self.stats_of(&record.ok_or_else(|| Error::no_container(name))?)
    }

    fn stats_of(&self, record: &ContainerRecord) -> Result<ContainerStats> {
        let (egress, ingress) = self.queue_stats(record);
        let (name, slot) = (record.name.clone(), record.slot);
        let maps = &self.maps;
        let counters = maps.counters(slot)?;
        let traffic = counters
            .by_path()
            .into_iter()
            .filter(|(path, _)| *path != "reserved")
            .map(|(path, tally)| (path.to_owned(), Traffic { packets: tally.packets, bytes: tally.bytes }))
            .collect();
        let drops = drops(&maps.drops(slot)?);
        Ok(ContainerStats { name, slot, traffic, drops, egress, ingress })
    }

    fn host_stats(&self) -> Result<HostStats> {
        let maps = &self.maps;
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
