//! Making and removing one container.

use std::collections::BTreeMap;

use portmap_common::{
    gcra::GcraState,
    names::{PROG_CONTAINER_ETH0, PROG_CONTAINER_LO, PROG_VETH_INGRESS},
    slot::veth_ifindex,
    tables::{Endpoint, PortEntry},
};
use tracing::warn;

use super::{Daemon, Entry, inside};
use crate::{
    api::Container,
    error::{Error, Failures, Result},
    kernel::{
        bpffs, clock, inherit,
        link::{self, Interface, VethPair},
        namespace::{self, Namespace, NamespaceId, NotOpened},
        netlink::Netlink,
        programs::{self, Hook, Mechanism},
        sysctl::{self, Sysctls},
    },
    paths::Pins,
    records::{ContainerRecord, Phase},
};

/// Name of a container's end of its veth pair.
pub(super) const ETH0: &str = "eth0";

/// How what `ip link` shows of a host veth begins.
pub(super) const ALIAS: &str = "portmap:";

/// What `ip link` shows of a host veth, so that people and `doctor` know whose it is.
pub(super) fn alias(name: &str) -> String {
    format!("{ALIAS}{name}")
}

/// The hook at a container's host veth.
pub(super) fn veth_hook(pins: &Pins, record: &ContainerRecord) -> Hook {
    let interface = record.host_veth();
    let (mechanism, link) = (Mechanism::Clsact, pins.link(&interface));
    Hook { link, interface, ingress: true, program: PROG_VETH_INGRESS, mechanism }
}

/// How programs are attached inside a container's namespace, where the kernel has `best`. Links can be replaced without
/// going there, which may not be possible in somebody else's.
const fn mechanism_inside(best: Mechanism, record: &ContainerRecord) -> Mechanism {
    if record.owns_netns { Mechanism::Clsact } else { best }
}

/// The hook at a container's loopback device, to be used inside its namespace.
pub(super) fn loopback_hook(best: Mechanism, pins: &Pins, record: &ContainerRecord) -> Hook {
    Hook {
        link: pins.link(&format!("{}-lo", record.host_veth())),
        interface: "lo".to_owned(),
        ingress: false,
        program: PROG_CONTAINER_LO,
        mechanism: mechanism_inside(best, record),
    }
}

/// The hook at a container's end of its veth pair, to be used inside its namespace. Only IPv6 needs it.
fn eth0_hook(best: Mechanism, pins: &Pins, record: &ContainerRecord) -> Hook {
    Hook {
        link: pins.link(&format!("{}-eth0", record.host_veth())),
        interface: ETH0.to_owned(),
        ingress: true,
        program: PROG_CONTAINER_ETH0,
        mechanism: mechanism_inside(best, record),
    }
}

/// All hooks inside a container's namespace.
pub(super) fn hooks_inside(best: Mechanism, pins: &Pins, record: &ContainerRecord) -> Vec<Hook> {
    let mut hooks = vec![loopback_hook(best, pins, record)];
    if record.ipv6 {
        hooks.push(eth0_hook(best, pins, record));
    }
    hooks
}

/// The entry of a container's ports.
pub(super) const fn port_entry(record: &ContainerRecord, flags: u16) -> PortEntry {
    PortEntry { ifindex: veth_ifindex(record.slot), slot: record.slot, flags }
}

impl Daemon {
    /// Makes a container that has been admitted. What it leaves behind when it fails, [`Daemon::remove`] removes.
    pub(super) fn make(&self, record: &mut ContainerRecord) -> Result<()> {
        let mut namespace = self.namespace_for(record)?;
        self.store.set_container(record)?;
        if record.owns_netns {
            // Written down first, so that nobody takes what somebody else has under this name for it.
            namespace = namespace.give_name(&record.name)?;
        }
        self.maps.reset_counters(record.slot)?;
        self.connect(record, &namespace)?;
        record.phase = Phase::Ready;
        self.store.set_container(record)
    }

    /// Has packets arrive at a container, and at no other port of an earlier form of it; nothing else publishes its ports
    /// meanwhile, because the registry is held.
    pub(super) fn enter_service(&self, record: ContainerRecord) -> Container {
        let mut registry = self.registry();
        let (ports, flags, owned) = (&self.maps.ports, self.flags(&record), record.all_ports());
        for port in owned.iter() {
            ports.set(port, port_entry(&record, flags));
        }
        if let Some(before) = registry.containers.get(&record.name) {
            for port in before.record.all_ports().difference(&owned).iter() {
                ports.set(port, PortEntry::default());
            }
        }
        let entry = Entry::new(record, false);
        let container = self.describe(&entry);
        registry.containers.insert(container.name.clone(), entry);
        container
    }

