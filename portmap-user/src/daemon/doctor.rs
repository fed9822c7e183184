//! `doctor`: whether everything is as it is meant to be.

use portmap_common::{
    slot::veth_ifindex,
    tables::{Endpoint, PORTS, PortEntry},
};

use super::{
    Daemon,
    container::{alias, hooks_inside, open_same, port_entry, veth_hook},
    host::{self, LO_SETTINGS},
    inside,
};
use crate::{
    api::{ContainerState, Finding, Health},
    error::{Error, Result},
    kernel::{
        link,
        netlink::Netlink,
        programs::{self, AttachMode, AttachPoint},
        qdisc::Leaf,
        sysctl::{self, Sysctls},
    },
    model::{ContainerRecord, Phase, PortSet},
};

/// What brings back what is missing of the host's side or of a container.
pub(super) const REPAIR: &str = "`portmap doctor --repair` puts it back";

impl Daemon {
    /// Compares what is with what is meant to be.
    pub fn doctor(&self) -> Vec<Finding> {
        let facts = self.facts();
        let mut findings = vec![self.mechanism_finding()];
        if let Err(error) = self.held.check() {
            let back = "they come back within ten seconds where a bpffs is mounted, at once by `portmap doctor --repair`";
            findings.push(Finding::new(
                "pins",
                Health::Problem,
                format!("{error}: {back}, or start portmapd again"),
            ));
        }
        findings.push(finding(
            "host settings",
            check_settings(&self.sysctls, &host::managed(&self.settings)),
            "containers reach the host by lo, and it gives out none of their ports",
        ));
        findings.push(self.uplink_finding());
        findings.push(finding(
            "host addresses",
            self.check_facts(),
            &format!("{} on {}", facts.addresses(), facts.uplink),
        ));
        for hook in host::hooks(self.attach_mode, &self.settings.pins, &facts.uplink) {
            let direction = if hook.ingress { "ingress" } else { "egress" };
            let subject = format!("program at {} {direction}", hook.interface);
            findings.push(finding(&subject, self.check_host_hook(&hook), hook.program));
        }
        findings.push(self.queue_finding());
        findings.extend(self.progress.finding());
        let records: Vec<ContainerRecord> =
            self.registry().containers.values().map(|entry| entry.record.clone()).collect();
        findings.push(finding("port map", self.check_port_map(), "every port belongs to its owner"));
        findings.extend(self.socket_findings());
        if let Some(guard) = &self.guard {
            let checked = guard.check().map_err(|error| Error::failure(format!("{error}: {REPAIR}")));
            findings.push(finding(
                "bind guard",
                checked,
                &format!("for processes of {}", guard.cgroup().display()),
            ));
        }
        for record in records.iter().filter(|record| record.phase == Phase::Ready) {
            let findings_of = self.findings_of(record);
            if findings_of.iter().all(|finding| finding.health == Health::Ok) {
                findings.extend(findings_of);
                continue;
            }
            // Some command may be at work on it; what is wrong when none is, is wrong.
            self.turns.take(&record.name, || {
                let now = self.registry().containers.get(&record.name).map(|entry| entry.record.clone());
                if let Some(now) = now.filter(|now| now.phase == Phase::Ready) {
                    findings.extend(self.findings_of(&now));
                }
            });
        }
        findings
    }

    /// What there is to say of a container in service.
    fn findings_of(&self, record: &ContainerRecord) -> Vec<Finding> {
        let name = &record.name;
        let mut findings =
            vec![finding(&format!("container {name}"), self.check_container(record), "in service")];
        if record.egress.is_some() || record.ingress.is_some() {
            let held = self.check_limits(record);
            findings.push(finding(&format!("limits of {name}"), held, "held by its queues"));
        }
        findings
    }

    fn queue_finding(&self) -> Finding {
        match self.leaf {
            Leaf::FqCodel => Finding::new("queues", Health::Ok, "fq_codel"),
            Leaf::Bfifo => Finding::new(
                "queues",
                Health::Notice,
                "this kernel has no fq_codel: what is over a limit waits in one queue (bfifo), where flows feel each other",
            ),
        }
    }

    fn mechanism_finding(&self) -> Finding {
        match self.attach_mode {
            AttachMode::Tcx => {
                Finding::new("attachment", Health::Ok, "pinned TCX links at the host's interfaces")
            }
            AttachMode::Clsact => Finding::new(
                "attachment",
                Health::Notice,
                "the kernel has no TCX (Linux 6.6 and later have): filters of the clsact qdisc, which other tools \
                 can remove",
            ),
        }
    }

    pub(super) fn check_hook(&self, hook: &AttachPoint) -> Result<()> {
        if programs::is_attached(&self.settings.pins, hook)? {
            return Ok(());
        }
        Err(Error::failure(format!("{} is not attached to {}: {REPAIR}", hook.program, hook.interface)))
    }

