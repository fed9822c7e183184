//! The daemon's changes to the host, and their removal: sysctls, reserved ports, programs at `lo` and at the interfaces
//! that lead outside.

use std::collections::BTreeMap;

use tracing::warn;

use super::{
    HostState, Ownership,
    attach::{former_hooks, interface_hooks, loopback_hook, main_hooks, other_hooks, uplink_hooks},
    uplink_qdisc,
};
use crate::{
    error::{Error, Failures, Result},
    kernel::{
        clock, clsact, link,
        netlink::Netlink,
        pins,
        programs::{self, AttachMode, AttachPoint},
        sysctl::Sysctls,
    },
    model::{HostRecord, NetnsId, PortSet, SavedSysctl},
    paths::Pins,
    settings::Settings,
    state::Store,
};

/// Sysctls of the host's loopback device that must be 1, where the kernel has them. Packets from containers
/// arrive there with the host's own address or one of 127.0.0.0/8 as source and destination. The kernel tells
/// the programs the routes of the host's own packets only if `forwarding` is 1; it forwards nothing by that, as
/// nothing for another host arrives at this device.
pub(in crate::daemon) const LO_SETTINGS: [&str; 4] = [
    "ipv4/conf/lo/accept_local",
    "ipv4/conf/lo/route_localnet",
    "ipv4/conf/lo/forwarding",
    "ipv6/conf/lo/forwarding",
];

/// Refuses ports that the host assigns to its own sockets.
pub(in crate::daemon) fn check_ports(settings: &Settings, sysctls: &Sysctls) -> Result<()> {
    let (host_range, reserved) = (sysctls.local_port_range()?, sysctls.reserved_ports()?);
    for (flag, ports) in [("--ports", &settings.ports), ("--ephemeral-ports", &settings.ephemeral_ports)] {
        // The host never assigns reserved ports of its range.
        let both = ports.intersection(&host_range.into()).difference(&reserved);
        if !both.is_empty() {
            return Err(Error::usage(format!(
                "{flag}: the ports {both} are in the host's own ephemeral range: choose others, or move that \
                 range ({host_range}) in /proc/sys/net/ipv4/ip_local_port_range"
            )));
        }
    }
    Ok(())
}

/// Refuses a state directory that belongs to another network namespace.
pub(in crate::daemon) fn check_same_namespace(record: &HostRecord, namespace: NetnsId) -> Result<()> {
    if record.namespace.is_same(namespace) {
        return Ok(());
    }
    Err(Error::conflict(format!(
        "the state belongs to the network namespace {}, this is {namespace}: run this command there (nsenter \
         --net=…), or name another --state-dir; if that namespace no longer exists, remove the directory",
        record.namespace
    )))
}

/// The desired changes to a host in this state.
pub(in crate::daemon) struct Setup<'a> {
    pub(in crate::daemon) netlink: &'a Netlink,
    pub(in crate::daemon) settings: &'a Settings,
    pub(in crate::daemon) sysctls: &'a Sysctls,
    pub(in crate::daemon) state: &'a HostState,
    pub(in crate::daemon) attach_mode: AttachMode,
}

