//! What the daemon does to the host, and undoing that.

use std::path::Path;

use nix::unistd::geteuid;
use portmap_common::{
    names::{PROG_LO_INGRESS, PROG_UPLINK_EGRESS, PROG_UPLINK_INGRESS},
    slot::slot_of_loopback,
};

use super::{
    HostFacts, Place,
    container::{self, ETH0},
    lost, uplink_queue,
};
use crate::{
    error::{Error, Failures, Kind, Result},
    kernel::{
        bpffs, clock, clsact,
        link::{self, LOOPBACK},
        namespace::Namespace,
        netlink::Netlink,
        pin_migration, pins,
        programs::{self, AttachMode, AttachPoint},
        sysctl::{self, Sysctls},
    },
    model::{HostRecord, NetnsId, PortSet, SavedSysctl},
    paths::{Pins, StateDir},
    settings::Settings,
    state::Store,
};

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

/// Refuses the network namespace of a container: what is there under names of ours belongs to the host's daemon.
pub(super) fn check_namespace() -> Result<()> {
    let netlink = Netlink::open()?;
    let slot = link::find_by_index(&netlink, LOOPBACK)?.and_then(|lo| slot_of_loopback(lo.mac));
    // A namespace that was one keeps the address.
    if slot.is_some() && link::find(&netlink, ETH0)?.is_some() {
        return Err(Error::usage(
            "this network namespace is that of a container of portmap (see the address of its `lo`): run this in the host's",
        ));
    }
    Ok(())
}

/// Refuses ports that the host gives out by itself.
pub(super) fn check_ports(settings: &Settings, sysctls: &Sysctls) -> Result<()> {
    let (host_range, reserved) = (sysctls.local_port_range()?, sysctls.reserved_ports()?);
    for (flag, ports) in [("--ports", &settings.ports), ("--ephemeral-ports", &settings.ephemeral_ports)] {
        // What is reserved it does not give out although its range has it.
        let both = ports.intersection(&host_range.into()).difference(&reserved);
        if !both.is_empty() {
            return Err(Error::usage(format!(
                "{flag}: the host gives out the ports {both} itself: choose others, or move the host's range \
                 ({host_range}) in /proc/sys/net/ipv4/ip_local_port_range"
            )));
        }
    }
    Ok(())
}

/// The hooks at the uplink.
pub(super) fn uplink_hooks(attach_mode: AttachMode, pins: &Pins, uplink: &str) -> [AttachPoint; 2] {
    // An interface's name can have dots, a name in a bpffs cannot.
    [(true, PROG_UPLINK_INGRESS, "uplink"), (false, PROG_UPLINK_EGRESS, "uplink-out")].map(
        |(ingress, program, link)| AttachPoint {
            interface: uplink.to_owned(),
            ingress,
            program,
            attach_mode,
            link: pins.link(link),
        },
    )
}

/// All hooks at the host's own interfaces. The loopback device's comes first: a container's packet for the host needs
/// it from the moment on when one can arrive.
pub(super) fn hooks(attach_mode: AttachMode, pins: &Pins, uplink: &str) -> [AttachPoint; 3] {
    let (interface, link) = ("lo".to_owned(), pins.link("lo"));
    let lo = AttachPoint { interface, ingress: true, program: PROG_LO_INGRESS, attach_mode, link };
    let [uplink_in, uplink_out] = uplink_hooks(attach_mode, pins, uplink);
    [lo, uplink_in, uplink_out]
}

/// Settings of the host that containers' packets need: they come in by the loopback device, with the host's own
/// address or one of 127.0.0.0/8 as source and destination.
pub(super) const LO_SETTINGS: [&str; 2] = ["accept_local", "route_localnet"];

