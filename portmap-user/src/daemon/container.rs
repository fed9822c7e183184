//! Making and removing one container.

use portmap_common::{
    limit::Limit,
    names::{PROG_CONTAINER_ETH0, PROG_CONTAINER_LO, PROG_VETH_INGRESS},
    slot::{loopback_mac, veth_ifindex},
    tables::{Endpoint, PortEntry},
};

use super::{Daemon, HostFacts};
use crate::{
    error::{Error, Failures, Kind, Result},
    kernel::{
        address, bpffs, clsact,
        link::{self, LOOPBACK, Mac, VethPair},
        namespace::{self, Namespace, NamespaceId},
        netlink::Netlink,
        programs::{self, Hook, Mechanism},
        sysctl,
    },
    paths::Pins,
    state::{ContainerRecord, NamespaceBefore, Phase},
};

/// Name of a container's end of its veth pair.
const ETH0: &str = "eth0";

/// What `ip link` shows of a host veth, so that people and `doctor` know whose it is.
pub(super) fn alias(name: &str) -> String {
    format!("portmap:{name}")
}

/// The hook at a container's host veth.
pub(super) fn veth_hook(pins: &Pins, record: &ContainerRecord) -> Hook {
    let interface = record.host_veth();
    Hook { link: pins.link(&interface), interface, ingress: true, program: PROG_VETH_INGRESS }
}

/// The hook at a container's loopback device, to be used inside its namespace.
fn loopback_hook(pins: &Pins, record: &ContainerRecord) -> Hook {
    Hook {
        link: pins.link(&format!("{}-lo", record.host_veth())),
        interface: "lo".to_owned(),
        ingress: false,
        program: PROG_CONTAINER_LO,
    }
}

/// The hook at a container's end of its veth pair, to be used inside its namespace. Only IPv6 needs it.
fn eth0_hook(pins: &Pins, record: &ContainerRecord) -> Hook {
    Hook {
        link: pins.link(&format!("{}-eth0", record.host_veth())),
        interface: ETH0.to_owned(),
        ingress: true,
        program: PROG_CONTAINER_ETH0,
    }
}