impl Setup<'_> {
    /// Records the changes before they are made, in addition to those already on record. Detaches the
    /// programs from interfaces that are no longer used, and removes the qdiscs of former uplinks.
    ///
    /// # Errors
    ///
    /// If the records belong to another host, or to other pins, or cannot be written.
    pub(in crate::daemon) fn record(&self, store: &Store, ownership: &mut Ownership) -> Result<HostRecord> {
        let Self { netlink, settings, sysctls, state, attach_mode } = *self;
        // If the state directory is lost, the ownership file still contains the record.
        let earlier = store.host()?.or_else(|| ownership.host().cloned());
        if let Some(earlier) = &earlier {
            check_same_namespace(earlier, state.namespace)?;
            if earlier.bpffs_dir != settings.pins.bpffs() {
                return Err(Error::conflict(format!(
                    "the state in {} belongs to pins in {}: start with that --bpffs-dir, or run `portmap \
                     teardown` first",
                    store.directory().path().display(),
                    earlier.bpffs_dir.display()
                )));
            }
            let used = self.interfaces();
            for (index, name) in had_programs(netlink, earlier)? {
                if !used.contains_key(&index) {
                    detach_from(netlink, attach_mode, &settings.pins, index, &name)?;
                }
            }
            if earlier.uplink != state.uplink && link::find(netlink, &earlier.uplink)?.is_some() {
                for hook in former_hooks(attach_mode, &settings.pins, &earlier.uplink) {
                    // Where programs have no links, this one is by index above.
                    if hook.link.exists() {
                        programs::detach(netlink, &hook)?;
                    }
                }
            }
        }
        let queues = match &earlier {
            Some(earlier) => uplink_qdisc::keep(netlink, earlier, state)?,
            None => BTreeMap::new(),
        };
        let earlier_reserved = earlier.as_ref().map(|earlier| earlier.reserved.clone()).unwrap_or_default();
        let ours = self.managed_ports().difference(&sysctls.reserved_ports()?);
        let mut record = HostRecord {
            boot: Some(clock::boot()?),
            reserved: earlier_reserved.union(&ours),
            namespace: state.namespace,
            bpffs_dir: settings.pins.bpffs().to_owned(),
            uplink: state.uplink.clone(),
            interfaces: self.interfaces(),
            primaries: state.primaries.clone(),
            queues,
            uplink_queue: None,
            sysctls: earlier.as_ref().map(|earlier| earlier.sysctls.clone()).unwrap_or_default(),
            clsact: earlier.map(|earlier| earlier.clsact).unwrap_or_default(),
        };
        for name in LO_SETTINGS {
            if let Some(before) = sysctls.read_if_present(name)?
                && before != "1"
                && !record.sysctls.iter().any(|saved| saved.name == name)
            {
                record.sysctls.push(SavedSysctl { name: name.to_owned(), before, set: "1".to_owned() });
            }
        }
        if attach_mode == AttachMode::Clsact {
            let others = state.interfaces.values().map(|found| found.name.as_str());
            for name in ["lo", state.uplink.as_str()].into_iter().chain(others) {
                if !clsact::has_qdisc(netlink, name)? && !record.clsact.iter().any(|had| had == name) {
                    record.clsact.push(name.to_owned());
                }
            }
        }
        if store.host()?.as_ref() != Some(&record) {
            store.set_host(&record)?;
        }
        ownership.note(&record);
        Ok(record)
    }

    /// The interfaces with programs, by index.
    fn interfaces(&self) -> BTreeMap<u32, String> {
        let others = self.state.interfaces.iter().map(|(index, found)| (*index, found.name.clone()));
        others.chain([(self.state.uplink_index, self.state.uplink.clone())]).collect()
    }

    /// Makes the recorded changes. An interface other than the main uplink may end at any time, or have a qdisc that is
    /// in the way, so failures there are logged only.
    ///
    /// # Errors
    ///
    /// The first other failure.
    pub(in crate::daemon) fn apply(&self) -> Result<()> {
        self.reserve_ports()?;
        for name in LO_SETTINGS {
            self.sysctls.write_if_present(name, "1")?;
        }
        self.adopt_former_links()?;
        let attach = |hook: &AttachPoint| {
            let pins = &self.settings.pins;
            programs::attach(self.netlink, pins, hook)?;
            programs::move_to_front(self.netlink, pins, hook)
        };
        for hook in main_hooks(self.attach_mode, &self.settings.pins, self.state) {
            attach(&hook)?;
        }
        for hook in other_hooks(self.attach_mode, &self.settings.pins, self.state) {
            if let Err(error) = attach(&hook) {
                warn!("containers are not reached by {}: {error}", hook.interface);
            }
        }
        Ok(())
    }

    /// Ensures that all changes are in place. Idempotent.
    pub(in crate::daemon) fn ensure(&self) -> RepairReport {
        let mut report = RepairReport::default();
        report.note("ip_local_reserved_ports", self.reserve_ports());
        for name in LO_SETTINGS {
            let was_missing = self.sysctls.read_if_present(name).and_then(|value| {
                let is_missing = value.is_some_and(|value| value != "1");
                if is_missing {
                    self.sysctls.write(name, "1")?;
                }
                Ok(is_missing)
            });
            report.note(format!("/proc/sys/net/{name}"), was_missing);
        }
        let (mode, pins) = (self.attach_mode, &self.settings.pins);
        let ensure = |report: &mut RepairReport, hook: &AttachPoint| {
            let was_missing = programs::ensure(self.netlink, pins, hook);
            report.note(format!("{} at {}", hook.program, hook.interface), was_missing);
            let was_behind = programs::move_to_front(self.netlink, pins, hook);
            report
                .note(format!("{} at {}, behind another program", hook.program, hook.interface), was_behind);
        };
        for hook in main_hooks(mode, pins, self.state) {
            ensure(&mut report, &hook);
        }
        let mut others = RepairReport::default();
        for hook in other_hooks(mode, pins, self.state) {
            ensure(&mut others, &hook);
        }
        report.repaired.append(&mut others.repaired);
        RepairReport { elsewhere: others.failures, ..report }
    }

    /// Gives the links of an earlier version at the main uplink their present names. They stay attached.
    fn adopt_former_links(&self) -> Result<()> {
        let (mode, pins) = (self.attach_mode, &self.settings.pins);
        let former = former_hooks(mode, pins, &self.state.uplink);
        for (former, hook) in former.iter().zip(uplink_hooks(mode, pins, self.state)) {
            pins::rename_link(&former.link, &hook.link)?;
        }
        Ok(())
    }

    fn managed_ports(&self) -> PortSet {
        self.settings.ports.union(&self.settings.ephemeral_ports)
    }

    /// Reserves the managed ports, so that the host never assigns them to its own sockets. Returns true if
    /// any was not reserved.
    fn reserve_ports(&self) -> Result<bool> {
        let (before, ours) = (self.sysctls.reserved_ports()?, self.managed_ports());
        let is_lacking = !ours.difference(&before).is_empty();
        if is_lacking {
            self.sysctls.reserve_ports(&ours)?;
        }
        Ok(is_lacking)
    }
}