    /// Makes or opens the container's namespace and enters it into the record.
    fn namespace_for(&self, record: &mut ContainerRecord) -> Result<Namespace> {
        if record.owns_netns {
            let namespace = Namespace::create()?;
            record.namespace = Some(namespace.id()?);
            return Ok(namespace);
        }
        let namespace = Namespace::open(&record.netns)?;
        let id = namespace.id()?;
        if id.is_same(self.facts().namespace) {
            return Err(Error::usage(format!(
                "{} is the host's own network namespace: expected one of its own for the container",
                record.netns.display()
            )));
        }
        self.claim(&record.name, id)?;
        let inherited = self.inherited(record);
        let mut before = namespace.run(inside::look)?;
        before.sysctls.extend(namespace.run(|| inherit::before(&inherited))?);
        record.before = Some(before);
        record.namespace = Some(id);
        Ok(namespace)
    }

    /// Sees to it that a namespace becomes one container only.
    fn claim(&self, name: &str, id: NamespaceId) -> Result<()> {
        let mut registry = self.registry();
        let is_this = |entry: &&Entry| entry.record.namespace.is_some_and(|own| own.is_same(id));
        if let Some(other) = registry.containers.values().find(is_this) {
            return Err(Error::conflict(format!(
                "{} is the network namespace of container {:?} already: expected one of its own",
                other.record.netns.display(),
                other.record.name
            )));
        }
        if let Some(entry) = registry.containers.get_mut(name) {
            entry.record.namespace = Some(id);
        }
        Ok(())
    }

    /// Connects the container's namespace with the host.
    pub(super) fn connect(&self, record: &ContainerRecord, namespace: &Namespace) -> Result<()> {
        let (netlink, facts) = (Netlink::open()?, self.facts());
        let host_veth = record.host_veth();
        let eth0 = namespace.run(inside::free_index)?;
        link::create_veth(
            &netlink,
            &VethPair {
                host_name: &host_veth,
                host_index: veth_ifindex(record.slot),
                alias: &alias(&record.name),
                container_name: ETH0,
                container_index: eth0,
                container: namespace,
                mac: facts.mac,
                mtu: facts.mtu,
            },
        )?;
        // Its own address and router solicitations would only be dropped by the program at the other end.
        self.sysctls.write_if_present(&sysctl::of_interface("ipv6", &host_veth, "disable_ipv6"), "1")?;
        self.maps.set_endpoint(record.slot, self.endpoint(record, eth0))?;
        self.maps.set_limit(record.slot, self.limit_entry(record))?;
        if let Some(guard) = &self.guard {
            guard.add(record.slot, namespace)?;
        }
        // Before the link comes up, so that not a single packet gets past it.
        programs::attach(&self.settings.pins, &veth_hook(&self.settings.pins, record))?;
        link::set_up(&netlink, veth_ifindex(record.slot), &host_veth)?;
        let inherited = self.inherited(record);
        namespace.run(|| {
            let sysctls = Sysctls::open()?;
            if !inherited.is_empty() {
                // First where that is possible: what is kept for the privileged may reach up to there. It is set again below.
                let _ = sysctls.set_local_port_range(record.ephemeral_ports);
                inherit::apply(&inherited)?;
            }
            if record.egress.is_some() {
                self.limit_egress(record, eth0)?;
            }
            inside::set_up(&sysctls, &facts, record, eth0)?;
            self.attach_inside(record)
        })?;
        // Where the other end is up, a queue is at work at once. One that was made before would be when the kernel's watcher
        // of links has seen the other end (`linkwatch_do_dev`), and lose what comes until then.
        if record.ingress.is_some() {
            self.limit_ingress(record)?;
        }
        Ok(())
    }

    /// The host's settings that a container's namespace gets, with their values: all in which a new one differs, if it is made
    /// for the container or that was asked for. What portmap sets itself comes afterwards.
    fn inherited(&self, record: &ContainerRecord) -> Vec<(String, String)> {
        if !record.owns_netns && !record.inherit_sysctls {
            return Vec::new();
        }
        self.inheritance.differing(record.ephemeral_ports.first())
    }

    /// What the programs are told of a container, apart from the generation.
    pub(super) fn endpoint(&self, record: &ContainerRecord, eth0: u32) -> Endpoint {
        Endpoint {
            host_ifindex: veth_ifindex(record.slot),
            eth0_ifindex: eth0,
            ephemeral_first: record.ephemeral_ports.first(),
            ephemeral_last: record.ephemeral_ports.last(),
            flags: self.flags(record),
            ..Endpoint::default()
        }
    }

    /// Puts the programs into the hooks of the calling thread's namespace, a container's.
    pub(super) fn attach_inside(&self, record: &ContainerRecord) -> Result<()> {
        for hook in hooks_inside(self.mechanism, &self.settings.pins, record) {
            programs::attach(&self.settings.pins, &hook)?;
        }
        Ok(())
    }

