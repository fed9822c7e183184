//! Changing a container that is in service.

use tracing::warn;

use super::{Daemon, journal};
use crate::{
    api::{Changed, UpdateRequest},
    error::{Error, Result},
    model::{ContainerRecord, Phase, PortSet},
};

impl Daemon {
    /// Changes a container's static ports, and what was asked for its traffic. With nothing to change, everything that
    /// limits its traffic is put back as it should be.
    ///
    /// Either all of it happens or none. New ports are there before old ones go; nothing happens on ports that stay.
    pub fn update(&self, name: &str, request: &UpdateRequest) -> Result<Changed> {
        journal::note(name, "updated", self.check_and_update(name, request), |updated| {
            journal::form("updated", &updated.container)
        })
    }

    fn check_and_update(&self, name: &str, request: &UpdateRequest) -> Result<Changed> {
        self.check_wishes(&request.traffic)?;
        let _open = self.open()?;
        self.after_checks(|| {
            self.turns.take(name, || {
                self.check_first(name)?;
                let request = request.clone();
                let mut warnings = self.check_claims(name, request.ports.as_ref(), request.take)?;
                let before = self.in_service(name, request.ports.as_ref())?;
                let mut after = before.clone();
                after.traffic = request.traffic.or(before.traffic);
                (after.egress, after.ingress) = self.limits(&after.traffic);
                if let Some(ports) = request.ports {
                    after.ports = ports;
                }
                match self.change(&before, &after) {
                    Ok(warning) => {
                        warnings.extend(warning);
                        Ok(Changed { container: self.enter_service(after), warnings })
                    }
                    Err(error) => {
                        if let Some(entry) = self.registry().containers.get_mut(name) {
                            entry.coming = PortSet::default();
                        }
                        Err(error)
                    }
                }
            })
        })
    }

    /// What to warn of where a container gets `ports` of which the host uses some. Its own are not the host's any more.
    fn check_claims(&self, name: &str, ports: Option<&PortSet>, take: bool) -> Result<Vec<String>> {
        let Some(ports) = ports else { return Ok(Vec::new()) };
        let had = {
            let registry = self.registry();
            let entry = registry.containers.get(name).ok_or_else(|| Error::no_container(name))?;
            // What cannot be had at all is another error than what the host has.
            self.check_static_ports(&registry, name, ports)?;
            entry.record.ports.clone()
        };
        let new = ports.difference(&had);
        self.claims(&new).check(&new, take)
    }

    /// The record of a container in service, for which the ports that it is to have are kept from others.
    fn in_service(&self, name: &str, ports: Option<&PortSet>) -> Result<ContainerRecord> {
        let mut registry = self.registry();
        let entry = registry.containers.get(name).ok_or_else(|| Error::no_container(name))?;
        if entry.record.phase != Phase::Ready || entry.broken {
            return Err(Error::conflict(format!(
                "container {name:?} is {}: expected one in service",
                entry.state().name()
            )));
        }
        if let Some(ports) = ports {
            self.check_static_ports(&registry, name, ports)?;
        }
        let entry = registry.containers.get_mut(name).ok_or_else(|| Error::no_container(name))?;
        entry.coming = ports.cloned().unwrap_or_default();
        Ok(entry.record.clone())
    }

    /// Brings the new limits about and writes the new form down. Returns what there is to warn of.
    fn change(&self, before: &ContainerRecord, after: &ContainerRecord) -> Result<Option<String>> {
        // A daemon that is killed up to here leaves the old record, whose limits the next one applies again.
        let limited = ContainerRecord { ports: before.ports.clone(), ..after.clone() };
        let applied =
            self.apply(&limited).and_then(|warning| self.store.set_container(after).map(|()| warning));
        if applied.is_err()
            && let Err(left) = self.apply(before)
        {
            warn!("container {:?}: its limits are neither the old nor the new ones: {left}", before.name);
        }
        // What follows cannot fail, and the next daemon does it by itself.
        applied
    }
}
