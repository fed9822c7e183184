//! Starting: the host is made ready, and the containers of an earlier daemon are found again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, RwLock},
};

use portmap_common::tables::{PORTS, PortEntry};
use tracing::{info, warn};

use super::{
    Daemon, Entry, HostFacts, Registry, Turns,
    container::{open_same, port_entry, veth},
    host,
    repair::Found,
    shaping, uplink_queue,
};
use crate::{
    api::ContainerState,
    ephemeral::EphemeralPool,
    error::{Error, Result},
    kernel::{
        bpffs, clock,
        guard::{self, Guard},
        layout,
        maps::Maps,
        netlink::Netlink,
        programs,
        qdisc::Leaf,
        sysctl::Sysctls,
    },
    records::{ContainerRecord, Phase},
    settings::{BindGuard, Settings},
    state::Store,
};

impl Daemon {
    /// Starts a daemon: checks everything, then takes over what an earlier one left, then does the rest.
    pub fn start(settings: Settings) -> Result<Self> {
        host::check_root()?;
        bpffs::check_mounted(settings.pins.bpffs())?;
        let facts = HostFacts::discover(&settings)?;
        let bind_guard = settings.bind_guard.as_ref().map(BindGuard::cgroup).transpose()?;
        let sysctls = Sysctls::open()?;
        host::check_ports(&settings, &sysctls)?;
        layout::refuse_later(settings.pins.bpffs())?;
        let store = Store::lock(&settings.state_dir)?;
        let mechanism = programs::Mechanism::detect();
        let records = store.containers()?;
        let mut pool = EphemeralPool::new(settings.ephemeral_ports.clone(), settings.rest);
        for record in records.iter().filter(|record| record.phase == Phase::Ready) {
            check_still_managed(&settings, record, &mut pool)?;
        }
        let now = clock::since_boot()?;
        for resting in store.resting()? {
            pool.rest(resting, now);
        }
        let mut host_record = host::record(&store, &settings, &sysctls, &facts, mechanism)?;
        let leaf = Leaf::best()?;
        let speed_per_cpu = shaping::speed_per_cpu(&settings.shaping, &facts);
        shaping::warn_of_limits(&settings.shaping, leaf, speed_per_cpu, &facts.uplink);
        layout::adopt(&settings.pins)?;
        programs::load(&settings.pins)?;
        let mut maps = Maps::open(&settings.pins)?;
        let guard = match &bind_guard {
            Some(cgroup) => Some(Guard::load(&settings.pins, cgroup)?),
            None => None,
        };
        let has_flows = uplink_queue::settle(&store, &mut host_record, &settings, &facts, leaf)?;
        // Before the programs are told to look there.
        maps.set_host_ports(&settings.reach)?;
        maps.set_config(&settings.reach.enter(facts.config(has_flows)))?;
        let registry = Registry { pool, containers: BTreeMap::new() };
        let daemon = Self {
            settings,
            facts: RwLock::new(Arc::new(facts)),
            following: Mutex::new(()),
            mechanism,
            leaf,
            has_flows,
            speed_per_cpu,
            turns: Turns::default(),
            sysctls,
            store,
            maps: Mutex::new(maps),
            guard,
            registry: Mutex::new(registry),
            open: RwLock::new(true),
        };
        // All that programs ask is there before the first of them is replaced.
        for record in records.iter().filter(|record| record.phase == Phase::Ready) {
            daemon.registry().containers.insert(record.name.clone(), Entry::new(record.clone(), false));
        }
        daemon.publish_ports();
        for record in records {
            daemon.recover(record)?;
        }
        daemon.sweep()?;
        daemon.publish_ports();
        let facts = daemon.facts();
        host::set_up(&daemon.settings, &daemon.sysctls, &facts, mechanism)?;
        daemon.settle_guard()?;
        layout::remove_earlier(daemon.settings.pins.bpffs())?;
        info!(
            "sharing {} of {}, programs attached by {}, {} containers found again",
            facts.addresses(),
            facts.uplink,
            mechanism.name(),
            daemon.registry().containers.len()
        );
        Ok(daemon)
    }

    /// Takes a container of an earlier daemon over, or removes what is left of one that was not complete, or has ended.
    fn recover(&self, mut record: ContainerRecord) -> Result<()> {
        if record.phase != Phase::Ready {
            warn!("removing container {:?}, which was left half {}", record.name, record.phase.name());
            return self.remove(&record);
        }
        let (egress, ingress) = self.limits(&record.wishes);
        record.egress = egress;
        if record.ingress.is_some() || self.settings.shaping.ingress_for_existing {
            record.ingress = ingress;
        }
        if record.namespace.is_some_and(|recorded| recorded.cookie.is_none()) {
            // An earlier version has written it down. What goes wrong here goes wrong again in what follows.
            let id = open_same(&record).and_then(|namespace| namespace.map(|same| same.id()).transpose());
            record.namespace = id.ok().flatten().or(record.namespace);
        }
        let found = self.bring_back(&record);
        let broken = match &found {
            Ok(Found::Gone) => {
                info!("container {:?} has ended with its network namespace", record.name);
                return self.remove(&record);
            }
            Ok(Found::Unconnected) => {
                warn!("container {:?} had lost its interface, and has another one", record.name);
                false
            }
            Ok(Found::There(_)) => false,
            Err(error) => {
                warn!("container {:?} is not as it should be: {error}", record.name);
                // Where the interface is, packets go on as they did.
                veth(&Netlink::open()?, &record)?.is_none()
            }
        };
        if !broken {
            self.apply_at_least_outside(&record)?;
        }
        self.store.set_container(&record)?;
        self.registry().containers.insert(record.name.clone(), Entry::new(record, broken));
        Ok(())
    }

    /// Attaches the bind guard, or removes that of an earlier daemon.
    fn settle_guard(&self) -> Result<()> {
        let Some(guard) = &self.guard else { return guard::remove(&self.settings.pins) };
        let slots: BTreeSet<u16> =
            self.registry().containers.values().map(|entry| entry.record.slot).collect();
        guard.retain(|slot| slots.contains(&slot))?;
        guard.attach()
    }

    /// Makes the port map say what the records say.
    pub(super) fn publish_ports(&self) {
        let registry = self.registry();
        let mut owners = vec![PortEntry::default(); PORTS];
        for entry in registry.containers.values().filter(|entry| entry.state() == ContainerState::Ready) {
            let owner = port_entry(&entry.record, self.flags(&entry.record));
            for port in entry.record.all_ports().iter() {
                owners[usize::from(port)] = owner;
            }
        }
        let maps = self.maps();
        for (port, owner) in (0..=u16::MAX).zip(owners) {
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
