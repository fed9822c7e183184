//! Bringing back what is meant to be: of one container, and of everything.

use std::collections::HashMap;

use portmap_common::{slot::veth_ifindex, tables::Endpoint};
use tracing::{info, warn};

use super::{
    Daemon, HostFacts,
    container::{hooks_inside, open_same, veth, veth_hook},
    host::{self, Mending},
    inside, uplink_queue,
    watch::News,
};
use crate::{
    api::Finding,
    error::{Error, Result},
    kernel::{
        link::{self, Interface},
        netlink::Netlink,
        programs,
        sysctl::Sysctls,
    },
    model::{ContainerRecord, Phase},
};

/// How a container that is meant to be in service was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// In service, after these repairs.
    There(Vec<String>),
    /// Without its interfaces, which it has again.
    Unconnected,
    /// Its namespace has ended.
    Gone,
}

impl Daemon {
    /// Brings a container into service again, as far as anything of it is missing.
    pub(super) fn bring_back(&self, record: &ContainerRecord) -> Result<Found> {
        let netlink = Netlink::open()?;
        let (there, namespace) = (veth(&netlink, record)?, open_same(record)?);
        let (there, namespace) = match (there, namespace) {
            (Some(there), Some(namespace)) => (there, namespace),
            (None, Some(namespace)) => {
                self.connect(record, &namespace)?;
                return Ok(Found::Unconnected);
            }
            (Some(_), None) => {
                // Given by a process, for example, that has ended while others go on in the namespace.
                self.hold_without_namespace(record)?;
                return Ok(Found::There(Vec::new()));
            }
            (None, None) => return Ok(Found::Gone),
        };
        let facts = self.facts();
        let mut mended = Vec::new();
        let mut note = |was_missing: bool, what: &str| {
            if was_missing {
                mended.push(what.to_owned());
            }
        };
        if !there.is_up {
            link::set_up(&netlink, there.index, &there.name)?;
        }
        note(!there.is_up, "its interface, which was down");
        note(
            inside::conform_link(&netlink, &facts, there.index, &there.name)?,
            "the host veth's MAC address or MTU",
        );
        let eth0 = there.peer.unwrap_or_default();
        note(self.ensure_endpoint(record, eth0)?, "its entry in pm_endpoints");
        let hook = veth_hook(&self.settings.pins, record);
        note(programs::ensure(&self.settings.pins, &hook)?, hook.program);
        if let Some(guard) = &self.guard {
            note(guard.add(record.slot, &namespace)?, "its entry in pm_guarded");
        }
        namespace.run(|| self.bring_back_inside(record, eth0, &mut note))?;
        Ok(Found::There(mended))
    }

    /// Has the map of endpoints say what it is to say of a container. Returns whether it did not.
    fn ensure_endpoint(&self, record: &ContainerRecord, eth0: u32) -> Result<bool> {
        let maps = &self.maps;
        let found = maps.endpoint(record.slot)?;
        // Its flags change with its limits.
        let Endpoint { generation, flags, .. } = found;
        let expected = Endpoint { generation, flags, ..self.endpoint(record, eth0) };
        if found != expected {
            maps.change_endpoint(record.slot, expected)?;
        }
        Ok(found != expected)
    }

    fn bring_back_inside(
        &self,
        record: &ContainerRecord,
        eth0: u32,
        note: &mut (dyn FnMut(bool, &str) + Send),
    ) -> Result<()> {
        let (netlink, sysctls) = (Netlink::open()?, Sysctls::open()?);
        note(
            inside::conform(&netlink, &sysctls, &self.facts(), record, eth0)?,
            "addresses, routes or MTU inside",
        );
        let is_right = sysctls.local_port_range()? == record.ephemeral_ports;
        if !is_right {
            sysctls.set_local_port_range(record.ephemeral_ports)?;
        }
        note(!is_right, "ip_local_port_range inside");
        for hook in hooks_inside(self.attach_mode, &self.settings.pins, record) {
            note(programs::ensure(&self.settings.pins, &hook)?, hook.program);
        }
        Ok(())
    }

