//! Provisioning: creates a container's namespace, interfaces, programs and limits.

use portmap_common::{gcra::GcraState, slot::veth_ifindex, tables::Endpoint};

use super::{
    Containers,
    attach::{alias, attach_inside, veth_hook},
    deprovision::deprovision,
    limits, netns,
};
use crate::{
    daemon::{env::Env, registry::Refusal},
    error::{Error, Failures, Result},
    kernel::{
        inherit,
        link::{self, VethPair},
        namespace::Namespace,
        netlink::Netlink,
        programs, sysctl,
    },
    model::{ContainerRecord, Phase},
};

/// The namespace of a new container.
struct NewNetns {
    namespace: Namespace,
    /// A free interface index in it.
    free_index: u32,
}

impl Containers {
    /// Provisions an admitted container. After a failure, the caller must call [`Containers::remove`].
    pub(super) fn provision(&self, netlink: &Netlink, record: &mut ContainerRecord) -> Result<(), Refusal> {
        let mut new = self.netns_for(record)?;
        self.env.store.set_container(record)?;
        if record.owns_netns {
            // The namespace is recorded before it gets its name, so that no daemon mistakes another tool's
            // namespace of this name for it.
            new.namespace = new.namespace.give_name(&record.name)?;
        }
        self.env.maps.reset_counters(record.slot)?;
        self.connect_new(netlink, record, &new)?;
        record.phase = Phase::Ready;
        Ok(self.env.store.set_container(record)?)
    }

    /// Creates or opens the container's namespace, and records its identity.
    fn netns_for(&self, record: &mut ContainerRecord) -> Result<NewNetns, Refusal> {
        if record.owns_netns {
            // A new namespace may have interfaces: the fallback devices of the tunnel modules (`tunl0`, `sit0`).
            let (namespace, free_index) = Namespace::create(|inside| netns::free_index(inside, record))?;
            record.namespace = Some(namespace.id()?);
            return Ok(NewNetns { namespace, free_index });
        }
        let namespace = Namespace::open(&record.netns).map_err(Error::from)?;
        let inherited = self.inherited(record);
        let free_index = namespace.run(|inside| -> Result<u32, Refusal> {
            let id = namespace.id()?;
            if id.is_same(self.host.state().namespace) {
                return Err(Error::usage(format!(
                    "{} is the host's own network namespace: expected another one for the container",
                    record.netns.display()
                ))
                .into());
            }
            // The claim comes before the snapshot: until then the values may be those of another container, which
            // is about to restore them.
            self.registry.claim_netns(&record.name, id)?;
            let mut before = netns::snapshot(inside)?;
            before.sysctls.extend(inherit::before(&inherited)?);
            record.before = Some(before);
            record.namespace = Some(id);
            Ok(netns::free_index(inside, record)?)
        })?;
        Ok(NewNetns { namespace, free_index })
    }

    /// Recreates the missing interfaces of a container.
    pub(in crate::daemon) fn reconnect(
        &self,
        netlink: &Netlink,
        record: &ContainerRecord,
        namespace: Namespace,
    ) -> Result<()> {
        let free_index = namespace.run(|inside| netns::free_index(inside, record))?;
        self.connect_new(netlink, record, &NewNetns { namespace, free_index })
    }

    fn connect_new(&self, netlink: &Netlink, record: &ContainerRecord, new: &NewNetns) -> Result<()> {
        let (state, env) = (self.host.state(), &self.env);
        let NewNetns { namespace, free_index: eth0 } = new;
        let host_veth = record.host_veth();
        link::create_veth(
            netlink,
            &VethPair {
                host_name: &host_veth,
                host_index: veth_ifindex(record.slot),
                alias: &alias(&record.name),
                container_name: record.interface.as_str(),
                container_index: *eth0,
                container: namespace,
                mac: state.mac,
                mtu: state.mtu,
            },
        )?;
        // Otherwise the kernel sends router solicitations and neighbour discovery through the veth pair.
        self.host.sysctls.write_if_present(&sysctl::of_interface("ipv6", &host_veth, "disable_ipv6"), "1")?;
        env.maps.set_endpoint(record.slot, endpoint(env, record, *eth0))?;
        env.maps.set_limit(record.slot, limits::policer(env, record))?;
        if let Some(guard) = &env.guard {
            guard.add(record.slot, namespace.cookie()?)?;
        }
        // The program must be attached before the link is up, because no packet may pass without it.
        let pins = &env.settings.pins;
        programs::attach(netlink, pins, &veth_hook(pins, record))?;
        link::set_up(netlink, veth_ifindex(record.slot), &host_veth)?;
        let inherited = self.inherited(record);
        namespace.run(|inside| {
            if !inherited.is_empty() {
                // The inherited privileged ports may extend to the start of the container's port range, and
                // the kernel refuses an overlap with the old range. So the range is set first;
                // `netns::set_up` sets it again and reports failures.
                let _ = inside.sysctls()?.set_local_port_range(record.ephemeral_ports);
                inherit::apply(&inherited)?;
            }
            if record.egress.is_some() {
                limits::limit_egress(env, &inside.netlink, record, *eth0)?;
            }
            netns::set_up(inside, &state, record, *eth0)?;
            attach_inside(&inside.netlink, env.attach_mode, pins, record)
        })?;
        // This must follow the set-up of both ends. A qdisc that is installed earlier loses all packets until
        // the kernel's link watcher has noticed the other end (`linkwatch_do_dev`).
        if record.ingress.is_some() {
            limits::limit_ingress(env, netlink, record)?;
        }
        Ok(())
    }

    /// The host's sysctls that a container's namespace inherits, with their values: all that differ from
    /// those of a new namespace. An existing namespace inherits them on request only. Portmap's own settings
    /// are applied after them.
    fn inherited(&self, record: &ContainerRecord) -> Vec<(String, String)> {
        if !record.owns_netns && !record.inherit_sysctls {
            return Vec::new();
        }
        self.env.inheritance.differing(record.ephemeral_ports.first())
    }

    /// Takes a container out of service, deprovisions it and forgets it. Idempotent. A failure does not stop
    /// the removal of the rest, and the record stays for another attempt.
    pub(in crate::daemon) fn remove(&self, netlink: &Netlink, record: &ContainerRecord) -> Result<()> {
        let env = &self.env;
        self.registry.withdraw(record);
        env.maps.set_endpoint(record.slot, Endpoint::default())?;
        env.maps.set_limit(record.slot, GcraState::default())?;
        let mut failures = Failures::default();
        if let Some(guard) = &env.guard {
            failures.note(guard.remove(record.slot));
        }
        failures.note(deprovision(netlink, env.attach_mode, &env.settings.pins, record));
        failures.into_result()?;
        self.unreserve_all_of(&record.name, &record.ports)?;
        self.registry.forget(record)
    }
}

/// The entry of a container in `pm_endpoints`, without the generation.
pub(in crate::daemon) fn endpoint(env: &Env, record: &ContainerRecord, eth0: u32) -> Endpoint {
    Endpoint {
        host_ifindex: veth_ifindex(record.slot),
        eth0_ifindex: eth0,
        ephemeral_first: record.ephemeral_ports.first(),
        ephemeral_last: record.ephemeral_ports.last(),
        flags: env.port_flags(record),
        ..Endpoint::default()
    }
}
