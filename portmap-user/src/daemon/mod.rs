//! The daemon: what it knows, and the operations on it.

mod container;
mod doctor;
mod drops;
mod explain;
mod facts;
mod follow;
mod followers;
mod host;
mod inside;
mod metrics;
mod recovery;
mod repair;
mod server;
mod shaping;
mod stats;
mod sweep;
mod turns;
mod update;
mod uplink_queue;
mod watch;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard},
};

use portmap_common::slot::SLOTS;

use self::turns::Turns;
pub use self::{facts::HostFacts, host::teardown, server::serve};
use crate::{
    api::{AddRequest, Container, ContainerState, HOST, OUTSIDE},
    ephemeral::EphemeralPool,
    error::{Error, Kind, Result},
    kernel::{clock, guard::Guard, maps::Maps, namespace, programs::Mechanism, qdisc::Leaf, sysctl::Sysctls},
    ports::PortSet,
    records::{ContainerRecord, Phase},
    settings::Settings,
    state::Store,
};

/// Longest name of a container: the identifiers of other container systems fit.
const LONGEST_NAME: usize = 128;

/// A running daemon.
///
/// Its methods block; the server calls them on threads that may.
pub struct Daemon {
    settings: Settings,
    /// What the host is like; replaced when it changes.
    facts: RwLock<Arc<HostFacts>>,
    mechanism: Mechanism,
    /// Held by whoever looks whether the host has changed.
    following: Mutex<()>,
    /// What packets over a limit wait in.
    leaf: Leaf,
    /// Whether the uplink has a queue in which each container has a flow.
    has_flows: bool,
    /// Bytes per second of the uplink for each CPU, if they are known.
    speed_per_cpu: Option<u64>,
    /// The host's own.
    sysctls: Sysctls,
    store: Store,
    maps: Mutex<Maps>,
    /// Refuses `bind()` to ports that are not the container's.
    guard: Option<Guard>,
    registry: Mutex<Registry>,
    /// Taken by whoever adds, changes or removes a container.
    turns: Turns,
    /// Whether containers can still be added and removed; a teardown waits for those that are being.
    open: RwLock<bool>,
}

/// Who has what.
struct Registry {
    pool: EphemeralPool,
    containers: BTreeMap<String, Entry>,
}

struct Entry {
    record: ContainerRecord,
    /// Ports that it is about to have.
    coming: PortSet,
    /// It has lost its interface, and cannot be given another.
    broken: bool,
}

impl Entry {
    /// A container as it has been written down.
    fn new(record: ContainerRecord, broken: bool) -> Self {
        Self { record, coming: PortSet::default(), broken }
    }

    fn state(&self) -> ContainerState {
        match self.record.phase {
            Phase::Adding => ContainerState::Adding,
            Phase::Deleting => ContainerState::Deleting,
            Phase::Ready if self.broken => ContainerState::Broken,
            Phase::Ready => ContainerState::Ready,
        }
    }
}

impl Daemon {
    /// Adds a container: everything is checked first, then done, and undone if any of it fails.
    pub fn add(&self, request: AddRequest) -> Result<Container> {
        check_request(&request)?;
        self.check_wishes(&request.traffic)?;
        let _open = self.open()?;
        let name = request.name.clone();
        self.turns.take(&name, || {
            let mut record = self.admit(request)?;
            let made = self.make(&mut record);
            if let Err(error) = made {
                let undone = self.remove(&record);
                return Err(match undone {
                    Ok(()) => error,
                    Err(left) => Error::new(error.kind, format!("{error}; and undoing it failed: {left}")),
                });
            }
            Ok(self.enter_service(record))
        })
    }

    /// Removes a container and everything that was made for it.
    pub fn delete(&self, name: &str) -> Result<()> {
        let _open = self.open()?;
        self.turns.take(name, || self.delete_in_turn(name))
    }

    /// The same for whoever has the turn.
    fn delete_in_turn(&self, name: &str) -> Result<()> {
        let record = {
            let mut registry = self.registry();
            let entry = registry.containers.get_mut(name).ok_or_else(|| Error::no_container(name))?;
            entry.record.phase = Phase::Deleting;
            entry.record.clone()
        };
        self.store.set_container(&record)?;
        self.remove(&record)
    }

    /// Removes all containers and everything else; nothing can be added afterwards.
    pub fn teardown(&self) -> Result<bool> {
        *self.open.write().unwrap_or_else(PoisonError::into_inner) = false;
        host::teardown_locked(&self.store, self.settings.pins.bpffs())
    }

