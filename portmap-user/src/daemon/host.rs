//! The host's side: what it is like, what the daemon does to it, and undoing that.

use std::{net::Ipv4Addr, path::Path};

use nix::unistd::geteuid;
use portmap_common::{
    names::{PROG_LO_INGRESS, PROG_UPLINK_INGRESS},
    tables::Config,
};
use tracing::warn;

use super::container;
use crate::{
    error::{Error, Failures, Kind, Result},
    kernel::{
        bpffs, clsact,
        link::{self, Interface, LOOPBACK, Mac},
        listeners,
        namespace::{Namespace, NamespaceId},
        netlink::Netlink,
        programs::{self, Hook, Mechanism},
        sysctl,
    },
    paths::{Pins, StateDir},
    settings::Settings,
    state::{HostRecord, SavedSysctl, Store},
};

/// What the host is like.
#[derive(Clone, Debug)]
pub struct HostFacts {
    /// The daemon's network namespace.
    pub namespace: NamespaceId,
    /// The uplink's name.
    pub uplink: String,
    /// The uplink's index.
    pub uplink_index: u32,
    /// The uplink's MAC address, which containers have, too.
    pub mac: Mac,
    /// The uplink's MTU.
    pub mtu: u32,
    /// The address that containers share with the host.
    pub address: Ipv4Addr,
    /// Length of its prefix.
    pub prefix_length: u8,
    /// The next hop to everywhere else, if there is one.
    pub gateway: Option<Ipv4Addr>,
    /// MAC address of the host's loopback device.
    pub lo_mac: Mac,
}

impl HostFacts {
    /// Looks at the host, and refuses one that cannot be shared.
    pub fn discover(settings: &Settings) -> Result<Self> {
        let netlink = Netlink::open()?;
        let routes = link::default_routes(&netlink)?;
        let uplink = find_uplink(&netlink, settings.uplink.as_deref(), &routes)?;
        let name = &uplink.name;
        if !uplink.is_ethernet || uplink.mac == Mac::default() || uplink.index == LOOPBACK {
            return Err(Error::usage(format!(
                "the uplink {name} is no Ethernet interface: expected one with a MAC address, see `ip link`"
            )));
        }
        let (address, prefix_length) = link::address(&netlink, &uplink)?.ok_or_else(|| {
            Error::usage(format!(
                "the uplink {name} has no IPv4 address: expected one that containers can share"
            ))
        })?;
        let gateway =
            routes.iter().filter(|route| route.interface == uplink.index).find_map(|route| route.gateway);
        if gateway.is_none() {
            warn!(
                "no default route leaves by {name}: containers reach no further than {address}/{prefix_length}"
            );
        }
        let lo = link::find_by_index(&netlink, LOOPBACK)?
            .filter(|lo| lo.is_up)
            .ok_or_else(|| Error::usage("the loopback device is down: run `ip link set lo up`"))?;
        Ok(Self {
            namespace: Namespace::current()?.id()?,
            uplink_index: uplink.index,
            mac: uplink.mac,
            mtu: uplink.mtu,
            uplink: uplink.name,
            address,
            prefix_length,
            gateway,
            lo_mac: lo.mac,
        })
    }

    /// The part that the programs know.
    pub fn config(&self) -> Config {
        let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix_length)).unwrap_or_default();
        Config {
            host_ip: self.address.octets(),
            netmask: mask.to_be_bytes(),
            gateway: self.gateway.unwrap_or(Ipv4Addr::UNSPECIFIED).octets(),
            uplink_ifindex: self.uplink_index,
            lo_mac: self.lo_mac,
            reserved: [0; 2],
        }
    }
}

