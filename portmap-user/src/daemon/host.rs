//! The host's side: what it is like, what the daemon does to it, and undoing that.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

use netlink_packet_route::AddressFamily;

use nix::unistd::geteuid;
use portmap_common::{
    names::{PROG_LO_INGRESS, PROG_UPLINK_EGRESS, PROG_UPLINK_INGRESS},
    queue,
    tables::{Address4, Address6, Config, Mac as MacEntry},
};
use tracing::{info, warn};

use super::{container, uplink_queue};
use crate::{
    error::{Error, Failures, Kind, Result},
    kernel::{
        address::{self, Address, DefaultRoute},
        bpffs, clsact, layout,
        link::{self, Interface, LOOPBACK, Mac},
        listeners,
        namespace::{Namespace, NamespaceId},
        netlink::Netlink,
        programs::{self, Hook, Mechanism},
        sysctl::{self, Sysctls},
    },
    paths::{Pins, StateDir},
    ports::PortSet,
    settings::Settings,
    state::{HostRecord, SavedSysctl, Store},
};

/// What the host is like.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// The IPv4 address that containers share with the host.
    pub v4: Shared<Ipv4Addr>,
    /// The IPv6 address that they share, if the uplink has one.
    pub v6: Option<Shared<Ipv6Addr>>,
    /// MAC address of the host's loopback device.
    pub lo_mac: Mac,
}

/// An address that containers share with the host, and the way from it to elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shared<A> {
    /// The address.
    pub address: A,
    /// Length of its network's prefix in bits.
    pub prefix_length: u8,
    /// The next hop to everywhere else, if there is one.
    pub gateway: Option<A>,
}

impl<A> Shared<A> {
    fn new(Address { address, prefix_length }: Address<A>, gateway: Option<A>) -> Self {
        Self { address, prefix_length, gateway }
    }

    /// The address with its prefix.
    pub(super) fn own(self) -> Address<A> {
        Address { address: self.address, prefix_length: self.prefix_length }
    }
}

/// Smallest MTU of a link on which Linux speaks IPv6 (RFC 8200, section 5).
const SMALLEST_IPV6_MTU: u32 = 1280;

impl HostFacts {
    /// Looks at the host, refuses one that cannot be shared, and says what containers will have to do without.
    pub fn discover(settings: &Settings) -> Result<Self> {
        let facts = Self::look(settings, None)?;
        warn_of_limits(&facts, settings.ipv6);
        Ok(facts)
    }

    /// Looks at the host, and refuses one that cannot be shared. An uplink that is in use stays in use as long as it will
    /// do.
    pub(super) fn look(settings: &Settings, in_use: Option<u32>) -> Result<Self> {
        let netlink = Netlink::open()?;
        let routes = address::default_routes(&netlink, AddressFamily::Inet)?;
        let uplink = find_uplink(&netlink, settings.uplink.as_deref(), &routes, in_use)?;
        let name = &uplink.name;
        if !uplink.is_ethernet || uplink.mac == Mac::default() || uplink.index == LOOPBACK {
            return Err(Error::usage(format!(
                "the uplink {name} is no Ethernet interface: expected one with a MAC address, see `ip link`"
            )));
        }
        let (v4, v6) = look_at_addresses(&netlink, &uplink, &routes, settings.ipv6)?;
        let lo = link::find_by_index(&netlink, LOOPBACK)?
            .filter(|lo| lo.is_up)
            .ok_or_else(|| Error::usage("the loopback device is down: run `ip link set lo up`"))?;
        Ok(Self {
            namespace: Namespace::current()?.id()?,
            uplink_index: uplink.index,
            mac: uplink.mac,
            mtu: uplink.mtu,
            uplink: uplink.name,
            v4,
            v6,
            lo_mac: lo.mac,
        })
    }

