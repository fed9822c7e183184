//! `doctor`: compares the actual state with the desired one, and reports the differences.

mod remedy;
mod uplink;

use portmap_common::{slot::veth_ifindex, tables::Endpoint};

use self::remedy::REPAIR;
use super::reconciler::Reconciler;
use crate::{
    api::{Finding, Health},
    daemon::{
        container::{
            attach::{alias, hooks_inside, veth_hook},
            limits::Queues,
            lookup, netns,
            provision::endpoint,
        },
        host::{
            attach::{main_hooks, other_hooks},
            ipsec,
            nat::Nat,
            setup::LO_SETTINGS,
            sockets,
        },
    },
    error::{Error, Result},
    kernel::{
        link,
        netlink::Netlink,
        programs::{self, AttachMode, AttachPoint},
        qdisc::Leaf,
        session::NetSession,
    },
    model::ContainerRecord,
};

impl Reconciler {
    /// Compares the actual state of the host and all containers with the desired one.
    ///
    /// # Errors
    ///
    /// If the kernel refuses a netlink socket, or does not tell the host's ephemeral ports.
    pub(in crate::daemon) fn doctor(&self) -> Result<Vec<Finding>> {
        let (env, netlink, state) = (&self.env, Netlink::open()?, self.host.state());
        let mut findings = vec![attach_mode_finding(env.attach_mode)];
        if let Err(error) = env.pins.check() {
            let advice = "with a mounted bpffs the daemon restores them within ten seconds, `portmap doctor \
                --repair` at once";
            findings.push(Finding::new("pins", Health::Problem, format!("{error}: {advice}")));
        }
        findings.push(finding(
            "host settings",
            self.check_settings(),
            "containers reach the host by lo, and the host reserves their ports",
        ));
        findings.extend(uplink::findings(&netlink, &env.settings, &state));
        findings.push(finding(
            "host addresses",
            self.check_host_state(&netlink, &state),
            &state.describe_addresses(),
        ));
        findings.push(Finding::new("host routes", Health::Ok, state.describe_routing()));
        findings
            .extend(state.too_many_routes().map(|text| Finding::new("host routes", Health::Notice, text)));
        let (mode, pins) = (env.attach_mode, &env.settings.pins);
        let main = main_hooks(mode, pins, &state).into_iter();
        for hook in main.chain(other_hooks(mode, pins, &state)) {
            let direction = if hook.ingress { "ingress" } else { "egress" };
            let subject = format!("program at {} {direction}", hook.interface);
            findings.push(finding(&subject, self.check_first_hook(&netlink, &hook), hook.program));
        }
        findings.push(leaf_finding(env.leaf));
        findings.extend(self.progress.finding());
        findings.push(finding("port map", self.check_port_map(), "every port has its owner"));
        let owned = self.registry.snapshot().owned_ports();
        let managed = env.managed_ports().union(&owned);
        findings.extend(sockets::findings(&state, &managed, &owned));
        findings.extend(Nat { state: &state, managed: &managed }.findings());
        findings.push(ipsec::finding());
        if let Some(guard) = &env.guard {
            let checked = guard.check().map_err(|error| Error::failure(format!("{error}: {REPAIR}")));
            findings.push(finding(
                "bind guard",
                checked,
                &format!("for processes of {}", guard.cgroup().display()),
            ));
        }
        for record in self.registry.snapshot().ready() {
            let found = self.container_findings(&netlink, record);
            if found.iter().all(|finding| finding.health == Health::Ok) {
                findings.extend(found);
                continue;
            }
            // A running command may cause the difference, so the check is repeated under the container's
            // lock.
            self.operations.on(&record.name, || {
                if let Some(now) = self.registry.snapshot().ready_record(&record.name) {
                    findings.extend(self.container_findings(&netlink, &now));
                }
            });
        }
        Ok(findings)
    }

    /// The findings about a container in service.
    fn container_findings(&self, netlink: &Netlink, record: &ContainerRecord) -> Vec<Finding> {
        let name = &record.name;
        let checked = self.check_container(netlink, record);
        let mut findings = vec![finding(&format!("container {name}"), checked, "in service")];
        if record.egress.is_some() || record.ingress.is_some() {
            let checked = Queues::read(&self.env, netlink, record).check(&self.env, record);
            findings.push(finding(&format!("limits of {name}"), checked, "enforced by its qdiscs"));
        }
        findings
    }

    fn check_hook(&self, netlink: &Netlink, hook: &AttachPoint) -> Result<()> {
        if programs::is_attached(netlink, &self.env.settings.pins, hook)? {
            return Ok(());
        }
        Err(Error::failure(format!("{} is not attached to {}: {REPAIR}", hook.program, hook.interface)))
    }

