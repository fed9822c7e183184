//! The maps in memory, with a record of each write and lookup.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::IpAddr,
};

use portmap_common::{
    flow_state::{
        Echo, EchoKey, FragCacheEntry, FragmentKey4, FragmentKey6, HostConnection, HostConnectionKey,
        HostFlow, HostFlowKey, Neighbour, NeighbourKey,
    },
    gcra::GcraState,
    tables::{Address4, Address6, Config, Endpoint, HOST_CONNECTIONS, PortEntry},
};
use portmap_ebpf::{
    PacketBuf, Tables, Verdict,
    fib::{FibAnswer, FibQuestion},
    hooks,
    verdict::NextHop,
};

use crate::{
    spec_state::Entry,
    world::{Case, LONGEST, UPLINK, World, ifindex},
};

/// The maps. This is not `portmap_ebpf::testing::FakeTables`, because the test compares each write and lookup
/// of a decision with the model and undoes the writes. Port owners come from the world.
pub(crate) struct RecordingTables<'a> {
    world: &'a World,
    now: u64,
    fragments4: RefCell<HashMap<FragmentKey4, FragCacheEntry>>,
    fragments6: RefCell<HashMap<FragmentKey6, FragCacheEntry>>,
    echoes: RefCell<HashMap<EchoKey, Echo>>,
    host_flows: RefCell<HashMap<HostFlowKey, HostFlow>>,
    neighbours: RefCell<HashMap<NeighbourKey, Neighbour>>,
    host_connections: RefCell<HashMap<HostConnectionKey, HostConnection>>,
    /// Writes of the last decision, with the previous entries.
    changes: RefCell<Vec<(Entry, Option<Entry>)>>,
    /// Identifiers that the last decision has looked up, each once.
    pub(crate) tried: RefCell<Vec<u16>>,
    /// Nanoseconds by which the last decision has advanced a TAT.
    pub(crate) spent: Cell<u64>,
}

impl<'a> RecordingTables<'a> {
    pub(crate) fn new(world: &'a World, now: u64) -> Self {
        Self {
            world,
            now,
            fragments4: RefCell::default(),
            fragments6: RefCell::default(),
            echoes: RefCell::default(),
            host_flows: RefCell::default(),
            neighbours: RefCell::default(),
            host_connections: RefCell::default(),
            changes: RefCell::default(),
            tried: RefCell::default(),
            spent: Cell::default(),
        }
    }

    pub(crate) fn write(&self, entry: Entry) {
        match entry {
            Entry::Fragment4(key, fragment) => drop(self.fragments4.borrow_mut().insert(key, fragment)),
            Entry::Fragment6(key, fragment) => drop(self.fragments6.borrow_mut().insert(key, fragment)),
            Entry::Echo(key, echo) => drop(self.echoes.borrow_mut().insert(key, echo)),
            Entry::HostFlow(key, flow) => drop(self.host_flows.borrow_mut().insert(key, flow)),
            Entry::Neighbour(key, value) => drop(self.neighbours.borrow_mut().insert(key, value)),
            Entry::HostConnection(key, value) => {
                self.host_connections.borrow_mut().insert(key, value);
            }
        }
    }

    /// Returns the current entry with the key of `entry`.
    pub(crate) fn current(&self, entry: Entry) -> Option<Entry> {
        match entry {
            Entry::Fragment4(key, _) => self.fragment4(&key).map(|fragment| Entry::Fragment4(key, fragment)),
            Entry::Fragment6(key, _) => self.fragment6(&key).map(|fragment| Entry::Fragment6(key, fragment)),
            Entry::Echo(key, _) => self.echoes.borrow().get(&key).map(|echo| Entry::Echo(key, *echo)),
            Entry::HostFlow(key, _) => self.host_flow(&key).map(|flow| Entry::HostFlow(key, flow)),
            Entry::Neighbour(key, _) => self.neighbour(&key).map(|value| Entry::Neighbour(key, value)),
            Entry::HostConnection(key, _) => {
                let found = self.host_connections.borrow().get(&key).copied();
                found.map(|value| Entry::HostConnection(key, value))
            }
        }
    }

    fn remove(&self, entry: Entry) {
        match entry {
            Entry::Fragment4(key, _) => drop(self.fragments4.borrow_mut().remove(&key)),
            Entry::Fragment6(key, _) => drop(self.fragments6.borrow_mut().remove(&key)),
            Entry::Echo(key, _) => drop(self.echoes.borrow_mut().remove(&key)),
            Entry::HostFlow(key, _) => drop(self.host_flows.borrow_mut().remove(&key)),
            Entry::Neighbour(key, _) => drop(self.neighbours.borrow_mut().remove(&key)),
            Entry::HostConnection(key, _) => drop(self.host_connections.borrow_mut().remove(&key)),
        }
    }

    fn record(&self, entry: Entry) {
        let before = self.current(entry);
        if before != Some(entry) {
            self.write(entry);
            self.changes.borrow_mut().push((entry, before));
        }
    }

    /// Returns the writes of the last decision.
    pub(crate) fn written(&self) -> Vec<Entry> {
        self.changes.borrow().iter().map(|(entry, _)| *entry).collect()
    }

    /// Undoes the writes of the last decision.
    pub(crate) fn roll_back(&self) {
        for (entry, before) in self.changes.take().into_iter().rev() {
            match before {
                Some(before) => self.write(before),
                None => self.remove(entry),
            }
        }
    }

    pub(crate) fn clear(&self) {
        self.fragments4.take();
        self.fragments6.take();
        self.echoes.take();
        self.host_flows.take();
        self.neighbours.take();
        self.host_connections.take();
    }