    /// The part that the programs know.
    pub fn config(&self, has_flows: bool) -> Config {
        let mask = u32::MAX.checked_shl(32 - u32::from(self.v4.prefix_length)).unwrap_or_default();
        let mut config = Config {
            host_ip: Address4::new(self.v4.address.octets()),
            netmask: Address4::new(mask.to_be_bytes()),
            gateway: Address4::new(self.v4.gateway.unwrap_or(Ipv4Addr::UNSPECIFIED).octets()),
            uplink_ifindex: self.uplink_index,
            mac: MacEntry::new(self.mac),
            lo_mac: MacEntry::new(self.lo_mac),
            uplink_flows: if has_flows { queue::UPLINK_FLOWS } else { 0 },
            ..Config::default()
        };
        if let Some(v6) = &self.v6 {
            let mask = u128::MAX.checked_shl(128 - u32::from(v6.prefix_length)).unwrap_or_default();
            config.host_ip6 = Address6::new(v6.address.octets());
            config.netmask6 = Address6::new(mask.to_be_bytes());
            config.gateway6 = Address6::new(v6.gateway.unwrap_or(Ipv6Addr::UNSPECIFIED).octets());
        }
        config
    }

    /// The shared addresses with their prefixes, for people.
    pub fn addresses(&self) -> String {
        let v4 = format!("{}/{}", self.v4.address, self.v4.prefix_length);
        match &self.v6 {
            Some(v6) => format!("{v4} and {}/{}", v6.address, v6.prefix_length),
            None => v4,
        }
    }
}

/// The addresses of the uplink that can be shared.
pub(super) fn look_at_addresses(
    netlink: &Netlink,
    uplink: &Interface,
    routes: &[DefaultRoute],
    ipv6: bool,
) -> Result<(Shared<Ipv4Addr>, Option<Shared<Ipv6Addr>>)> {
    let name = &uplink.name;
    let addresses = address::of_interface(netlink, uplink)?;
    let v4 = addresses.v4.ok_or_else(|| {
        Error::usage(format!("the uplink {name} has no IPv4 address: expected one that containers can share"))
    })?;
    let v4 = Shared::new(
        v4,
        gateway(routes, uplink, |gateway| match gateway {
            IpAddr::V4(gateway) => Some(gateway),
            IpAddr::V6(_) => None,
        }),
    );
    let Some(v6) = addresses.v6.filter(|_| ipv6) else { return Ok((v4, None)) };
    if uplink.mtu < SMALLEST_IPV6_MTU {
        return Ok((v4, None));
    }
    let routes = address::default_routes(netlink, AddressFamily::Inet6)?;
    let gateway = gateway(&routes, uplink, |gateway| match gateway {
        IpAddr::V6(gateway) => Some(gateway),
        IpAddr::V4(_) => None,
    });
    Ok((v4, Some(Shared::new(v6, gateway))))
}

/// The gateway of the preferred default route by an interface.
fn gateway<A>(
    routes: &[DefaultRoute],
    interface: &Interface,
    right_version: impl Fn(IpAddr) -> Option<A>,
) -> Option<A> {
    let routes = routes.iter().filter(|route| route.interface == interface.index);
    routes.filter_map(|route| route.gateway).find_map(right_version)
}

/// Says what containers will have to do without.
fn warn_of_limits(facts: &HostFacts, ipv6: bool) {
    let uplink = &facts.uplink;
    if facts.v4.gateway.is_none() {
        let Shared { address, prefix_length, .. } = facts.v4;
        warn!(
            "no default route leaves by {uplink}: containers reach no further than {address}/{prefix_length}"
        );
    }
    match &facts.v6 {
        None if ipv6 && facts.mtu < SMALLEST_IPV6_MTU => {
            warn!(
                "the MTU of {uplink} is {}: IPv6 needs {SMALLEST_IPV6_MTU}, so containers have none",
                facts.mtu
            );
        }
        None if ipv6 => info!("{uplink} has no global IPv6 address, so containers have none"),
        Some(Shared { address, prefix_length, gateway: None }) => {
            warn!(
                "no IPv6 default route leaves by {uplink}: containers reach no further than {address}/{prefix_length}"
            );
        }
        _ => {}
    }
}