    /// Removes whatever is there of a container, then forgets it. All that can be done is done, even if some of it
    /// fails; then the record stays, and another attempt can follow.
    pub(super) fn remove(&self, record: &ContainerRecord) -> Result<()> {
        let is_own = |port: &u16| self.maps.ports.get(*port).slot == record.slot;
        for port in record.all_ports().iter().filter(is_own) {
            self.maps.ports.set(port, PortEntry::default());
        }
        self.maps.set_endpoint(record.slot, Endpoint::default())?;
        self.maps.set_limit(record.slot, GcraState::default())?;
        let mut failures = Failures::default();
        if let Some(guard) = &self.guard {
            failures.note(guard.remove(record.slot));
        }
        failures.note(dismantle(self.mechanism, &self.settings.pins, record));
        failures.into_result()?;
        let mut registry = self.registry();
        if record.phase == Phase::Adding {
            self.store.remove_container(&record.name)?;
            registry.pool.cancel(record.ephemeral_ports);
        } else {
            let mut pool = registry.pool.clone();
            pool.release(&record.name, record.ephemeral_ports, clock::since_boot()?);
            // First, so that no daemon knows neither the container nor that its ports rest.
            let written = self.store.set_resting(pool.resting());
            self.store.remove_container(&record.name)?;
            // Where there was no room, there may be now.
            if let Err(error) = written.or_else(|_full| self.store.set_resting(pool.resting())) {
                warn!("the ports {} do not rest if the daemon is replaced: {error}", record.ephemeral_ports);
            }
            registry.pool = pool;
        }
        registry.containers.remove(&record.name);
        Ok(())
    }
}

/// Removes a container's interfaces, links and namespace, as far as they are there and are its own.
pub(super) fn dismantle(mechanism: Mechanism, pins: &Pins, record: &ContainerRecord) -> Result<()> {
    let mut failures = Failures::default();
    failures.note(delete_veth(record));
    for hook in [veth_hook(pins, record)].iter().chain(&hooks_inside(mechanism, pins, record)) {
        failures.note(bpffs::unpin(&hook.link));
    }
    match open_same(record) {
        Ok(Some(_)) if record.owns_netns => failures.note(namespace::remove(&record.name)),
        Ok(Some(namespace)) => {
            forget_inside(record, namespace.run(|| inside::restore(mechanism, pins, record)));
        }
        Ok(None) if record.owns_netns => failures.note(namespace::remove_rest(&record.name)),
        Ok(None) => {}
        Err(error) if record.owns_netns => failures.note(Err(error)),
        Err(error) => forget_inside(record, Err(error)),
    }
    failures.into_result()
}

/// Deletes the host veths of several containers, and with them the other ends.
pub(super) fn delete_veths(records: &[ContainerRecord]) -> Result<()> {
    let netlink = Netlink::open()?;
    let names: BTreeMap<u32, String> =
        records.iter().map(|record| (veth_ifindex(record.slot), record.host_veth())).collect();
    let there = link::all(&netlink)?.into_iter().map(|interface| (interface.index, interface.name));
    let own: Vec<u32> =
        there.filter(|(index, name)| names.get(index) == Some(name)).map(|(index, _)| index).collect();
    if own.len() > 1 { link::delete_all(&netlink, &own) } else { Ok(()) }
}

/// Says what cannot be put back in somebody else's namespace. What is inside is its owner's, and is no reason to keep a container.
fn forget_inside(record: &ContainerRecord, restored: Result<()>) {
    if let Err(error) = restored {
        let (name, netns) = (&record.name, record.netns.display());
        warn!("container {name:?}: {netns} is not as it was before, and stays so: {error}");
    }
}

/// Deletes the host veth, and with it the other end.
fn delete_veth(record: &ContainerRecord) -> Result<()> {
    let netlink = Netlink::open()?;
    match veth(&netlink, record)? {
        Some(interface) => link::delete(&netlink, interface.index, &interface.name),
        None => Ok(()),
    }
}

/// The host veth of a container; none if it is gone with its namespace, or somebody else's has its place.
pub(super) fn veth(netlink: &Netlink, record: &ContainerRecord) -> Result<Option<Interface>> {
    let found = link::find_by_index(netlink, veth_ifindex(record.slot))?;
    Ok(found.filter(|interface| interface.name == record.host_veth()))
}

/// The container's namespace, if its file still stands for the one that was written down.
pub(super) fn open_same(record: &ContainerRecord) -> Result<Option<Namespace>> {
    let Some(recorded) = record.namespace else { return Ok(None) };
    match Namespace::open(&record.netns) {
        Ok(namespace) => Ok(namespace.is(recorded)?.then_some(namespace)),
        Err(NotOpened::Missing(_) | NotOpened::Ended(_) | NotOpened::Other(_)) => Ok(None),
        Err(NotOpened::Failed(error)) => Err(error),
    }
}

/// The container's namespace, where nothing can be done without it.
pub(super) fn namespace_of(record: &ContainerRecord) -> Result<Namespace> {
    open_same(record)?.ok_or_else(|| {
        Error::failure(format!(
            "{} no longer stands for the network namespace of container {:?}",
            record.netns.display(),
            record.name
        ))
    })
}