    /// Returns the verdict of the decision code.
    pub(crate) fn decide(&self, case: &Case<'_>) -> Verdict {
        self.changes.borrow_mut().clear();
        self.tried.borrow_mut().clear();
        self.spent.set(0);
        let view = PacketBuf {
            bytes: case.frame,
            ifindex: ifindex(case.hook),
            mac: self.world.config.mac,
            ingress_ifindex: case.ingress,
            vlan_tag: case.tag,
            mark: case.mark,
            priority: case.priority,
            gso_size: case.segment,
            max_frame_len: Some(LONGEST),
            has_invalid_offloads: false,
            linearize_fails: false,
        };
        hooks::decide(case.hook, &view, self)
    }
}

impl Tables for RecordingTables<'_> {
    fn port(&self, port: u16) -> PortEntry {
        let entry = self.world.entry(self.world.owner(port));
        let is_flagged = self.host_connections.borrow().keys().any(|key| key.local_port == port);
        PortEntry { flags: entry.flags | if is_flagged { HOST_CONNECTIONS } else { 0 }, ..entry }
    }

    fn endpoint(&self, slot: u16) -> Endpoint {
        self.world.endpoint(slot)
    }

    fn config(&self) -> &Config {
        &self.world.config
    }

    fn now(&self) -> u64 {
        self.now
    }

    fn fragment4(&self, key: &FragmentKey4) -> Option<FragCacheEntry> {
        self.fragments4.borrow().get(key).copied()
    }

    fn set_fragment4(&self, key: &FragmentKey4, entry: &FragCacheEntry) {
        self.record(Entry::Fragment4(*key, *entry));
    }

    fn fragment6(&self, key: &FragmentKey6) -> Option<FragCacheEntry> {
        self.fragments6.borrow().get(key).copied()
    }

    fn set_fragment6(&self, key: &FragmentKey6, entry: &FragCacheEntry) {
        self.record(Entry::Fragment6(*key, *entry));
    }

    fn echo(&self, key: &EchoKey) -> Option<Echo> {
        let mut tried = self.tried.borrow_mut();
        let id = u16::try_from(key.id).expect("an identifier");
        if !tried.contains(&id) {
            tried.push(id);
        }
        self.echoes.borrow().get(key).copied()
    }

    fn set_echo(&self, key: &EchoKey, echo: &Echo) {
        self.record(Entry::Echo(*key, *echo));
    }

    fn renew_echo(&self, key: &EchoKey, seen: u64) {
        let there = self.echoes.borrow()[key];
        self.record(Entry::Echo(*key, Echo { seen, ..there }));
    }

    fn claim_echo(&self, key: &EchoKey, echo: &Echo, stale: Option<Echo>) -> bool {
        let there = self.echoes.borrow().get(key).copied();
        assert_eq!(there, stale, "there is no other writer");
        self.record(Entry::Echo(*key, *echo));
        true
    }

    fn is_host_port_allowed(&self, port: u16) -> bool {
        self.world.is_open(port)
    }

    fn host_flow(&self, key: &HostFlowKey) -> Option<HostFlow> {
        self.host_flows.borrow().get(key).copied()
    }

    fn set_host_flow(&self, key: &HostFlowKey, flow: &HostFlow) {
        self.record(Entry::HostFlow(*key, *flow));
    }

    fn neighbour(&self, key: &NeighbourKey) -> Option<Neighbour> {
        self.neighbours.borrow().get(key).copied()
    }

    fn set_neighbour(&self, key: &NeighbourKey, neighbour: &Neighbour) {
        self.record(Entry::Neighbour(*key, *neighbour));
    }

    fn charge_neighbour(&self, slot: u16, now: u64) -> bool {
        assert_eq!(now, self.now, "the time is constant");
        !self.world.neighbour_limited.contains(&slot)
    }

    fn is_broadcast(&self, address: Address4) -> bool {
        self.world.broadcasts.contains(&address.bytes.into())
    }

    fn is_address4(&self, address: Address4) -> bool {
        assert_ne!(self.world.config.more_addresses4, 0, "there is nothing to look up");
        self.world.more.contains(&address.bytes.into())
    }

    fn is_address6(&self, address: Address6) -> bool {
        assert_ne!(self.world.config.more_addresses6, 0, "there is nothing to look up");
        self.world.more.contains(&address.bytes.into())
    }

    fn fib(&self, question: &FibQuestion) -> FibAnswer {
        let destination = IpAddr::from(question.destination.bytes);
        let destination = if question.version == 4 { destination.to_canonical() } else { destination };
        if !World::has_route(destination) {
            return FibAnswer::NONE;
        }
        let next_hop = match destination {
            IpAddr::V4(address) => NextHop::v4(address.octets()),
            IpAddr::V6(address) => NextHop::v6(address.octets()),
        };
        FibAnswer { outcome: FibAnswer::UNRESOLVED, ifindex: UPLINK, next_hop }
    }

    fn host_connection(&self, key: &HostConnectionKey) -> HostConnection {
        self.host_connections.borrow().get(key).copied().unwrap_or_default()
    }

    fn set_host_connection(&self, key: &HostConnectionKey, connection: &HostConnection) {
        self.record(Entry::HostConnection(*key, *connection));
    }

    fn policer(&self, slot: u16) -> Option<&GcraState> {
        self.world.limits.get(&slot)
    }

    fn advance_tat(&self, slot: u16, time: u64, now: u64, tolerance: u64) -> bool {
        assert_eq!(now, self.now, "the time is constant");
        let passes = self.world.limits[&slot].tat <= now + tolerance;
        if passes {
            self.spent.update(|spent| spent + time);
        }
        passes
    }
}