    /// Removes the state directory if there has been a teardown.
    pub fn leave(&self) -> Result<()> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        if *open { Ok(()) } else { self.store.remove() }
    }

    /// All containers, by name.
    pub fn list(&self) -> Vec<Container> {
        self.registry().containers.values().map(|entry| self.describe(entry)).collect()
    }

    /// One container.
    pub fn show(&self, name: &str) -> Result<Container> {
        let registry = self.registry();
        let entry = registry.containers.get(name).ok_or_else(|| Error::no_container(name))?;
        Ok(self.describe(entry))
    }

    /// Gives a new container its slot and its ports, and writes down that it is being made.
    fn admit(&self, request: AddRequest) -> Result<ContainerRecord> {
        let AddRequest { name, netns, pid, ports, ephemeral_ports_per_container, traffic } = request;
        let mut registry = self.registry();
        if registry.containers.contains_key(&name) {
            return Err(Error::conflict(format!(
                "a container is already called {name:?}: choose another name"
            )));
        }
        self.check_static_ports(&registry, &name, &ports)?;
        let slot = registry.free_slot()?;
        let ephemeral_ports = registry
            .pool
            .allocate(ephemeral_ports_per_container.unwrap_or(self.settings.block), clock::since_boot()?)?;
        let (egress, ingress) = self.limits(&traffic);
        let owns_netns = netns.is_none() && pid.is_none();
        let netns = netns
            .or_else(|| pid.map(|pid| PathBuf::from(format!("/proc/{pid}/ns/net"))))
            .unwrap_or_else(|| namespace::path_of(&name));
        let record = ContainerRecord {
            name: name.clone(),
            slot,
            netns,
            namespace: None,
            owns_netns,
            pid,
            ports,
            ephemeral_ports,
            ipv6: self.facts().v6.is_some(),
            wishes: traffic,
            egress,
            ingress,
            before: None,
            phase: Phase::Adding,
        };
        if let Err(error) = self.store.set_container(&record) {
            registry.pool.cancel(ephemeral_ports);
            return Err(error);
        }
        registry.containers.insert(name, Entry::new(record.clone(), false));
        Ok(record)
    }

    /// Refuses static ports that the container `name` cannot have.
    fn check_static_ports(&self, registry: &Registry, name: &str, ports: &PortSet) -> Result<()> {
        if ports.contains(0) {
            return Err(Error::usage("port 0 cannot be owned: expected ports between 1 and 65535"));
        }
        let unmanaged = ports.difference(&self.settings.ports);
        if !unmanaged.is_empty() {
            let managed = if self.settings.ports.is_empty() {
                "none; start it with --ports".to_owned()
            } else {
                self.settings.ports.to_string()
            };
            return Err(Error::usage(format!(
                "the daemon does not manage the ports {unmanaged}: expected ports of {managed}"
            )));
        }
        for (owner, entry) in registry.containers.iter().filter(|(owner, _)| *owner != name) {
            let taken = ports.intersection(&entry.record.ports.union(&entry.coming));
            if !taken.is_empty() {
                return Err(Error::conflict(format!("the ports {taken} are owned by container {owner:?}")));
            }
        }
        Ok(())
    }

    fn describe(&self, entry: &Entry) -> Container {
        let (record, facts) = (&entry.record, self.facts());
        Container {
            name: record.name.clone(),
            slot: record.slot,
            netns: record.netns.clone(),
            pid: record.pid,
            host_veth: record.host_veth(),
            ip: facts.v4.address,
            ip6: facts.v6.filter(|_| record.ipv6).map(|v6| v6.address),
            ports: record.ports.clone(),
            ephemeral_ports: record.ephemeral_ports,
            egress: record.egress.clone(),
            ingress: record.ingress.clone(),
            loopback: self.loopback(record),
            state: entry.state(),
        }
    }

    /// Holds off a teardown, unless there has been one.
    fn open(&self) -> Result<RwLockReadGuard<'_, bool>> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        if *open {
            Ok(open)
        } else {
            Err(Error::conflict("portmap has been torn down here: start portmapd again"))
        }
    }

    /// What the host is like now.
    fn facts(&self) -> Arc<HostFacts> {
        self.facts.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    // A panic while one of these is held leaves no half-done change in it: every change is a single step.
    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn maps(&self) -> MutexGuard<'_, Maps> {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registry {
    /// The lowest slot that no container has.
    fn free_slot(&self) -> Result<u16> {
        let taken: std::collections::BTreeSet<u16> =
            self.containers.values().map(|entry| entry.record.slot).collect();
        (1..SLOTS)
            .find(|slot| !taken.contains(slot))
            .ok_or_else(|| Error::conflict(format!("all {} slots are in use: delete a container", SLOTS - 1)))
    }
}

fn check_request(request: &AddRequest) -> Result<()> {
    check_name(&request.name)?;
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

/// A name is part of file names and of what `ip` shows, and is not what commands call somebody else.
fn check_name(name: &str) -> Result<()> {
    if [HOST, OUTSIDE].contains(&name) {
        return Err(Error::usage(format!(
            "{name:?} cannot be a container's name, commands know somebody else by it: expected another one"
        )));
    }
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    let starts_well = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if starts_well && name.len() <= LONGEST_NAME && name.bytes().all(is_plain) {
        return Ok(());
    }
    Err(Error::new(
        Kind::Usage,
        format!(
            "{name:?} cannot be a container's name: expected a letter or digit followed by letters, digits, '_', '.' \
             or '-', at most {LONGEST_NAME} in all"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_file_names() {
        for name in ["a", "web-1", "A.b_c", "0", &"x".repeat(128)] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["host", "outside", "", "-a", ".", "..", "a/b", "a b", "ä", "a\0", &"x".repeat(129)] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