/// Writes down what is about to be done to the host, keeping what was written down before.
pub(super) fn record(
    store: &Store,
    place: &mut Place,
    settings: &Settings,
    sysctls: &Sysctls,
    facts: &HostFacts,
    attach_mode: AttachMode,
) -> Result<HostRecord> {
    // Where the state is lost, the place knows.
    let earlier = store.host()?.or_else(|| place.host().cloned());
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
            for hook in uplink_hooks(attach_mode, &settings.pins, &earlier.uplink) {
                programs::detach(&hook)?;
            }
            uplink_queue::leave(earlier)?;
        }
    }
    let earlier_reserved = earlier.as_ref().map(|earlier| earlier.reserved.clone()).unwrap_or_default();
    let ours = managed(settings).difference(&sysctls.reserved_ports()?);
    let mut record = HostRecord {
        boot: Some(clock::boot()?),
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
    if attach_mode == AttachMode::Clsact {
        let netlink = Netlink::open()?;
        for name in ["lo", facts.uplink.as_str()] {
            if !clsact::has_qdisc(&netlink, name)? && !record.clsact.iter().any(|had| had == name) {
                record.clsact.push(name.to_owned());
            }
        }
    }
    if store.host()?.as_ref() != Some(&record) {
        store.set_host(&record)?;
    }
    place.note(&record);
    Ok(record)
}