    /// Compares the port map with the records. While a command gives a container other ports, or removes it, either may be
    /// what is meant; so what looks wrong is looked at again in that container's turn.
    fn check_port_map(&self) -> Result<()> {
        let Some(wrong) = self.wrong_port() else { return Ok(()) };
        let Some(name) = &wrong.container else { return Err(wrong.error) };
        let looked_again = self.turns.take(name, || self.wrong_port());
        looked_again.map_or(Ok(()), |wrong| Err(wrong.error))
    }

    /// The first port that does not belong to whom the records say.
    fn wrong_port(&self) -> Option<WrongPort> {
        // Ports are published under the same lock.
        let registry = self.registry();
        let mut meant = vec![None; PORTS];
        for entry in registry.containers.values().filter(|entry| entry.state() == ContainerState::Ready) {
            for port in entry.record.all_ports().iter() {
                meant[usize::from(port)] = Some(&entry.record);
            }
        }
        let name_of = |slot| {
            let found = registry.containers.values().find(|entry| entry.record.slot == slot);
            found.map(|entry| entry.record.name.clone())
        };
        (0..=u16::MAX).zip(meant).find_map(|(port, meant)| {
            let owner = self.maps.ports.get(port);
            let expected =
                meant.map_or_else(PortEntry::default, |record| port_entry(record, self.flags(record)));
            if owner == expected {
                return None;
            }
            let error = match meant {
                Some(record) => format!(
                    "port {port} of container {:?} belongs to slot {} in the map, expected {}: {REPAIR}",
                    record.name, owner.slot, record.slot
                ),
                None => format!("port {port} belongs to nobody known in the map: {REPAIR}"),
            };
            let container = meant.map(|record| record.name.clone()).or_else(|| name_of(owner.slot));
            Some(WrongPort { container, error: Error::failure(error) })
        })
    }

    fn check_container(&self, record: &ContainerRecord) -> Result<()> {
        let veth = record.host_veth();
        let delete = format!("run `portmap del {}`", record.name);
        let interface = link::find_by_index(&Netlink::open()?, veth_ifindex(record.slot))?
            .ok_or_else(|| Error::failure(format!("its interface {veth} is gone: {REPAIR}")))?;
        if interface.alias.as_deref() != Some(&alias(&record.name)) {
            return Err(Error::failure(format!("{veth} is not its interface: {delete}")));
        }
        if !interface.is_up {
            return Err(Error::failure(format!("{veth} is down: {REPAIR}")));
        }
        self.check_hook(&veth_hook(&self.settings.pins, record))?;
        let eth0 = interface.peer.unwrap_or_default();
        let found = self.maps.endpoint(record.slot)?;
        if found != (Endpoint { generation: found.generation, ..self.endpoint(record, eth0) }) {
            return Err(Error::failure(format!(
                "pm_endpoints does not say what is to be known of it: {REPAIR}"
            )));
        }
        let namespace = open_same(record)?.ok_or_else(|| {
            Error::failure(format!(
                "{} no longer stands for its network namespace, in which nothing can be put back; it is in service",
                record.netns.display()
            ))
        })?;
        if let Some(guard) = &self.guard
            && !guard.knows(record.slot, &namespace)?
        {
            return Err(Error::failure(format!("the bind guard does not know it: {REPAIR}")));
        }
        namespace.run(|| {
            let sysctls = Sysctls::open()?;
            let range = sysctls.local_port_range()?;
            if range != record.ephemeral_ports {
                return Err(Error::failure(format!(
                    "ip_local_port_range inside is {range}, expected {}: connections from other ports are dropped; \
                     {REPAIR}",
                    record.ephemeral_ports
                )));
            }
            let different = inside::differences(&Netlink::open()?, &sysctls, &self.facts(), record, eth0)?;
            if !different.is_empty() {
                return Err(Error::failure(format!("inside, {}: {REPAIR}", different.join(", "))));
            }
            hooks_inside(self.attach_mode, &self.settings.pins, record).iter().try_for_each(|hook| self.check_hook(hook))
        })
    }
}

/// A port that does not belong to whom it should.
struct WrongPort {
    /// Whose it is or should be, if that is known.
    container: Option<String>,
    error: Error,
}

fn check_settings(sysctls: &Sysctls, managed: &PortSet) -> Result<()> {
    let lacking = managed.difference(&sysctls.reserved_ports()?);
    if !lacking.is_empty() {
        return Err(Error::failure(format!(
            "ip_local_reserved_ports lacks {lacking}, so that the host may give them out: {REPAIR}"
        )));
    }
    for setting in LO_SETTINGS {
        let name = sysctl::of_interface("ipv4", "lo", setting);
        let value = sysctls.read(&name)?;
        if value != "1" {
            return Err(Error::failure(format!("/proc/sys/net/{name} is {value}, expected 1: {REPAIR}")));
        }
    }
    Ok(())
}

fn finding(subject: &str, checked: Result<()>, well: &str) -> Finding {
    match checked {
        Ok(()) => Finding::new(subject, Health::Ok, well),
        Err(error) => Finding::new(subject, Health::Problem, error.message),
    }
}