    /// Compares the port map with the records. A running command may cause a difference, so the check is
    /// repeated under the lock of the container.
    fn check_port_map(&self) -> Result<()> {
        let Some(wrong) = self.registry.wrong_port() else { return Ok(()) };
        let wrong = match &wrong.container {
            None => Some(wrong),
            Some(name) => self.operations.on(name, || self.registry.wrong_port()),
        };
        let Some(wrong) = wrong else { return Ok(()) };
        let (port, slot) = (wrong.port, wrong.slot);
        Err(Error::failure(match wrong.expected {
            Some(record) => format!(
                "port {port} of container {:?} belongs to slot {slot} in the map, expected {}: {REPAIR}",
                record.name, record.slot
            ),
            None => format!("port {port} belongs to an unknown container in the map: {REPAIR}"),
        }))
    }

    fn check_container(&self, netlink: &Netlink, record: &ContainerRecord) -> Result<()> {
        let (env, veth) = (&self.env, record.host_veth());
        let delete = format!("run `portmap del {}`", record.name);
        let interface = link::find_by_index(netlink, veth_ifindex(record.slot))?
            .ok_or_else(|| Error::failure(format!("its interface {veth} is missing: {REPAIR}")))?;
        if interface.alias.as_deref() != Some(&alias(&record.name)) {
            return Err(Error::failure(format!(
                "{veth} is an interface of another container or tool: {delete}"
            )));
        }
        if !interface.is_up {
            return Err(Error::failure(format!("{veth} is down: {REPAIR}")));
        }
        self.check_first_hook(netlink, &veth_hook(&env.settings.pins, record))?;
        let eth0 = interface.peer.unwrap_or_default();
        let found = env.maps.endpoint(record.slot)?;
        if found != (Endpoint { generation: found.generation, ..endpoint(env, record, eth0) }) {
            return Err(Error::failure(format!(
                "its entry in pm_endpoints differs from its record: {REPAIR}"
            )));
        }
        let inside = lookup::visit(record, |inside| self.check_inside(inside, record, eth0))?;
        inside.ok_or_else(|| {
            Error::failure(format!(
                "{} no longer refers to its network namespace, so nothing inside can be checked or repaired; \
                 it is in service",
                record.netns.display()
            ))
        })
    }

    fn check_inside(&self, inside: &NetSession, record: &ContainerRecord, eth0: u32) -> Result<()> {
        let env = &self.env;
        if let Some(guard) = &env.guard
            && !guard.knows(record.slot, inside.cookie()?)
        {
            return Err(Error::failure(format!("the bind guard has no entry for it: {REPAIR}")));
        }
        let range = inside.sysctls()?.local_port_range()?;
        if range != record.ephemeral_ports {
            return Err(Error::failure(format!(
                "ip_local_port_range inside is {range}, expected {}: connections from other ports are \
                 dropped; {REPAIR}",
                record.ephemeral_ports
            )));
        }
        let different = netns::differences(inside, &self.host.state(), record, eth0)?;
        if !different.is_empty() {
            return Err(Error::failure(format!("inside, {}: {REPAIR}", different.join(", "))));
        }
        let hooks = hooks_inside(env.attach_mode, &env.settings.pins, record);
        hooks.iter().try_for_each(|hook| self.check_hook(&inside.netlink, hook))
    }

    fn check_settings(&self) -> Result<()> {
        let sysctls = &self.host.sysctls;
        let published = self.env.published(&self.registry.snapshot().static_ports());
        let lacking = self.env.managed_ports().union(&published).difference(&sysctls.reserved_ports()?);
        if !lacking.is_empty() {
            return Err(Error::failure(format!(
                "ip_local_reserved_ports lacks {lacking}, so the host may assign them to its own sockets: \
                 {REPAIR}"
            )));
        }
        for name in LO_SETTINGS {
            if let Some(value) = sysctls.read_if_present(name)?
                && value != "1"
            {
                return Err(Error::failure(format!("/proc/sys/net/{name} is {value}, expected 1: {REPAIR}")));
            }
        }
        Ok(())
    }
}

fn leaf_finding(leaf: Leaf) -> Finding {
    match leaf {
        Leaf::FqCodel => Finding::new("queues", Health::Ok, "fq_codel"),
        Leaf::Bfifo => Finding::new(
            "queues",
            Health::Notice,
            "this kernel has no fq_codel: all flows of a container share one queue (bfifo)",
        ),
    }
}

fn attach_mode_finding(attach_mode: AttachMode) -> Finding {
    match attach_mode {
        AttachMode::Tcx => {
            Finding::new("attachment", Health::Ok, "pinned TCX links at the host's interfaces")
        }
        AttachMode::Clsact => Finding::new(
            "attachment",
            Health::Notice,
            "the kernel has no TCX (Linux 6.6 and later have it): programs are filters of clsact qdiscs, \
             which other tools can remove",
        ),
    }
}

fn finding(subject: &str, checked: Result<()>, well: &str) -> Finding {
    match checked {
        Ok(()) => Finding::new(subject, Health::Ok, well),
        Err(error) => Finding::new(subject, Health::Problem, error.message),
    }
}
