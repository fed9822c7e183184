//! The daemon: what it knows, and the operations on it.

mod claims;
mod container;
mod doctor;
mod drops;
mod end;
mod explain;
mod facts;
mod first;
mod follow;
mod followers;
mod health;
mod host;
mod inside;
mod journal;
mod kept;
mod lost;
mod metrics;
mod owner;
mod place;
mod recovery;
mod repair;
mod server;
mod shaping;
mod stats;
mod sweep;
mod takeover;
mod turns;
mod update;
mod uplink;
mod uplink_queue;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, MutexGuard, RwLockReadGuard},
};

use portmap_common::slot::{SLOTS, veth_ifindex};

pub use self::{
    end::End,
    facts::HostFacts,
    host::{TornDown, teardown},
    server::{Listeners, bind, serve},
};
use self::{place::Place, takeover::Progress, turns::Turns};
use crate::{
    api::{AddRequest, Changed, Container, ContainerState, HOST, OUTSIDE},
    error::{Error, Kind, Result},
    kernel::{
        clock, guard::Guard, inherit::Inheritance, link, maps::Maps, namespace, netlink::Netlink,
        pins::OpenPins, programs::AttachMode, qdisc::Leaf, sysctl::Sysctls,
    },
    locks::{Held, Ranked, RankedRw},
    model::{ContainerRecord, EphemeralPool, Phase, PortSet},
    settings::Settings,
    state::Store,
};

/// Longest name of a container: the identifiers of other container systems fit.
const LONGEST_NAME: usize = 128;

/// A running daemon.
///
/// Its methods block; the server calls them on threads that may. The order of its locks is that of [`crate::locks::Rank`].
pub struct Daemon {
    settings: Settings,
    /// What the host is like; replaced when it changes.
    facts: RankedRw<Arc<HostFacts>>,
    attach_mode: AttachMode,
    /// Held by whoever looks whether the host has changed.
    following: Ranked<()>,
    /// What packets over a limit wait in.
    leaf: Leaf,
    /// Whether the uplink has a queue in which each container has a flow.
    has_flows: bool,
    /// Bytes per second of the uplink for each CPU, if they are known.
    speed_per_cpu: Option<u64>,
    /// The host's own.
    sysctls: Sysctls,
    /// What a new namespace gets of them.
    inheritance: Inheritance,
    store: Store,
    maps: Maps,
    /// Refuses `bind()` to ports that are not the container's.
    guard: Option<Guard>,
    registry: Ranked<Registry>,
    /// What is pinned.
    held: OpenPins,
    /// No other daemon works in the same network namespace, or with the same pins.
    place: Ranked<Place>,
    /// Taken by whoever adds, changes or removes a container.
    turns: Turns,
    /// Whether containers can still be added and removed; a teardown waits for those that are being.
    open: RankedRw<bool>,
    /// How far the containers of an earlier daemon have been checked.
    progress: Progress,
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
    /// It is of an earlier daemon, and this one has not looked at it yet.
    unchecked: bool,
}

impl Entry {
    /// A container as it has been written down.
    fn new(record: ContainerRecord, broken: bool) -> Self {
        Self { record, coming: PortSet::default(), broken, unchecked: false }
    }

