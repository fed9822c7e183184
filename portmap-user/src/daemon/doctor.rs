//! `doctor`: whether everything is as it is meant to be.

use netlink_packet_route::AddressFamily;
use portmap_common::{
    slot::veth_ifindex,
    tables::{Endpoint, PortEntry},
};

use super::{
    Daemon,
    container::{alias, hooks_inside, open_same, port_entry, veth_hook},
    facts,
    host::{self, LO_SETTINGS},
    inside,
};
use crate::{
    api::{Finding, Health},
    error::{Error, Result},
    kernel::{
        address, link, listeners,
        netlink::Netlink,
        programs::{self, Hook, Mechanism},
        qdisc::Leaf,
        sysctl::{self, Sysctls},
    },
    ports::PortSet,
    records::{ContainerRecord, Phase},
};

/// What brings back what is missing of the host's side or of a container.
const REPAIR: &str = "`portmap doctor --repair` puts it back";

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
        findings.push(finding(
            "host addresses",
            self.check_facts(),
            &format!("{} on {}", facts.addresses(), facts.uplink),
        ));
        for hook in host::hooks(self.mechanism, &self.settings.pins, &facts.uplink) {
            let direction = if hook.ingress { "ingress" } else { "egress" };
            let subject = format!("program at {} {direction}", hook.interface);
            findings.push(finding(&subject, self.check_hook(&hook), hook.program));
        }
        findings.push(self.queue_finding());
        let records: Vec<ContainerRecord> =
            self.registry().containers.values().map(|entry| entry.record.clone()).collect();
        findings.push(finding("port map", self.check_port_map(&records), "every port belongs to its owner"));
        findings.push(self.listeners_finding());
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

    /// The host as it is now, against what programs and containers have been told.
    fn check_facts(&self) -> Result<()> {
        let netlink = Netlink::open()?;
        let facts = self.facts();
        let uplink = link::find_by_index(&netlink, facts.uplink_index)?.ok_or_else(|| {
            Error::failure(format!("the uplink {} is gone: containers follow when it is back", facts.uplink))
        })?;
        let routes = address::default_routes(&netlink, AddressFamily::Inet)?;
        let now = facts::look_at_addresses(&netlink, &uplink, &routes, self.settings.ipv6).ok();
        if now != Some((facts.v4, facts.v6)) || uplink.mac != facts.mac {
            return Err(Error::failure(format!(
                "the addresses of {} are not those that containers have: {REPAIR}",
                facts.uplink
            )));
        }
        if self.maps().config()? != self.config(&facts) {
            return Err(Error::failure(format!("the map pm_config is not what the daemon wrote: {REPAIR}")));
        }
        if self.maps().lacks_host_ports(&self.settings.reach)? {
            return Err(Error::failure(format!(
                "the map pm_host_access is not what --host-access says: {REPAIR}"
            )));
        }
        Ok(())
    }

    fn check_hook(&self, hook: &Hook) -> Result<()> {
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

    fn listeners_finding(&self) -> Finding {
        let used: Vec<String> = listeners::in_use(&host::managed(&self.settings)).into_values().collect();
        if used.is_empty() {
            return Finding::new("host listeners", Health::Ok, "no process of the host uses a managed port");
        }
        Finding::new(
            "host listeners",
            Health::Problem,
            format!("{}: stop it, or take the port from the daemon's ranges", used.join("; ")),
        )
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
