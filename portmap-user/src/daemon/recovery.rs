//! Starting: the host is made ready, and the containers of an earlier daemon are known again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use portmap_common::tables::{PORTS, PortEntry};
use tracing::info;

use super::{
    Daemon, Entry, HostFacts, Place, Registry, Turns, container::port_entry, first::FirstStart, host,
    shaping, takeover::Progress, uplink_queue,
};
use crate::{
    api::ContainerState,
    error::{Error, Result},
    kernel::{
        bpffs, cgroup, clock,
        guard::{self, Guard},
        inherit::Inheritance,
        maps::Maps,
        pin_migration,
        pins::OpenPins,
        programs,
        qdisc::Leaf,
        sysctl::Sysctls,
    },
    locks::{Rank, Ranked, RankedRw},
    model::{ContainerRecord, EphemeralPool, Phase},
    settings::Settings,
    state::Store,
};

impl Daemon {
    /// Starts a daemon: checks everything, then takes over what an earlier one left, then does the rest.
    ///
    /// One that fails leaves containers in service that were, and nothing where nothing was.
    pub fn start(settings: Settings) -> Result<Self> {
        host::check_root()?;
        host::check_namespace()?;
        let first = FirstStart::look(&settings);
        Self::start_over(settings).map_err(|error| match first {
            Some(first) => first.undo(error),
            None => error,
        })
    }

    fn start_over(settings: Settings) -> Result<Self> {
        bpffs::check_mounted(settings.pins.bpffs())?;
        let facts = HostFacts::discover(&settings)?;
        let bind_guard =
            settings.bind_guard.as_ref().map(|guard| cgroup::resolve(guard.path())).transpose()?;
        let sysctls = Sysctls::open()?;
        host::check_ports(&settings, &sysctls)?;
        pin_migration::refuse_later(settings.pins.bpffs())?;
        let store = Store::lock(&settings.state_dir)?;
        let mut place = Place::take(facts.namespace, &settings.state_dir)?;
        place.take_pins(settings.pins.bpffs())?;
        let attach_mode = programs::AttachMode::detect();
        let records = store.containers()?;
        let mut pool = EphemeralPool::new(settings.ephemeral_ports.clone(), settings.quarantine);
        for record in records.iter().filter(|record| record.phase == Phase::Ready) {
            check_still_managed(&settings, record, &mut pool)?;
        }
        for record in records.iter().filter(|record| record.phase != Phase::Ready) {
            // Nobody is to have it before it is removed; not managed any more, nobody can.
            let _ = pool.reserve(record.ephemeral_ports);
        }
        let now = clock::since_boot()?;
        for resting in store.quarantine()? {
            pool.continue_quarantine(resting, now);
        }
        let mut host_record = host::record(&store, &mut place, &settings, &sysctls, &facts, attach_mode)?;
        let leaf = Leaf::best()?;
        let speed_per_cpu = shaping::speed_per_cpu(&settings.shaping, &facts);
        shaping::warn_of_limits(&settings.shaping, leaf, speed_per_cpu, &facts.uplink);
        let takes_layout_over = !pin_migration::earlier(settings.pins.bpffs())?.is_empty();
        bpffs::prepare(&settings.pins)?;
        place.take_pins(settings.pins.bpffs())?;
        pin_migration::migrate(&settings.pins)?;
        programs::load(&settings.pins)?;
        let maps = Maps::open(&settings.pins)?;
        let guard = match &bind_guard {
            Some(cgroup) => Some(Guard::load(&settings.pins, cgroup)?),
            None => None,
        };
        let has_flows = uplink_queue::settle(&store, &mut host_record, &settings, &facts, leaf)?;
        place.note(&host_record);
        let held = OpenPins::open(&settings.pins)?;
        // Before the programs are told to look there.
        maps.set_host_ports(&settings.reach)?;
        maps.set_broadcasts(&facts.broadcasts)?;
        maps.set_config(&settings.reach.apply_to(facts.config(has_flows)))?;
        let registry = Registry { pool, containers: BTreeMap::new() };
        let daemon = Self {
            settings,
            facts: RankedRw::new(Rank::Facts, Arc::new(facts)),
            following: Ranked::new(Rank::Following, ()),
            attach_mode,
            leaf,
            has_flows,
            speed_per_cpu,
            held,
            place: Ranked::new(Rank::Place, place),
            turns: Turns::default(),
            sysctls,
            inheritance: Inheritance::probe()?,
            store,
            maps,
            guard,
            registry: Ranked::new(Rank::Registry, registry),
            open: RankedRw::new(Rank::Open, true),
            progress: Progress::new(records.len()),
        };
        // All that programs ask is there before the first of them is replaced.
        for record in records {
            daemon.registry().containers.insert(record.name.clone(), Entry::found(record));
        }
        daemon.publish_ports();
        if takes_layout_over {
            // Programs of the earlier layout ask maps that nobody fills any more.
            daemon.check_all(|| false);
        }
        daemon.sweep()?;
        let facts = daemon.facts();
        host::set_up(&daemon.settings, &daemon.sysctls, &facts, attach_mode)?;
        daemon.settle_guard()?;
        pin_migration::remove_earlier(daemon.settings.pins.bpffs())?;
        info!(
            "sharing {} of {}, programs attached by {}, taking {} containers over",
            facts.addresses(),
            facts.uplink,
            attach_mode.name(),
            daemon.registry().containers.len()
        );
        daemon.warn_of_claims();
        Ok(daemon)
    }

    /// Attaches the bind guard, or removes that of an earlier daemon.
    fn settle_guard(&self) -> Result<()> {
        let Some(guard) = &self.guard else { return Ok(guard::remove(&self.settings.pins)?) };
        let slots: BTreeSet<u16> =
            self.registry().containers.values().map(|entry| entry.record.slot).collect();
        guard.retain(|slot| slots.contains(&slot))?;
        Ok(guard.attach()?)
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
        for (port, owner) in (0..=u16::MAX).zip(owners) {
            if self.maps.ports.get(port) != owner {
                self.maps.ports.set(port, owner);
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