    /// Does what can be done for a container in whose namespace nothing can be done any more.
    fn hold_without_namespace(&self, record: &ContainerRecord) -> Result<()> {
        let pins = &self.settings.pins;
        programs::attach(pins, &veth_hook(pins, record))?;
        for hook in hooks_inside(self.attach_mode, pins, record) {
            programs::replace_by_link(pins, &hook)?;
        }
        warn!(
            "container {:?}: {} no longer stands for its network namespace; it stays in service as it is",
            record.name,
            record.netns.display()
        );
        Ok(())
    }

    /// Follows the host, sees to it that containers are in service that are meant to be, and forgets those whose namespace
    /// has ended; as far as there is reason to.
    pub(super) fn look_after(&self, news: &News) -> Result<()> {
        // After a teardown there is nothing to look after.
        let Ok(_open) = self.open() else { return Ok(()) };
        // What is wrong with the host is no reason not to look after containers.
        let followed = if news.all || news.host { self.follow_host() } else { Ok(()) };
        self.settle(news).and(followed)
    }

    fn settle(&self, news: &News) -> Result<()> {
        let is_host_suspect =
            [link::LOOPBACK, self.facts().uplink_index].iter().any(|own| news.suspects.contains(own));
        let is_host_to_be_mended = (news.all || is_host_suspect) && self.settings.reconcile;
        // The links that hold programs inside namespaces go with their pins.
        let are_pins_lost = is_host_to_be_mended && self.held.check().is_err();
        let mended = if is_host_to_be_mended { self.mend_host() } else { Ok(()) };
        let netlink = Netlink::open()?;
        let all = if news.all { link::all(&netlink)? } else { Vec::new() };
        let all: HashMap<u32, Interface> =
            all.into_iter().map(|interface| (interface.index, interface)).collect();
        let is_told_of = |index| news.veths.contains(&index) || news.suspects.contains(&index);
        for record in self.all_in_service(|record| news.all || is_told_of(veth_ifindex(record.slot))) {
            let index = veth_ifindex(record.slot);
            let found = if news.all { None } else { link::find_by_index(&netlink, index)? };
            let interface = found.as_ref().or(all.get(&index));
            let is_there = interface.is_some_and(|interface| interface.name == record.host_veth());
            let is_suspect = news.all || news.suspects.contains(&index);
            let is_well = !are_pins_lost
                && interface.is_some_and(|interface| interface.is_up)
                && (!is_suspect || (self.has_program(&record) && self.check_outside(&record).is_ok()));
            if !is_there || (self.settings.reconcile && !is_well) {
                self.attend_to(&record.name, false);
            }
        }
        if news.all {
            for name in self.unchecked() {
                self.note(&name, self.checked(&name));
            }
        }
        mended
    }

    /// Whether a container's host veth is known to have its program.
    fn has_program(&self, record: &ContainerRecord) -> bool {
        let pins = &self.settings.pins;
        programs::is_attached(pins, &veth_hook(pins, record)).unwrap_or(false)
    }

    /// The records of containers that are in service, or are meant to be.
    fn all_in_service(&self, is_wanted: impl Fn(&ContainerRecord) -> bool) -> Vec<ContainerRecord> {
        let registry = self.registry();
        let records = registry.containers.values().map(|entry| &entry.record);
        records.filter(|record| record.phase == Phase::Ready && is_wanted(record)).cloned().collect()
    }