/// The interface of this name, or that of the preferred default route. One that is in use is kept: under another name if
/// its own has gone, and although another default route has come to be preferred.
fn find_uplink(
    netlink: &Netlink,
    wanted: Option<&str>,
    routes: &[DefaultRoute],
    in_use: Option<u32>,
) -> Result<Interface> {
    if let Some(name) = wanted {
        let renamed = || in_use.map_or(Ok(None), |index| link::find_by_index(netlink, index));
        let found = link::find(netlink, name)?.map_or_else(renamed, |found| Ok(Some(found)))?;
        return found.ok_or_else(|| {
            Error::usage(format!("there is no interface {name:?}: `ip link` shows those that exist"))
        });
    }
    let route = routes.iter().find(|route| Some(route.interface) == in_use).or(routes.first());
    let route = route.ok_or_else(|| {
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
pub(super) fn check_ports(settings: &Settings, sysctls: &Sysctls) -> Result<()> {
    let host_range = sysctls.local_port_range()?;
    for (flag, ports) in [("--ports", &settings.ports), ("--ephemeral-ports", &settings.ephemeral_ports)] {
        let both = ports.intersection(&host_range.into());
        if !both.is_empty() {
            return Err(Error::usage(format!(
                "{flag}: the host gives out the ports {both} itself: choose others, or move the host's range \
                 ({host_range}) in /proc/sys/net/ipv4/ip_local_port_range"
            )));
        }
    }
    for used in listeners::in_use(&managed(settings)).into_values() {
        warn!("{used}: it will receive nothing once a container owns that port");
    }
    Ok(())
}

/// The hooks at the uplink.
pub(super) fn uplink_hooks(mechanism: Mechanism, pins: &Pins, uplink: &str) -> [Hook; 2] {
    // An interface's name can have dots, a name in a bpffs cannot.
    [(true, PROG_UPLINK_INGRESS, "uplink"), (false, PROG_UPLINK_EGRESS, "uplink-out")].map(
        |(ingress, program, link)| Hook {
            interface: uplink.to_owned(),
            ingress,
            program,
            mechanism,
            link: pins.link(link),
        },
    )
}

/// All hooks at the host's own interfaces. The loopback device's comes first: a container's packet for the host needs
/// it from the moment on when one can arrive.
pub(super) fn hooks(mechanism: Mechanism, pins: &Pins, uplink: &str) -> [Hook; 3] {
    let (interface, link) = ("lo".to_owned(), pins.link("lo"));
    let lo = Hook { interface, ingress: true, program: PROG_LO_INGRESS, mechanism, link };
    let [uplink_in, uplink_out] = uplink_hooks(mechanism, pins, uplink);
    [lo, uplink_in, uplink_out]
}

/// Settings of the host that containers' packets need: they come in by the loopback device, with the host's own
/// address or one of 127.0.0.0/8 as source and destination.
pub(super) const LO_SETTINGS: [&str; 2] = ["accept_local", "route_localnet"];

/// Writes down what is about to be done to the host, keeping what was written down before.
pub(super) fn record(
    store: &Store,
    settings: &Settings,
    sysctls: &Sysctls,
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
        // One that has only been renamed keeps its programs.
        let old = link::find(&Netlink::open()?, &earlier.uplink)?;
        if earlier.uplink != facts.uplink && old.is_some() {
            // The program leaves the old uplink before it comes to the new one.
            for hook in uplink_hooks(mechanism, &settings.pins, &earlier.uplink) {
                programs::detach(&hook)?;
            }
            uplink_queue::leave(earlier)?;
        }
    }
    let earlier_reserved = earlier.as_ref().map(|earlier| earlier.reserved.clone()).unwrap_or_default();
    let ours = managed(settings).difference(&sysctls.reserved_ports()?);
    let mut record = HostRecord {
        reserved: earlier_reserved.union(&ours),
        namespace: facts.namespace,
        bpffs_dir: settings.pins.bpffs().to_owned(),
        uplink: facts.uplink.clone(),
        uplink_queue: earlier
            .as_ref()
            .filter(|earlier| earlier.uplink == facts.uplink)
            .and_then(|earlier| earlier.uplink_queue),
        sysctls: earlier.as_ref().map(|earlier| earlier.sysctls.clone()).unwrap_or_default(),
        clsact: earlier.map(|earlier| earlier.clsact).unwrap_or_default(),
    };
    for setting in LO_SETTINGS {
        let name = sysctl::of_interface("ipv4", "lo", setting);
        let before = sysctls.read(&name)?;
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

/// All ports that containers can have.
pub(super) fn managed(settings: &Settings) -> PortSet {
    settings.ports.union(&settings.ephemeral_ports)
}

/// Has the host give out none of the managed ports by itself, whatever becomes of its range. Returns whether it would
/// have.
fn reserve(settings: &Settings, sysctls: &Sysctls) -> Result<bool> {
    let (before, ours) = (sysctls.reserved_ports()?, managed(settings));
    let is_lacking = !ours.difference(&before).is_empty();
    if is_lacking {
        sysctls.set_reserved_ports(&before.union(&ours))?;
    }
    Ok(is_lacking)
}

/// Does to the host what has been written down.
pub(super) fn set_up(
    settings: &Settings,
    sysctls: &Sysctls,
    facts: &HostFacts,
    mechanism: Mechanism,
) -> Result<()> {
    reserve(settings, sysctls)?;
    for setting in LO_SETTINGS {
        sysctls.write(&sysctl::of_interface("ipv4", "lo", setting), "1")?;
    }
    for hook in hooks(mechanism, &settings.pins, &facts.uplink) {
        programs::attach(&settings.pins, &hook)?;
    }
    Ok(())
}

/// Does again what somebody has undone, and returns what that was.
pub(super) fn mend(
    settings: &Settings,
    sysctls: &Sysctls,
    facts: &HostFacts,
    mechanism: Mechanism,
) -> Result<Vec<String>> {
    let mut mended = Vec::new();
    if reserve(settings, sysctls)? {
        mended.push("ip_local_reserved_ports".to_owned());
    }
    for setting in LO_SETTINGS {
        let name = sysctl::of_interface("ipv4", "lo", setting);
        if sysctls.read(&name)? != "1" {
            sysctls.write(&name, "1")?;
            mended.push(format!("/proc/sys/net/{name}"));
        }
    }
    for hook in hooks(mechanism, &settings.pins, &facts.uplink) {
        if programs::ensure(&settings.pins, &hook)? {
            mended.push(format!("{} at {}", hook.program, hook.interface));
        }
    }
    Ok(mended)
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
    layout::refuse_later(pins.bpffs())?;
    let anything = host.is_some()
        || !containers.is_empty()
        || pins.root().exists()
        || !layout::earlier(pins.bpffs())?.is_empty();
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
    failures.note(layout::remove_earlier(pins.bpffs()));
    failures.into_result()?;
    store.remove_host()?;
    Ok(anything)
}

/// Takes the programs off the host's interfaces and puts its settings back.
fn leave_host(pins: &Pins, mechanism: Mechanism, host: &HostRecord) -> Result<()> {
    let mut failures = Failures::default();
    for hook in hooks(mechanism, pins, &host.uplink) {
        failures.note(programs::detach(&hook));
    }
    if !host.clsact.is_empty() {
        let netlink = Netlink::open()?;
        for name in &host.clsact {
            failures.note(clsact::delete_qdisc_if_empty(&netlink, name));
        }
    }
    failures.note(uplink_queue::leave(host));
    failures.note(put_back_settings(host));
    failures.into_result()
}

/// Puts settings back, unless somebody has changed them since.
fn put_back_settings(host: &HostRecord) -> Result<()> {
    let (mut failures, sysctls) = (Failures::default(), Sysctls::open()?);
    if !host.reserved.is_empty() {
        let now = sysctls.reserved_ports();
        failures.note(now.and_then(|now| sysctls.set_reserved_ports(&now.difference(&host.reserved))));
    }
    for saved in &host.sysctls {
        failures.note(sysctls.read(&saved.name).and_then(|value| {
            if value == saved.set { sysctls.write(&saved.name, &saved.before) } else { Ok(()) }
        }));
    }
    failures.into_result()
}

fn remove_pins(pins: &Pins) -> Result<()> {
    let mut failures = Failures::default();
    if let Ok(links) = std::fs::read_dir(pins.links()) {
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