    /// A container of an earlier daemon.
    fn found(record: ContainerRecord) -> Self {
        Self { unchecked: true, ..Self::new(record, false) }
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
    pub fn add(&self, request: &AddRequest) -> Result<Changed> {
        journal::note(&request.name, "added", self.check_and_add(request), |added| {
            journal::form("added", &added.container)
        })
    }

    fn check_and_add(&self, request: &AddRequest) -> Result<Changed> {
        check_request(request)?;
        self.check_wishes(&request.traffic)?;
        let _open = self.open()?;
        let name = &request.name;
        self.after_checks(|| {
            self.turns.take(name, || {
                self.check_first(name)?;
                let (mut record, warnings) = self.admit(request.clone())?;
                let made = self.make(&mut record);
                if let Err(error) = made {
                    let undone = self.remove(&record);
                    return Err(match undone {
                        Ok(()) => error,
                        Err(left) => {
                            Error::new(error.kind, format!("{error}; and undoing it failed: {left}"))
                        }
                    });
                }
                Ok(Changed { container: self.enter_service(record), warnings })
            })
        })
    }

    /// Removes a container and everything that was made for it.
    pub fn delete(&self, name: &str) -> Result<()> {
        let removed = self.open().and_then(|_open| {
            self.turns.take(name, || {
                self.check_first(name)?;
                self.delete_in_turn(name)
            })
        });
        journal::note(name, "removed", removed, |()| "removed".to_owned())
    }

    /// The same for whoever has the turn.
    fn delete_in_turn(&self, name: &str) -> Result<()> {
        let found = self.registry().containers.get(name).map(|entry| entry.record.clone());
        let mut record = found.ok_or_else(|| Error::no_container(name))?;
        record.phase = Phase::Deleting;
        self.store.mark_deleting(&record)?;
        if let Some(entry) = self.registry().containers.get_mut(name) {
            entry.record.phase = Phase::Deleting;
        }
        self.remove(&record)
    }

    /// Removes all containers and everything else; nothing can be added afterwards.
    pub fn teardown(&self) -> Result<bool> {
        *self.open.write() = false;
        let place = self.place.lock();
        Ok(host::teardown_locked(&self.store, &place, self.settings.pins.bpffs())?.anything)
    }

    /// Removes the state directory if there has been a teardown.
    pub fn leave(&self) -> Result<()> {
        let open = self.open.read();
        if *open { Ok(()) } else { self.store.remove() }
    }

    /// All containers, by name.
    pub fn list(&self) -> Vec<Container> {
        self.registry().containers.values().map(|entry| self.describe(entry)).collect()
    }

    /// One container.
    pub fn show(&self, name: &str) -> Result<Container> {
        self.checked(name)?;
        let registry = self.registry();
        let entry = registry.containers.get(name).ok_or_else(|| Error::no_container(name))?;
        Ok(self.describe(entry))
    }

    /// Gives a new container its slot and its ports, and writes down that it is being made.
    fn admit(&self, request: AddRequest) -> Result<(ContainerRecord, Vec<String>)> {
        let AddRequest {
            name,
            netns,
            pid,
            ports,
            take,
            inherit_sysctls,
            ephemeral_ports_per_container,
            traffic,
            owner,
            ..
        } = request;
        let check = |registry: &Registry| {
            if registry.containers.contains_key(&name) {
                return Err(Error::conflict(format!(
                    "a container is already called {name:?}: choose another name"
                )));
            }
            self.check_static_ports(registry, &name, &ports)
        };
        check(&self.registry())?;
        let claims = self.claims(&ports.union(&self.settings.ephemeral_ports));
        let warnings = claims.check(&ports, take)?;
        let foreign = self.foreign_slots()?;
        let mut registry = self.registry();
        // Others may have come in between.
        check(&registry)?;
        let slot = registry.free_slot(&foreign)?;
        registry.pool.skip_blocks_with(claims.ports());
        let ephemeral_ports = registry.pool.allocate_to(
            &name,
            ephemeral_ports_per_container.unwrap_or(self.settings.block),
            clock::since_boot()?,
        )?;
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
            owner,
            ports,
            ephemeral_ports,
            ipv6: self.facts().v6.is_some(),
            traffic,
            egress,
            ingress,
            inherit_sysctls,
            before: None,
            phase: Phase::Adding,
        };
        if let Err(error) = self.store.set_container(&record) {
            registry.pool.cancel(ephemeral_ports);
            return Err(error);
        }
        registry.containers.insert(name, Entry::new(record.clone(), false));
        Ok((record, warnings))
    }

    /// Slots that a new container would have, if somebody else's interface did not have the name or the index that go with
    /// them.
    fn foreign_slots(&self) -> Result<BTreeSet<u16>> {
        let (netlink, mut foreign) = (Netlink::open()?, BTreeSet::new());
        loop {
            let slot = self.registry().free_slot(&foreign)?;
            let is_taken = link::find_by_index(&netlink, veth_ifindex(slot))?.is_some()
                || link::find(&netlink, &format!("pm{slot}"))?.is_some();
            if !is_taken {
                return Ok(foreign);
            }
            foreign.insert(slot);
        }
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
    fn open(&self) -> Result<Held<RwLockReadGuard<'_, bool>>> {
        let open = self.open.read();
        if *open {
            Ok(open)
        } else {
            Err(Error::conflict("portmap has been torn down here: start portmapd again"))
        }
    }

    /// What the host is like now.
    fn facts(&self) -> Arc<HostFacts> {
        self.facts.read().clone()
    }

    fn registry(&self) -> Held<MutexGuard<'_, Registry>> {
        self.registry.lock()
    }
}

impl Registry {
    /// The lowest slot that no container has, and that is not among the `foreign` ones.
    fn free_slot(&self, foreign: &BTreeSet<u16>) -> Result<u16> {
        let taken: BTreeSet<u16> = self.containers.values().map(|entry| entry.record.slot).collect();
        (1..SLOTS)
            .find(|slot| !taken.contains(slot) && !foreign.contains(slot))
            .ok_or_else(|| Error::conflict(format!("all {} slots are in use: delete a container", SLOTS - 1)))
    }
}

fn check_request(request: &AddRequest) -> Result<()> {
    check_name(&request.name)?;
    if request.inherit_sysctls && request.netns.is_none() && request.pid.is_none() {
        return Err(Error::usage(
            "--inherit-sysctls is for a namespace of somebody else's: expected --netns or --pid with it, others have the \
             host's settings anyway",
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
    let name: String = name.chars().take(LONGEST_NAME + 1).collect();
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