    /// Repairs one container, its limits too if it is to be done thoroughly; or forgets it if its namespace has ended.
    fn attend_to(&self, name: &str, with_limits: bool) {
        self.turns.take(name, || {
            if let Err(error) = self.check_first(name) {
                warn!("container {name:?} cannot be taken over: {error}");
            }
            let record = self.registry().containers.get(name).map(|entry| entry.record.clone());
            // Somebody else may have had the turn before, and removed it.
            let Some(record) = record.filter(|record| record.phase == Phase::Ready) else { return };
            let found = self.bring_back(&record);
            let found = match found {
                Ok(found @ (Found::There(_) | Found::Unconnected)) if with_limits => {
                    self.apply_at_least_outside(&record).map(|()| found)
                }
                Ok(Found::There(mut mended)) => self.hold_outside(&record).map(|was_missing| {
                    mended.extend(was_missing.then(|| "what holds its limits at the host".to_owned()));
                    Found::There(mended)
                }),
                found => found,
            };
            let mut broken = false;
            match found {
                Ok(Found::There(mended)) if mended.is_empty() => {}
                Ok(Found::There(mended)) => info!("container {name:?}: put back {}", mended.join(", ")),
                Ok(Found::Unconnected) => info!("container {name:?}: put back its interface, which was gone"),
                Ok(Found::Gone) => {
                    info!("container {name:?} has ended with its network namespace");
                    if let Err(error) = self.delete_in_turn(name) {
                        warn!("container {name:?} is gone, but not all that was made for it: {error}");
                    }
                    return;
                }
                Err(error) => {
                    warn!("container {name:?} cannot be repaired: {error}");
                    broken = Netlink::open().is_ok_and(|netlink| matches!(veth(&netlink, &record), Ok(None)));
                }
            }
            if let Some(entry) = self.registry().containers.get_mut(name) {
                entry.broken = broken;
            }
            self.publish_ports();
        });
    }

    /// Puts back what somebody has changed at the host.
    fn mend_host(&self) -> Result<()> {
        let facts = self.facts();
        // Everything else goes by them.
        let are_pins_back = self.restore_pins()?;
        let is_state_back = self.restore_state();
        let mut mending = host::mend(&self.settings, &self.sysctls, &facts, self.attach_mode);
        mending.note("the pins", Ok::<_, Error>(are_pins_back));
        mending.note("the state", is_state_back);
        if let Some(guard) = &self.guard {
            mending.note("the bind guard", guard.ensure());
        }
        if let (true, Some(parent)) = (self.has_flows, self.settings.shaping.flows) {
            mending.note("the uplink's queue", uplink_queue::restore(&facts, parent));
        }
        mending.note("pm_config, pm_broadcasts and pm_host_access", self.restore_config(&facts));
        let Mending { mended, failures } = mending;
        if !mended.is_empty() {
            info!("put back what was missing at the host: {}", mended.join(", "));
        }
        self.publish_ports();
        failures.into_result()
    }

    /// Makes pins again that somebody has removed. Returns whether there were any.
    fn restore_pins(&self) -> Result<bool> {
        let were_lost = self.held.restore()?;
        if were_lost {
            let mut place = self.place.lock();
            place.take_pins(self.settings.pins.bpffs())?;
        }
        Ok(were_lost)
    }

    /// Tells the programs again what they are to know of the host. Returns whether they had been told something else.
    fn restore_config(&self, facts: &HostFacts) -> Result<bool> {
        let config = self.config(facts);
        let maps = &self.maps;
        let are_other =
            maps.set_host_ports(&self.settings.reach)? | maps.set_broadcasts(&facts.broadcasts)?;
        let is_other = maps.config()? != config;
        if is_other {
            maps.set_config(&config)?;
        }
        Ok(is_other || are_other)
    }

    /// Repairs all that can be repaired, and says how things are then.
    pub fn repair(&self) -> Result<Vec<Finding>> {
        {
            let _open = self.open()?;
            // What cannot be done is a finding afterwards, and no reason not to do the rest.
            for failed in [self.follow_host(), self.mend_host()].into_iter().filter_map(Result::err) {
                warn!("cannot repair the host: {failed}");
            }
            for record in self.all_in_service(|_every| true) {
                self.attend_to(&record.name, true);
            }
        }
        Ok(self.doctor())
    }
}
