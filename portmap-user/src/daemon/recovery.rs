//! Starting: the host is made ready, and the containers of an earlier daemon are found again.

use std::{
    collections::BTreeMap,
    sync::{Mutex, RwLock},
};

use portmap_common::{
    slot::veth_ifindex,
    tables::{Endpoint, PortEntry},
};
use tracing::{info, warn};

use super::{
    Daemon, Entry, HostFacts, Registry,
    container::{dismantle, open_same, port_entry, veth_hook},
    host, shaping, uplink_queue,
};
use crate::{
    ephemeral::EphemeralPool,
    error::{Error, Result},
    kernel::{bpffs, link, maps::Maps, netlink::Netlink, programs, qdisc::Leaf},
    settings::Settings,
    state::{ContainerRecord, Phase, Store},
};

impl Daemon {
    /// Starts a daemon: checks everything, then takes over what an earlier one left, then does the rest.
    pub fn start(settings: Settings) -> Result<Self> {
        host::check_root()?;
        bpffs::check_mounted(settings.pins.bpffs())?;
        let facts = HostFacts::discover(&settings)?;
        host::check_ports(&settings)?;
        let store = Store::lock(&settings.state_dir)?;
        let mechanism = programs::Mechanism::detect();
        let records = store.containers()?;
        let mut pool = EphemeralPool::new(settings.ephemeral_ports.clone());
        for record in records.iter().filter(|record| record.phase == Phase::Ready) {
            check_still_managed(&settings, record, &mut pool)?;
        }
        let mut host_record = host::record(&store, &settings, &facts, mechanism)?;
        let leaf = Leaf::best()?;
        let speed_per_cpu = shaping::speed_per_cpu(&settings.shaping, &facts);
        shaping::warn_of_limits(&settings.shaping, leaf, speed_per_cpu, &facts.uplink);
        programs::load(&settings.pins)?;
        let mut maps = Maps::open(&settings.pins)?;
        let has_flows = uplink_queue::settle(&store, &mut host_record, &settings, &facts, leaf)?;
        maps.set_config(&facts.config(has_flows))?;
        let registry = Registry { pool, containers: BTreeMap::new() };
        let daemon = Self {
            settings,
            facts,
            mechanism,
            leaf,
            has_flows,
            speed_per_cpu,
            updating: Mutex::new(()),
            store,
            maps: Mutex::new(maps),
            registry: Mutex::new(registry),
            open: RwLock::new(true),
        };
        for record in records {
            daemon.recover(record)?;
        }
        daemon.publish_ports();
        host::set_up(&daemon.settings, &daemon.facts, mechanism)?;
        info!(
            "sharing {} of {}, programs attached by {}, {} containers found again",
            daemon.facts.addresses(),
            daemon.facts.uplink,
            mechanism.name(),
            daemon.registry().containers.len()
        );
        Ok(daemon)
    }

    /// Takes a container of an earlier daemon over, or removes what is left of one that was not complete.
    fn recover(&self, mut record: ContainerRecord) -> Result<()> {
        if record.phase != Phase::Ready {
            warn!("removing container {:?}, which was left half {:?}", record.name, record.phase);
            self.maps().set_endpoint(record.slot, Endpoint::default())?;
            dismantle(self.mechanism, &self.settings.pins, &record)?;
            return self.store.remove_container(&record.name);
        }
        let (egress, ingress) = self.limits(&record.wishes);
        record.egress = egress;
        if record.ingress.is_some() || self.settings.shaping.ingress_for_existing {
            record.ingress = ingress;
        }
        let broken = match self.take_over(&record).and_then(|()| self.apply(&record)) {
            Ok(()) => false,
            Err(error) => {
                warn!("container {:?} is out of service: {error}", record.name);
                true
            }
        };
        self.store.set_container(&record)?;
        self.registry().containers.insert(record.name.clone(), Entry { record, broken });
        Ok(())
    }

    /// Puts the new programs into a container's hooks.
    fn take_over(&self, record: &ContainerRecord) -> Result<()> {
        let veth = record.host_veth();
        let found = link::find_by_index(&Netlink::open()?, veth_ifindex(record.slot))?;
        if found.is_none_or(|interface| interface.name != veth) {
            return Err(Error::failure(format!("its interface {veth} is gone")));
        }
        let namespace = open_same(record).ok_or_else(|| {
            Error::failure(format!("{} no longer stands for its network namespace", record.netns.display()))
        })?;
        programs::attach(self.mechanism, &self.settings.pins, &veth_hook(&self.settings.pins, record))?;
        namespace.run(|| self.attach_inside(record))
    }

    /// Makes the port map say what the records say.
    fn publish_ports(&self) {
        let mut owners: BTreeMap<u16, PortEntry> = BTreeMap::new();
        for entry in self.registry().containers.values().filter(|entry| !entry.broken) {
            owners.extend(
                entry
                    .record
                    .all_ports()
                    .iter()
                    .map(|port| (port, port_entry(&entry.record, self.flags(&entry.record)))),
            );
        }
        let maps = self.maps();
        for port in 0..=u16::MAX {
            let owner = owners.get(&port).copied().unwrap_or_default();
            if maps.ports.get(port) != owner {
                maps.ports.set(port, owner);
            }
        }
    }
}

/// Refuses settings under which a container that is in service could not have been added.
fn check_still_managed(
    settings: &Settings,
    record: &ContainerRecord,
    pool: &mut EphemeralPool,
) -> Result<()> {
    let advice = "start with ranges that include them, or delete the container with the old settings first";
    let lost = record.ports.difference(&settings.ports);
    if !lost.is_empty() {
        return Err(Error::conflict(format!(
            "container {:?} owns the ports {lost}, which --ports lacks: {advice}",
            record.name
        )));
    }
    pool.reserve(record.ephemeral_ports)
        .map_err(|error| Error::conflict(format!("container {:?}: {error}: {advice}", record.name)))
}