/// All hooks inside a container's namespace.
pub(super) fn hooks_inside(pins: &Pins, record: &ContainerRecord) -> Vec<Hook> {
    let mut hooks = vec![loopback_hook(pins, record)];
    if record.ipv6 {
        hooks.push(eth0_hook(pins, record));
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
        let namespace = self.namespace_for(record)?;
        self.store.set_container(record)?;
        self.maps().reset_counters(record.slot)?;
        self.connect(record, &namespace)?;
        record.phase = Phase::Ready;
        self.store.set_container(record)?;
        // Last, because from now on packets arrive.
        let (maps, flags) = (self.maps(), self.flags(record));
        for port in record.all_ports().iter() {
            maps.ports.set(port, port_entry(record, flags));
        }
        Ok(())
    }

    /// Makes or opens the container's namespace and writes it into the record.
    fn namespace_for(&self, record: &mut ContainerRecord) -> Result<Namespace> {
        if record.owns_netns {
            let made = Namespace::create(&record.name);
            if made.as_ref().is_err_and(|error| error.kind == Kind::Conflict) {
                // Somebody else's, so it must survive the undoing.
                record.owns_netns = false;
            }
            let namespace = made?;
            record.namespace = Some(namespace.id()?);
            return Ok(namespace);
        }
        let namespace = Namespace::open(&record.netns)?;
        let id = namespace.id()?;
        if id == self.facts.namespace {
            return Err(Error::usage(format!(
                "{} is the host's own network namespace: expected one of its own for the container",
                record.netns.display()
            )));
        }
        self.claim(&record.name, id)?;
        record.before = Some(namespace.run(look)?);
        record.namespace = Some(id);
        Ok(namespace)
    }

    /// Sees to it that a namespace becomes one container only.
    fn claim(&self, name: &str, id: NamespaceId) -> Result<()> {
        let mut registry = self.registry();
        if let Some(other) = registry.containers.values().find(|entry| entry.record.namespace == Some(id)) {
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
    fn connect(&self, record: &ContainerRecord, namespace: &Namespace) -> Result<()> {
        let netlink = Netlink::open()?;
        let host_veth = record.host_veth();
        let eth0 = namespace.run(free_index)?;
        link::create_veth(
            &netlink,
            &VethPair {
                host_name: &host_veth,
                host_index: veth_ifindex(record.slot),
                alias: &alias(&record.name),
                container_name: ETH0,
                container_index: eth0,
                container: namespace,
                mac: self.facts.mac,
                mtu: self.facts.mtu,
            },
        )?;
        // Its own address and router solicitations would only be dropped by the program at the other end.
        sysctl::write_if_present(&sysctl::of_interface("ipv6", &host_veth, "disable_ipv6"), "1")?;
        let endpoint = Endpoint {
            host_ifindex: veth_ifindex(record.slot),
            eth0_ifindex: eth0,
            ephemeral_first: record.ephemeral_ports.first(),
            ephemeral_last: record.ephemeral_ports.last(),
            flags: self.flags(record),
            ..Endpoint::default()
        };
        self.maps().set_endpoint(record.slot, endpoint)?;
        self.maps().set_limit(record.slot, self.limit_entry(record))?;
        if record.ingress.is_some() {
            self.limit_ingress(record)?;
        }
        // Before the link comes up, so that not a single packet gets past it.
        programs::attach(self.mechanism, &self.settings.pins, &veth_hook(&self.settings.pins, record))?;
        link::set_up(&netlink, veth_ifindex(record.slot), &host_veth)?;
        let inherited = if record.owns_netns { inherited() } else { Vec::new() };
        namespace.run(|| {
            for (setting, value) in &inherited {
                sysctl::write_if_present(setting, value)?;
            }
            if record.egress.is_some() {
                self.limit_egress(record, eth0)?;
            }
            set_up_inside(&self.facts, record, eth0)?;
            self.attach_inside(record)
        })
    }

    /// Puts the programs into the hooks of the calling thread's namespace, a container's.
    pub(super) fn attach_inside(&self, record: &ContainerRecord) -> Result<()> {
        for hook in hooks_inside(&self.settings.pins, record) {
            programs::attach(self.mechanism, &self.settings.pins, &hook)?;
        }
        Ok(())
    }

    /// Removes whatever is there of a container, then forgets it. All that can be done is done, even if some of it
    /// fails; then the record stays, and another attempt can follow.
    pub(super) fn remove(&self, record: &ContainerRecord) -> Result<()> {
        {
            let mut maps = self.maps();
            let is_own = |port: &u16| maps.ports.get(*port).slot == record.slot;
            for port in record.all_ports().iter().filter(is_own) {
                maps.ports.set(port, PortEntry::default());
            }
            maps.set_endpoint(record.slot, Endpoint::default())?;
            maps.set_limit(record.slot, Limit::default())?;
        }
        dismantle(self.mechanism, &self.settings.pins, record)?;
        self.store.remove_container(&record.name)?;
        let mut registry = self.registry();
        registry.pool.release(record.ephemeral_ports);
        registry.containers.remove(&record.name);
        Ok(())
    }
}

/// Removes a container's interfaces, links and namespace, as far as they are there and are its own.
pub(super) fn dismantle(mechanism: Mechanism, pins: &Pins, record: &ContainerRecord) -> Result<()> {
    let mut failures = Failures::default();
    failures.note(delete_veth(record));
    for hook in [veth_hook(pins, record)].iter().chain(&hooks_inside(pins, record)) {
        failures.note(bpffs::unpin(&hook.link));
    }
    match open_same(record) {
        Some(_) if record.owns_netns => failures.note(namespace::remove(&record.name)),
        Some(namespace) => failures.note(namespace.run(|| restore(mechanism, pins, record))),
        // Made, perhaps, but not yet looked at when the daemon was killed.
        None if record.owns_netns && record.namespace.is_none() => {
            failures.note(namespace::remove(&record.name));
        }
        None => {}
    }
    failures.into_result()
}

/// Deletes the host veth, and with it the other end.
fn delete_veth(record: &ContainerRecord) -> Result<()> {
    let netlink = Netlink::open()?;
    let index = veth_ifindex(record.slot);
    match link::find_by_index(&netlink, index)? {
        Some(interface) if interface.name == record.host_veth() => {
            link::delete(&netlink, index, &interface.name)
        }
        // Gone with its namespace, or somebody else's.
        _ => Ok(()),
    }
}

/// The container's namespace, if its file still stands for the one that was written down.
pub(super) fn open_same(record: &ContainerRecord) -> Option<Namespace> {
    let namespace = Namespace::open(&record.netns).ok()?;
    let id = namespace.id().ok()?;
    (Some(id) == record.namespace).then_some(namespace)
}

/// Settings of the host that a namespace of ours gets, too: whether connections ask for ECN, by which queues mark instead of
/// dropping, and how many may wait to be accepted. In somebody else's namespace they are as that one wants them.
const INHERITED: [&str; 3] = ["core/somaxconn", "ipv4/tcp_ecn", "ipv4/tcp_ecn_fallback"];

/// Those that this kernel has, with the values of the calling thread's namespace.
fn inherited() -> Vec<(&'static str, String)> {
    INHERITED.into_iter().filter_map(|setting| Some((setting, sysctl::read(setting).ok()?))).collect()
}

/// The lowest index that no interface of the calling thread's namespace has; usually that behind the loopback's.
fn free_index() -> Result<u32> {
    let netlink = Netlink::open()?;
    let mut index = LOOPBACK + 1;
    while link::find_by_index(&netlink, index)?.is_some() {
        index += 1;
    }
    Ok(index)
}

/// What [`set_up_inside`] will change in the calling thread's namespace.
fn look() -> Result<NamespaceBefore> {
    let netlink = Netlink::open()?;
    let lo = link::find_by_index(&netlink, LOOPBACK)?
        .ok_or_else(|| Error::failure("the network namespace has no loopback device"))?;
    Ok(NamespaceBefore {
        lo_mac: lo.mac,
        lo_mtu: lo.mtu,
        local_ports: sysctl::local_port_range()?,
        had_clsact: clsact::has_qdisc(&netlink, "lo")?,
    })
}

/// Gives the calling thread's namespace, a container's, the host's address and the container's ports.
fn set_up_inside(facts: &HostFacts, record: &ContainerRecord, eth0: u32) -> Result<()> {
    let netlink = Netlink::open()?;
    // Packets from the host and from other containers have the container's own address as their source, and may
    // be for 127.0.0.0/8.
    for setting in ["accept_local", "route_localnet"] {
        sysctl::write(&sysctl::of_interface("ipv4", ETH0, setting), "1")?;
    }
    // The route back to such a source is not by eth0; the larger of both values counts.
    for interface in ["all", ETH0] {
        sysctl::write(&sysctl::of_interface("ipv4", interface, "rp_filter"), "0")?;
    }
    sysctl::write_if_present(
        &sysctl::of_interface("ipv6", ETH0, "disable_ipv6"),
        if facts.v6.is_some() { "0" } else { "1" },
    )?;
    if facts.v6.is_some() {
        for (setting, value) in ETH0_IPV6 {
            sysctl::write(&sysctl::of_interface("ipv6", ETH0, setting), value)?;
        }
    }
    sysctl::set_local_port_range(record.ephemeral_ports)?;
    // The uplink's MTU on the loopback device, too: what is sent to the host or another container by it leaves
    // through eth0.
    link::change_loopback(&netlink, Some(loopback_mac(record.slot)), facts.mtu)?;
    link::set_up(&netlink, LOOPBACK, "lo")?;
    link::set_up(&netlink, eth0, ETH0)?;
    address::add(&netlink, eth0, facts.v4.address.into(), facts.v4.prefix_length)?;
    address::add_default_route(&netlink, eth0, facts.v4.gateway)?;
    if let Some(v6) = &facts.v6 {
        address::add(&netlink, eth0, v6.address.into(), v6.prefix_length)?;
        address::add_default_route6(&netlink, eth0)?;
    }
    Ok(())
}

/// IPv6 settings of a container's `eth0`. The host alone speaks to routers and neighbours: the container makes itself
/// no addresses, asks for none, and does not ask whether anybody has the one that it is given.
const ETH0_IPV6: [(&str, &str); 5] = [
    ("accept_dad", "0"),
    ("accept_ra", "0"),
    ("autoconf", "0"),
    ("addr_gen_mode", "1"),
    ("router_solicitations", "0"),
];

/// Puts back what [`set_up_inside`] changed in the calling thread's namespace and that did not go with `eth0`.
fn restore(mechanism: Mechanism, pins: &Pins, record: &ContainerRecord) -> Result<()> {
    let mut failures = Failures::default();
    failures.note(programs::detach(mechanism, &loopback_hook(pins, record)));
    if let Some(before) = &record.before {
        let netlink = Netlink::open()?;
        // The kernel takes no all-zero address back, which is what a loopback device starts with; ours stays then.
        let mac = (before.lo_mac != Mac::default()).then_some(before.lo_mac);
        failures.note(link::change_loopback(&netlink, mac, before.lo_mtu));
        failures.note(sysctl::set_local_port_range(before.local_ports));
        if mechanism == Mechanism::Clsact && !before.had_clsact {
            failures.note(clsact::delete_qdisc_if_empty(&netlink, "lo"));
        }
    }
    failures.into_result()
}