/// The repairs of a reconciliation, and its failures.
#[derive(Default)]
pub(in crate::daemon) struct RepairReport {
    pub(in crate::daemon) repaired: Vec<String>,
    pub(in crate::daemon) failures: Failures,
    /// Failures at interfaces other than the main uplink. Containers are in service without those.
    pub(in crate::daemon) elsewhere: Failures,
}

impl RepairReport {
    /// Adds the result of one repair: true if it was necessary.
    pub(in crate::daemon) fn note(
        &mut self,
        what: impl Into<String>,
        was_missing: Result<bool, impl Into<Error>>,
    ) {
        match was_missing {
            Ok(true) => self.repaired.push(what.into()),
            Ok(false) => {}
            Err(error) => self.failures.note(Err(error)),
        }
    }
}

/// Undoes the recorded changes: detaches the programs from the host's interfaces and restores its sysctls.
///
/// # Errors
///
/// All failures. A failure does not stop the rest.
pub(in crate::daemon) fn undo(
    netlink: &Netlink,
    pins: &Pins,
    attach_mode: AttachMode,
    host: &HostRecord,
) -> Result<()> {
    let mut failures = Failures::default();
    let former = former_hooks(attach_mode, pins, &host.uplink);
    for hook in former.into_iter().chain([loopback_hook(attach_mode, pins)]) {
        failures.note(programs::detach(netlink, &hook));
    }
    for (index, name) in &host.interfaces {
        failures.note(detach_from(netlink, attach_mode, pins, *index, name));
    }
    for name in &host.clsact {
        failures.note(clsact::delete_qdisc_if_empty(netlink, name));
    }
    failures.note(uplink_qdisc::remove_all(netlink, host));
    failures.note(restore_sysctls(host));
    failures.into_result()
}

/// The interfaces that have programs by a record, by index. Records of earlier versions have the uplink by name only.
fn had_programs(netlink: &Netlink, record: &HostRecord) -> Result<BTreeMap<u32, String>> {
    let mut had = record.interfaces.clone();
    if !had.values().any(|name| *name == record.uplink)
        && let Some(uplink) = link::find(netlink, &record.uplink)?
    {
        had.insert(uplink.index, uplink.name);
    }
    Ok(had)
}

/// Detaches the programs from an interface. Idempotent.
fn detach_from(
    netlink: &Netlink,
    attach_mode: AttachMode,
    pins: &Pins,
    index: u32,
    name: &str,
) -> Result<()> {
    // Which programs they are does not matter.
    for hook in interface_hooks(attach_mode, pins, index, name, true) {
        programs::detach(netlink, &hook)?;
    }
    Ok(())
}

/// Restores the sysctls that still have the daemon's values.
fn restore_sysctls(host: &HostRecord) -> Result<()> {
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
