//! Adding and removing a container.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use portmap_common::slot::veth_ifindex;
use tracing::warn;

use super::{Containers, limits};
use crate::{
    api::AddRequest,
    daemon::{
        host::{HostState, sockets::HostSockets, tracked},
        registry::{Admission, Entry, Refusal, StaticPortRequest},
    },
    error::{Error, Result},
    kernel::{link, netlink::Netlink},
    model::{ContainerRecord, InterfaceName, PortSet, name},
};

/// A container that a command has changed.
pub(in crate::daemon) struct Changed {
    pub(in crate::daemon) entry: Arc<Entry>,
    /// Warnings for the operator, one sentence each.
    pub(in crate::daemon) warnings: Vec<String>,
}

/// Refuses a request that is invalid regardless of the present containers.
///
/// # Errors
///
/// Names the value and the expectation.
pub(in crate::daemon) fn check_request(request: &AddRequest) -> Result<()> {
    name::check(&request.name)?;
    if request.inherit_sysctls && request.netns.is_none() && request.pid.is_none() {
        return Err(Error::usage(
            "--inherit-sysctls needs an existing namespace: expected --netns or --pid with it; a namespace \
             that portmap creates always inherits the host's settings",
        ));
    }
    if request.netns.is_some() && request.pid.is_some() {
        return Err(Error::usage(
            "both a network namespace and a pid are given: expected one of them, or neither",
        ));
    }
    if let Some(netns) = &request.netns
        && !netns.is_absolute()
    {
        return Err(Error::usage(format!(
            "the network namespace {} is a relative path: expected an absolute one",
            netns.display()
        )));
    }
    Ok(())
}

/// Refuses addresses that the host does not share, and a MAC address that containers do not have.
fn check_addresses(state: &HostState, addresses: &[IpAddr], mac: Option<&str>) -> Result<()> {
    let of_containers = link::mac_text(state.mac);
    if let Some(other) = mac.filter(|mac| !mac.eq_ignore_ascii_case(&of_containers)) {
        return Err(Error::usage(format!(
            "the MAC address {other} is not that of containers: expected {of_containers}, or none"
        )));
    }
    let shared: Vec<IpAddr> = state.addresses.iter().map(|shared| shared.address).collect();
    if let Some(other) = addresses.iter().find(|address| !shared.contains(address)) {
        let shared: Vec<_> = shared.iter().map(IpAddr::to_string).collect();
        return Err(Error::usage(format!(
            "containers do not have the address {other}: expected one that the host shares, {}, or none",
            shared.join(" or ")
        )));
    }
    Ok(())
}

impl Containers {
    /// Adds a container: admits it, provisions it, publishes its ports. The caller has checked the request. A
    /// failure is rolled back.
    ///
    /// # Errors
    ///
    /// [`Refusal::Taken`] if other containers own a resource that it needs.
    pub(in crate::daemon) fn add(&self, request: AddRequest) -> Result<Changed, Refusal> {
        let netlink = Netlink::open()?;
        if request.replace {
            self.remove_replaced(&netlink, &request)?;
        }
        let numbered = request.ports.clone();
        let admitted = self.admit(&netlink, request);
        let (mut record, warnings) = admitted.inspect_err(|_refusal| self.unreserve_unowned(&numbered))?;
        // After the admission, because a later change of the host finds the container in the registry.
        (record.egress, record.ingress) = limits::for_traffic(&self.env, &self.host.state(), &record.traffic);
        let reserved = self.reserve_published(&record.ports);
        let kept = reserved.and_then(|()| self.keep_tracked_connections(&record.all_ports()));
        if let Err(refusal) = kept.map_err(Refusal::from).and_then(|()| self.provision(&netlink, &mut record))
        {
            return Err(match self.remove(&netlink, &record) {
                Ok(()) => refusal,
                Err(left) => refusal.and(&format!("and the rollback failed: {left}")),
            });
        }
        Ok(Changed { entry: self.registry.publish(record), warnings })
    }

    /// Leaves to the host the connections that its NAT has on ports that a container is about to get.
    ///
    /// # Errors
    ///
    /// If the map cannot be written. If the kernel cannot list connections, that is logged only: most hosts have no
    /// such connection, and one is known from its next packet.
    pub(super) fn keep_tracked_connections(&self, ports: &PortSet) -> Result<()> {
        match tracked::connections(&self.host.state(), ports) {
            Ok(found) => self.registry.keep_host_connections(&found),
            Err(error) => {
                warn!(
                    "{error}: until the host sends on a connection through its NAT that is older than a container with \
                     its port, packets of it reach the container ({ports})"
                );
                Ok(())
            }
        }
    }

    /// Removes a container with everything that portmap made for it.
    ///
    /// # Errors
    ///
    /// If there is no such container, or a removal fails; then the command can be retried.
    pub(in crate::daemon) fn delete(&self, netlink: &Netlink, name: &str) -> Result<()> {
        let record = self.registry.begin_removal(name)?;
        self.remove(netlink, &record)
    }

    /// Checks the request against the host and other containers, then reserves a slot and ports.
    fn admit(
        &self,
        netlink: &Netlink,
        request: AddRequest,
    ) -> Result<(ContainerRecord, Vec<String>), Refusal> {
        // Without `..`, so that a new field of the request is a compile error here.
        let AddRequest {
            name,
            netns,
            pid,
            container_interface,
            ports: numbered,
            automatic_ports: automatic,
            take,
            replace: _,
            addresses,
            mac,
            remove_with_client: _,
            owner,
            inherit_sysctls,
            ephemeral_ports_per_container: block,
            traffic,
            labels,
        } = request;
        let interface =
            container_interface.as_deref().map_or_else(|| Ok(InterfaceName::default()), str::parse)?;
        self.registry.check_available(&name, &numbered)?;
        self.reserve_published(&numbered)?;
        let (state, settings) = (self.host.state(), &self.env.settings);
        check_addresses(&state, &addresses, mac.as_deref())?;
        let choices = if automatic.is_empty() { PortSet::default() } else { settings.ports.clone() };
        let read = numbered.union(&choices).union(&settings.ephemeral_ports);
        let sockets = HostSockets::read(&state, &read);
        let warnings = sockets.check(&numbered, take)?;
        self.registry.keep_host_connections(&sockets.connections(&numbered))?;
        let foreign_slots = self.foreign_slots(netlink)?;
        let record = self.registry.admit(Admission {
            name,
            netns,
            pid,
            owner,
            interface,
            ports: StaticPortRequest { numbered, automatic },
            block,
            ipv6: state.v6.is_some(),
            traffic,
            labels,
            inherit_sysctls,
            host_ports: sockets.ports(),
            foreign_slots,
        })?;
        Ok((record, warnings))
    }

    /// Free slots below the next usable one that cannot be used, because an interface of another tool has
    /// their name or index.
    fn foreign_slots(&self, netlink: &Netlink) -> Result<BTreeSet<u16>, Refusal> {
        let mut foreign = BTreeSet::new();
        loop {
            let slot = self.registry.free_slot(&foreign)?;
            let is_taken = link::find_by_index(netlink, veth_ifindex(slot))?.is_some()
                || link::find(netlink, &format!("pm{slot}"))?.is_some();
            if !is_taken {
                return Ok(foreign);
            }
            foreign.insert(slot);
        }
    }
}