fn find_uplink(netlink: &Netlink, wanted: Option<&str>, routes: &[link::DefaultRoute]) -> Result<Interface> {
    if let Some(name) = wanted {
        return link::find(netlink, name)?.ok_or_else(|| {
            Error::usage(format!("there is no interface {name:?}: `ip link` shows those that exist"))
        });
    }
    let route = routes.first().ok_or_else(|| {
        Error::usage("there is no default route to find the uplink by: name the uplink with --uplink")
    })?;
    link::find_by_index(netlink, route.interface)?
        .ok_or_else(|| Error::failure(format!("the default route's interface {} is gone", route.interface)))
}

/// Fails unless this process may do what the daemon does.
pub(super) fn check_root() -> Result<()> {
    if geteuid().is_root() {
        return Ok(());
    }
    Err(Error::new(
        Kind::NotPermitted,
        "portmap changes network namespaces and loads BPF programs: run it as root",
    ))
}

/// Refuses ports that the host gives out by itself, and warns of those that it already uses.
pub(super) fn check_ports(settings: &Settings) -> Result<()> {
    let host_range = sysctl::local_port_range()?;
    for (flag, ports) in [("--ports", &settings.ports), ("--ephemeral-ports", &settings.ephemeral_ports)] {
        let both = ports.intersection(&host_range.into());
        if !both.is_empty() {
            return Err(Error::usage(format!(
                "{flag}: the host gives out the ports {both} itself: choose others, or move the host's range \
                 ({host_range}) in /proc/sys/net/ipv4/ip_local_port_range"
            )));
        }
    }
    for used in listeners::in_use(&settings.ports.union(&settings.ephemeral_ports)).into_values() {
        warn!("{used}: it will receive nothing once a container owns that port");
    }
    Ok(())
}

/// The hook at the uplink.
pub(super) fn uplink_hook(pins: &Pins, uplink: &str) -> Hook {
    // An interface's name can have dots, a name in a bpffs cannot.
    let link = pins.link("uplink");
    Hook { interface: uplink.to_owned(), ingress: true, program: PROG_UPLINK_INGRESS, link }
}

/// The hook at the host's loopback device.
pub(super) fn lo_hook(pins: &Pins) -> Hook {
    Hook { interface: "lo".to_owned(), ingress: true, program: PROG_LO_INGRESS, link: pins.link("lo") }
}

/// Settings of the host that containers' packets need: they come in by the loopback device, with the host's own
/// address or one of 127.0.0.0/8 as source and destination.
pub(super) const LO_SETTINGS: [&str; 2] = ["accept_local", "route_localnet"];

/// Writes down what is about to be done to the host, keeping what was written down before.
pub(super) fn record(
    store: &Store,
    settings: &Settings,
    facts: &HostFacts,
    mechanism: Mechanism,
) -> Result<HostRecord> {
    let earlier = store.host()?;
    if let Some(earlier) = &earlier {
        check_same_place(earlier, facts.namespace)?;
        if earlier.bpffs_dir != settings.pins.bpffs() {
            return Err(Error::conflict(format!(
                "the state in {} belongs to pins in {}: start with that --bpffs-dir, or run `portmap teardown` first",
                store.directory().path().display(),
                earlier.bpffs_dir.display()
            )));
        }
        if earlier.uplink != facts.uplink {
            // The program leaves the old uplink before it comes to the new one.
            programs::detach(mechanism, &uplink_hook(&settings.pins, &earlier.uplink))?;
        }
    }
    let mut record = HostRecord {
        namespace: facts.namespace,
        bpffs_dir: settings.pins.bpffs().to_owned(),
        uplink: facts.uplink.clone(),
        sysctls: earlier.as_ref().map(|earlier| earlier.sysctls.clone()).unwrap_or_default(),
        clsact: earlier.map(|earlier| earlier.clsact).unwrap_or_default(),
    };
    for setting in LO_SETTINGS {
        let name = sysctl::of_interface("ipv4", "lo", setting);
        let before = sysctl::read(&name)?;
        if before != "1" && !record.sysctls.iter().any(|saved| saved.name == name) {
            record.sysctls.push(SavedSysctl { name, before, set: "1".to_owned() });
        }
    }
    if mechanism == Mechanism::Clsact {
        let netlink = Netlink::open()?;
        for name in ["lo", facts.uplink.as_str()] {
            if !clsact::has_qdisc(&netlink, name)? && !record.clsact.iter().any(|had| had == name) {
                record.clsact.push(name.to_owned());
            }
        }
    }
    store.set_host(&record)?;
    Ok(record)
}

