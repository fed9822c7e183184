//! `doctor`: whether everything is as it is meant to be.

use portmap_common::{
    slot::veth_ifindex,
    tables::{Endpoint, PortEntry},
};

use super::{
    Daemon,
    container::{alias, hooks_inside, open_same, port_entry, veth_hook},
    host::{self, LO_SETTINGS},
    inside,
};
use crate::{
    api::{Finding, Health},
    error::{Error, Result},
    kernel::{
        link,
        netlink::Netlink,
        programs::{self, Hook, Mechanism},
        qdisc::Leaf,
        sysctl::{self, Sysctls},
    },
    ports::PortSet,
    records::{ContainerRecord, Phase},
};

/// What brings back what is missing of the host's side or of a container.
pub(super) const REPAIR: &str = "`portmap doctor --repair` puts it back";

impl Daemon {
    /// Compares what is with what is meant to be.
    pub fn doctor(&self) -> Vec<Finding> {
        let facts = self.facts();
        let mut findings = vec![self.mechanism_finding()];
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
        for hook in host::hooks(self.mechanism, &self.settings.pins, &facts.uplink) {
            let direction = if hook.ingress { "ingress" } else { "egress" };
            let subject = format!("program at {} {direction}", hook.interface);
            findings.push(finding(&subject, self.check_host_hook(&hook), hook.program));
        }
        findings.push(self.queue_finding());
        let records: Vec<ContainerRecord> =
            self.registry().containers.values().map(|entry| entry.record.clone()).collect();
        findings.push(finding("port map", self.check_port_map(&records), "every port belongs to its owner"));
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
            findings.push(finding(
                &format!("container {}", record.name),
                self.check_container(record),
                "in service",
            ));
            if record.egress.is_some() || record.ingress.is_some() {
                findings.push(finding(
                    &format!("limits of {}", record.name),
                    self.check_limits(record),
                    "held by its queues",
                ));
            }
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
        match self.mechanism {
            Mechanism::Tcx => {
                Finding::new("attachment", Health::Ok, "pinned TCX links at the host's interfaces")
            }
            Mechanism::Clsact => Finding::new(
                "attachment",
                Health::Notice,
                "the kernel has no TCX (Linux 6.6 and later have): filters of the clsact qdisc, which other tools \
                 can remove",
            ),
        }
    }

    pub(super) fn check_hook(&self, hook: &Hook) -> Result<()> {
        if programs::is_attached(&self.settings.pins, hook)? {
            return Ok(());
        }
        Err(Error::failure(format!("{} is not attached to {}: {REPAIR}", hook.program, hook.interface)))
    }

    fn check_port_map(&self, records: &[ContainerRecord]) -> Result<()> {
        let maps = self.maps();
        let mut unexplained = vec![false; usize::from(u16::MAX) + 1];
        for port in 0..=u16::MAX {
            unexplained[usize::from(port)] = maps.ports.get(port) != PortEntry::default();
        }
        for record in records.iter().filter(|record| record.phase == Phase::Ready) {
            for port in record.all_ports().iter() {
                let owner = maps.ports.get(port);
                if owner != port_entry(record, self.flags(record)) {
                    return Err(Error::failure(format!(
                        "port {port} of container {:?} belongs to slot {} in the map, expected {}: {REPAIR}",
                        record.name, owner.slot, record.slot
                    )));
                }
                unexplained[usize::from(port)] = false;
            }
        }
        match unexplained.iter().position(|unexplained| *unexplained) {
            Some(port) => {
                Err(Error::failure(format!("port {port} belongs to nobody known in the map: {REPAIR}")))
            }
            None => Ok(()),
        }
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
        let found = self.maps().endpoint(record.slot)?;
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
            hooks_inside(self.mechanism, &self.settings.pins, record).iter().try_for_each(|hook| self.check_hook(hook))
        })
    }
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
