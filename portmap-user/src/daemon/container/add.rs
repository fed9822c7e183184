//! Adding and removing a container.

use std::{collections::BTreeSet, sync::Arc};

use portmap_common::slot::veth_ifindex;

use super::{Containers, limits};
use crate::{
    api::{AddRequest, HOST, OUTSIDE},
    daemon::{
        host::sockets::HostSockets,
        registry::{Admission, Entry, Refusal},
    },
    error::{Error, Result},
    kernel::{link, netlink::Netlink},
    model::ContainerRecord,
};

/// Longest name of a container: the identifiers of other container systems fit.
pub(in crate::daemon) const LONGEST_NAME: usize = 128;

/// A container that a command has changed.
pub(in crate::daemon) struct Changed {
    pub(in crate::daemon) entry: Arc<Entry>,
    /// What the operator should know, a sentence each.
    pub(in crate::daemon) warnings: Vec<String>,
}

/// Refuses a request that makes no sense, whatever containers there are.
///
/// # Errors
///
/// Names the value and what is expected.
pub(in crate::daemon) fn check_request(request: &AddRequest) -> Result<()> {
    check_name(&request.name)?;
    if request.inherit_sysctls && request.netns.is_none() && request.pid.is_none() {
        return Err(Error::usage(
            "--inherit-sysctls is for a namespace that another tool made: expected --netns or --pid with it, namespaces that \
             portmap makes have the host's settings anyway",
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

/// A name becomes part of file names and of what `ip` shows, and must not mean another sender or receiver to commands.
fn check_name(name: &str) -> Result<()> {
    if [HOST, OUTSIDE].contains(&name) {
        return Err(Error::usage(format!(
            "{name:?} cannot be a container's name, because it is a reserved name of commands: expected another one"
        )));
    }
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    let starts_well = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if starts_well && name.len() <= LONGEST_NAME && name.bytes().all(is_plain) {
        return Ok(());
    }
    let name: String = name.chars().take(LONGEST_NAME + 1).collect();
    Err(Error::usage(format!(
        "{name:?} cannot be a container's name: expected a letter or digit followed by letters, digits, '_', '.' or '-', at \
         most {LONGEST_NAME} in all"
    )))
}

impl Containers {
    /// Adds a container whose request has been checked: admits it, provisions it, publishes its ports. A failure is rolled back.
    ///
    /// # Errors
    ///
    /// [`Refusal::Taken`] if other containers have what it needs.
    pub(in crate::daemon) fn add(&self, request: AddRequest) -> Result<Changed, Refusal> {
        let netlink = Netlink::open()?;
        let (mut record, warnings) = self.admit(&netlink, request)?;
        if let Err(refusal) = self.provision(&netlink, &mut record) {
            return Err(match self.remove(&netlink, &record) {
                Ok(()) => refusal,
                Err(left) => refusal.and(&format!("and undoing it failed: {left}")),
            });
        }
        Ok(Changed { entry: self.registry.publish(record), warnings })
    }

    /// Removes a container and everything that was made for it.
    ///
    /// # Errors
    ///
    /// If there is no such container, or something cannot be removed; then another attempt can follow.
    pub(in crate::daemon) fn delete(&self, name: &str) -> Result<()> {
        let record = self.registry.begin_removal(name)?;
        self.remove(&Netlink::open()?, &record)
    }

    /// Checks everything that can be checked, then reserves a slot and ports.
    fn admit(
        &self,
        netlink: &Netlink,
        request: AddRequest,
    ) -> Result<(ContainerRecord, Vec<String>), Refusal> {
        // Without `..`, so that a field that is added to requests is not forgotten here.
        let AddRequest {
            name,
            netns,
            pid,
            ports,
            take,
            remove_with_client: _,
            owner,
            inherit_sysctls,
            ephemeral_ports_per_container: block,
            traffic,
        } = request;
        self.registry.check_available(&name, &ports)?;
        let state = self.host.state();
        let sockets = HostSockets::read(&state, &ports.union(&self.env.settings.ephemeral_ports));
        let warnings = sockets.check(&ports, take)?;
        let foreign_slots = self.foreign_slots(netlink)?;
        let (egress, ingress) = limits::for_traffic(&self.env, &state, &traffic);
        let record = self.registry.admit(Admission {
            name,
            netns,
            pid,
            owner,
            ports,
            block,
            ipv6: state.v6.is_some(),
            traffic,
            egress,
            ingress,
            inherit_sysctls,
            host_ports: sockets.ports(),
            foreign_slots,
        })?;
        Ok((record, warnings))
    }

    /// Slots that a new container would get if another tool's interface did not have their name or index.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_name_is_a_file_name() {
        for name in ["a", "web-1", "A.b_c", "0", &"x".repeat(128)] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["host", "outside", "", "-a", ".", "..", "a/b", "a b", "ä", "a\0", &"x".repeat(129)] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