/// Refuses state that belongs to another host.
fn check_same_place(record: &HostRecord, namespace: NamespaceId) -> Result<()> {
    if record.namespace == namespace {
        return Ok(());
    }
    Err(Error::conflict(format!(
        "the state belongs to the network namespace {}, this is {}: run this command there (nsenter --net=…), or name \
         another --state-dir",
        record.namespace.inode, namespace.inode
    )))
}

/// Does to the host what has been written down.
pub(super) fn set_up(settings: &Settings, facts: &HostFacts, mechanism: Mechanism) -> Result<()> {
    for setting in LO_SETTINGS {
        sysctl::write(&sysctl::of_interface("ipv4", "lo", setting), "1")?;
    }
    programs::attach(mechanism, &settings.pins, &lo_hook(&settings.pins))?;
    programs::attach(mechanism, &settings.pins, &uplink_hook(&settings.pins, &facts.uplink))
}

/// Removes everything that a daemon with this state directory has made, whether or not it still runs elsewhere.
/// `bpffs_dir` is for pins whose state is lost.
///
/// Returns whether there was anything.
pub fn teardown(state_dir: &StateDir, bpffs_dir: &Path) -> Result<bool> {
    check_root()?;
    let store = Store::lock(state_dir)?;
    let anything = teardown_locked(&store, bpffs_dir)?;
    store.remove()?;
    Ok(anything)
}

/// The same for whoever has locked the state directory, which stays.
pub(super) fn teardown_locked(store: &Store, bpffs_dir: &Path) -> Result<bool> {
    let mut failures = Failures::default();
    let host = store.host()?;
    let containers = store.containers()?;
    let pins = Pins::new(host.as_ref().map_or(bpffs_dir, |host| &host.bpffs_dir));
    let anything = host.is_some() || !containers.is_empty() || pins.root().exists();
    let mechanism = Mechanism::detect();
    if let Some(host) = &host {
        check_same_place(host, Namespace::current()?.id()?)?;
        failures.note(leave_host(&pins, mechanism, host));
    }
    for record in &containers {
        match container::dismantle(mechanism, &pins, record) {
            Ok(()) => failures.note(store.remove_container(&record.name)),
            failed => failures.note(failed),
        }
    }
    failures.note(remove_pins(&pins));
    failures.into_result()?;
    store.remove_host()?;
    Ok(anything)
}

/// Takes the programs off the host's interfaces and puts its settings back.
fn leave_host(pins: &Pins, mechanism: Mechanism, host: &HostRecord) -> Result<()> {
    let mut failures = Failures::default();
    failures.note(programs::detach(mechanism, &uplink_hook(pins, &host.uplink)));
    failures.note(programs::detach(mechanism, &lo_hook(pins)));
    if !host.clsact.is_empty() {
        let netlink = Netlink::open()?;
        for name in &host.clsact {
            failures.note(clsact::delete_qdisc_if_empty(&netlink, name));
        }
    }
    for saved in &host.sysctls {
        // Unless somebody has changed it since.
        if sysctl::read(&saved.name).is_ok_and(|value| value == saved.set) {
            failures.note(sysctl::write(&saved.name, &saved.before));
        }
    }
    failures.into_result()
}

fn remove_pins(pins: &Pins) -> Result<()> {
    let mut failures = Failures::default();
    if let Ok(links) = std::fs::read_dir(pins.root().join("links")) {
        for link in links.flatten() {
            failures.note(bpffs::unpin(&link.path()));
        }
    }
    for pin in pins.fixed() {
        failures.note(bpffs::unpin(&pin));
    }
    failures.into_result()?;
    bpffs::remove_directories(pins)
}
