//! The port map `pm_ports`: publishing the owner of each port.

use std::{sync::Arc, time::Duration};

use portmap_common::{
    flow_state::{HostConnection, HostConnectionKey},
    slot::veth_ifindex,
    tables::{PORTS, PortEntry},
};

use super::{entries::Registry, snapshot::Entry};
use crate::{api::ContainerState, error::Result, kernel::clock, model::ContainerRecord};

/// A port whose owner in the port map differs from the records.
pub(in crate::daemon) struct WrongPort {
    pub(in crate::daemon) port: u16,
    /// The name of the desired owner, or else of the owner in the map.
    pub(in crate::daemon) container: Option<String>,
    /// The slot of the owner in the map.
    pub(in crate::daemon) slot: u16,
    /// The desired owner; `None` for the host.
    pub(in crate::daemon) expected: Option<ContainerRecord>,
}

impl Registry {
    /// The owner of a port in the port map.
    pub(in crate::daemon) fn owner_of(&self, port: u16) -> PortEntry {
        self.ports.get(port)
    }

    /// Leaves connections to the host that it has from ports of a container to come, each for a time after its last
    /// packet.
    ///
    /// # Errors
    ///
    /// If the map cannot be written.
    pub(in crate::daemon) fn keep_host_connections(
        &self,
        connections: &[(HostConnectionKey, Duration)],
    ) -> Result<()> {
        let now = clock::monotonic()?;
        for (key, lifetime) in connections {
            let lifetime = u64::try_from(lifetime.as_nanos()).unwrap_or(u64::MAX);
            let until = now.saturating_add(lifetime);
            let connection = HostConnection { until, ..HostConnection::default() };
            self.env.maps.add_host_connection(key, connection)?;
            self.ports.flag_host_connections(key.local_port);
        }
        Ok(())
    }

    /// Puts a container into service: makes it the owner of its ports, and the host the owner of ports that
    /// it no longer has.
    pub(in crate::daemon) fn publish(&self, record: ContainerRecord) -> Arc<Entry> {
        let mut state = self.state.lock();
        let (owner, ports) = (self.port_entry(&record), record.all_ports());
        for port in ports.iter() {
            self.ports.set(port, owner);
        }
        if let Some(before) = state.containers.get(&record.name).cloned() {
            for port in before.record.all_ports().difference(&ports).iter() {
                self.ports.set(port, PortEntry::default());
            }
            Self::note_released(&mut state, before.record.ports.difference(&record.ports));
        }
        self.insert(&mut state, Entry::new(record, false))
    }

    /// Rewrites the flags of a container's ports.
    pub(in crate::daemon) fn publish_flags(&self, record: &ContainerRecord) {
        let _state = self.state.lock();
        let owner = self.port_entry(record);
        for port in record.all_ports().iter() {
            self.ports.set(port, owner);
        }
    }

    /// Makes the port map equal to the records.
    pub(in crate::daemon) fn publish_all(&self) {
        let state = self.state.lock();
        let mut owners = vec![PortEntry::default(); PORTS];
        for entry in state.containers.entries().filter(|entry| entry.state() == ContainerState::Ready) {
            let owner = self.port_entry(&entry.record);
            for port in entry.record.all_ports().iter() {
                owners[usize::from(port)] = owner;
            }
        }
        for (port, owner) in (0..=u16::MAX).zip(owners) {
            if self.ports.get(port).of_owner() != owner {
                self.ports.set(port, owner);
            }
        }
    }

    /// Compares the port map with the records; returns the first port whose owner differs.
    pub(in crate::daemon) fn wrong_port(&self) -> Option<WrongPort> {
        let state = self.state.lock();
        let mut desired = vec![None; PORTS];
        for entry in state.containers.entries().filter(|entry| entry.state() == ContainerState::Ready) {
            for port in entry.record.all_ports().iter() {
                desired[usize::from(port)] = Some(&entry.record);
            }
        }
        let name_of = |slot| {
            let found = state.containers.records().find(|record| record.slot == slot);
            found.map(|record| record.name.clone())
        };
        (0..=u16::MAX).zip(desired).find_map(|(port, desired)| {
            let owner = self.ports.get(port).of_owner();
            let expected = desired.map_or_else(PortEntry::default, |record| self.port_entry(record));
            (owner != expected).then(|| WrongPort {
                port,
                container: desired.map(|record| record.name.clone()).or_else(|| name_of(owner.slot)),
                slot: owner.slot,
                expected: desired.cloned(),
            })
        })
    }

    /// Takes a container out of service: makes the host the owner of its ports.
    pub(in crate::daemon) fn withdraw(&self, record: &ContainerRecord) {
        let _state = self.state.lock();
        let is_own = |port: &u16| self.ports.get(*port).slot == record.slot;
        for port in record.all_ports().iter().filter(is_own) {
            self.ports.set(port, PortEntry::default());
        }
    }

    /// The value of a container's ports in the port map.
    pub(super) fn port_entry(&self, record: &ContainerRecord) -> PortEntry {
        let flags = self.env.port_flags(record);
        PortEntry { ifindex: veth_ifindex(record.slot), slot: record.slot, flags }
    }
}