/// Refuses state that belongs to another host.
fn check_same_place(record: &HostRecord, namespace: NetnsId) -> Result<()> {
    if record.namespace.is_same(namespace) {
        return Ok(());
    }
    Err(Error::conflict(format!(
        "the state belongs to the network namespace {}, this is {namespace}: run this command there (nsenter --net=…), or \
         name another --state-dir; if that one has ended, remove the directory",
        record.namespace
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
        sysctls.reserve_ports(&ours)?;
    }
    Ok(is_lacking)
}

/// Does to the host what has been written down.
pub(super) fn set_up(
    settings: &Settings,
    sysctls: &Sysctls,
    facts: &HostFacts,
    attach_mode: AttachMode,
) -> Result<()> {
    reserve(settings, sysctls)?;
    for setting in LO_SETTINGS {
        sysctls.write(&sysctl::of_interface("ipv4", "lo", setting), "1")?;
    }
    for hook in hooks(attach_mode, &settings.pins, &facts.uplink) {
        programs::attach(&settings.pins, &hook)?;
        programs::move_to_front(&settings.pins, &hook)?;
    }
    Ok(())
}

/// What has been put back, and what could not be.
#[derive(Default)]
pub(super) struct Mending {
    pub(super) mended: Vec<String>,
    pub(super) failures: Failures,
}

impl Mending {
    /// Keeps whether something was missing. What cannot be put back is no reason not to do the rest.
    pub(super) fn note(&mut self, what: impl Into<String>, was_missing: Result<bool, impl Into<Error>>) {
        match was_missing {
            Ok(true) => self.mended.push(what.into()),
            Ok(false) => {}
            Err(error) => self.failures.note(Err(error)),
        }
    }
}

/// Does again what somebody has undone.
pub(super) fn mend(
    settings: &Settings,
    sysctls: &Sysctls,
    facts: &HostFacts,
    attach_mode: AttachMode,
) -> Mending {
    let mut mending = Mending::default();
    mending.note("ip_local_reserved_ports", reserve(settings, sysctls));
    for setting in LO_SETTINGS {
        let name = sysctl::of_interface("ipv4", "lo", setting);
        let was_missing = sysctls.read(&name).and_then(|value| {
            let is_missing = value != "1";
            if is_missing {
                sysctls.write(&name, "1")?;
            }
            Ok(is_missing)
        });
        mending.note(format!("/proc/sys/net/{name}"), was_missing);
    }
    for hook in hooks(attach_mode, &settings.pins, &facts.uplink) {
        let was_missing = programs::ensure(&settings.pins, &hook);
        mending.note(format!("{} at {}", hook.program, hook.interface), was_missing);
        let was_behind = programs::move_to_front(&settings.pins, &hook);
        mending.note(format!("{} at {}, behind another program", hook.program, hook.interface), was_behind);
    }
    mending
}

/// What a teardown has found.
#[derive(Debug, Default)]
pub struct TornDown {
    /// Whether there was anything to remove.
    pub anything: bool,
    /// What was removed although nothing was on record of it, and what cannot be known then.
    pub notices: Vec<String>,
}

/// Removes everything that a daemon with this state directory has made, whether or not it still runs elsewhere.
/// `bpffs_dir` is for pins whose state is lost.
pub fn teardown(state_dir: &StateDir, bpffs_dir: &Path) -> Result<TornDown> {
    teardown_but(state_dir, bpffs_dir, false)
}

/// The same, but the state directory itself may stay.
pub(super) fn teardown_but(state_dir: &StateDir, bpffs_dir: &Path, keep_directory: bool) -> Result<TornDown> {
    check_root()?;
    check_namespace()?;
    let keep_directory = keep_directory && state_dir.path().exists();
    let store = Store::lock(state_dir)?;
    let namespace = Namespace::current().and_then(|current| current.id());
    let place = namespace.map_err(Error::from).and_then(|namespace| {
        let mut place = Place::take(namespace, state_dir)?;
        let host = store.host()?.or_else(|| place.host().cloned());
        place.take_pins(host.as_ref().map_or(bpffs_dir, |host| &host.bpffs_dir))?;
        Ok(place)
    });
    let place = place.inspect_err(|_| {
        // Nothing that somebody else uses is touched, and nothing left of this attempt.
        if store.host() == Ok(None) && store.containers() == Ok(Vec::new()) {
            let _ = store.remove_files(keep_directory);
        }
    })?;
    let torn_down = teardown_locked(&store, &place, bpffs_dir)?;
    store.remove_files(keep_directory)?;
    Ok(torn_down)
}

/// The same for whoever has locked the state directory, which stays.
pub(super) fn teardown_locked(store: &Store, place: &Place, bpffs_dir: &Path) -> Result<TornDown> {
    let mut failures = Failures::default();
    let host = store.host()?.or_else(|| place.host().cloned());
    let containers = store.containers()?;
    let pins = Pins::new(host.as_ref().map_or(bpffs_dir, |host| &host.bpffs_dir));
    pin_migration::refuse_later(pins.bpffs())?;
    let mut anything = host.is_some()
        || !containers.is_empty()
        || pins.root().exists()
        || !pin_migration::earlier(pins.bpffs())?.is_empty();
    let attach_mode = AttachMode::detect();
    if let Some(host) = &host {
        check_same_place(host, Namespace::current()?.id()?)?;
        failures.note(leave_host(&pins, attach_mode, host));
    }
    // All at once, because that takes hardly longer than one. What is left of them goes with the rest below.
    failures.note(container::delete_veths(&containers));
    for record in &containers {
        match container::dismantle(attach_mode, &pins, record) {
            Ok(()) => failures.note(store.remove_container(&record.name)),
            failed => failures.note(failed),
        }
    }
    let mut notices = Vec::new();
    failures.note(lost::remove_interfaces(&mut notices));
    if host.is_none() {
        failures.note(lost::remove_filters());
        if anything || !notices.is_empty() {
            failures.note(lost::name_settings(&mut notices));
        }
    }
    anything |= !notices.is_empty();
    failures.note(remove_pins(&pins));
    failures.note(pin_migration::remove_earlier(pins.bpffs()));
    failures.into_result()?;
    // In this order: what the place has is for a state that is lost, and would be taken for that of a lost one.
    place.leave()?;
    store.remove_host()?;
    Ok(TornDown { anything, notices })
}

/// Takes the programs off the host's interfaces and puts its settings back.
fn leave_host(pins: &Pins, attach_mode: AttachMode, host: &HostRecord) -> Result<()> {
    let mut failures = Failures::default();
    for hook in hooks(attach_mode, pins, &host.uplink) {
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

fn remove_pins(directories: &Pins) -> Result<()> {
    let mut failures = Failures::default();
    for link in pins::links(directories) {
        failures.note(pins::detach_link(&link));
    }
    for pin in directories.fixed() {
        failures.note(bpffs::unpin(&pin));
    }
    failures.into_result()?;
    Ok(bpffs::remove_directories(directories)?)
}
