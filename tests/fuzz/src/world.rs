//! The maps in memory. They are not `portmap_ebpf::testing::FakeTables`, because they keep state in the form
//! of the specification's model, so that both are compared as a whole, and simulate races between CPUs.

use std::cell::{Cell, RefCell};

use portmap_common::{
    flow_state::{
        Echo, EchoKey, FragCacheEntry, FragmentKey4, FragmentKey6, HostConnection, HostConnectionKey,
        HostFlow, HostFlowKey, Neighbour, NeighbourKey,
    },
    gcra::GcraState,
    slot::{HOST_SLOT, veth_ifindex},
    tables::{
        Address4, Address6, Config, Endpoint, HOST_ACCESS_LIMITED, HOST_CONNECTIONS, LOOPBACK_PRIVATE,
        Listener, Mac, PortEntry,
    },
};
use portmap_ebpf::{
    Tables,
    fib::{FibAnswer, FibQuestion},
};

use crate::{
    expected::Question,
    fib,
    reader::mapped,
    state::{State, parts},
    values::{
        A, B, C, GATEWAY, GATEWAY6, GONE, HOST, HOST6, LO_MAC, MAC, OTHER_UPLINK, SECOND, SECOND6, UPLINK,
        one_of,
    },
};

/// Bytes of an input that select a world.
pub const WORLD_BYTES: usize = 10;

const NETMASKS: [[u8; 4]; 8] = [
    [255, 255, 255, 0],
    [255; 4],
    [255, 255, 255, 254],
    [255, 255, 255, 252],
    [255, 0, 0, 0],
    [0; 4],
    [255, 255, 255, 128],
    [255, 255, 255, 0],
];
/// Broadcast address of another network of the host's, if there is one.
pub const OTHER_BROADCAST: [u8; 4] = [10, 0, 0, 2];
/// Lengths of the IPv6 prefix.
const PREFIXES: [usize; 4] = [64, 128, 127, 0];

/// The maps.
#[derive(Clone, Debug)]
pub struct World {
    config: Config,
    endpoints: Vec<(u16, Endpoint)>,
    /// Ports and owners. The first entry of a port applies.
    ports: Vec<(u16, u16)>,
    /// Clock in nanoseconds.
    pub now: u64,
    /// Exceeded rate limit of A, if it has one.
    limit: Option<GcraState>,
    /// Whether A has exceeded its neighbour policer.
    neighbour_limited: bool,
    /// State between packets.
    pub memory: RefCell<State>,
    /// Number of further claims that another CPU wins.
    pub races: Cell<u8>,
    /// Further shared addresses, by place in [`SECOND`] and in [`SECOND6`].
    seconds: [[bool; 2]; 2],
    /// Selects the FIB's answers.
    routes: u8,
    /// Questions to the FIB.
    pub asked: RefCell<Vec<Question>>,
}

impl World {
    /// Returns the world that these bytes select: all zero is a host with both IP versions, one address of
    /// each, gateways, direct routes and three containers.
    pub fn new(choices: [u8; WORLD_BYTES]) -> Self {
        let [network, state, p0, p1, owner_p, q0, q1, owner_q, addresses, routes] = choices;
        let bit = |place: u8| network >> place & 1 != 0;
        let prefix = one_of(&PREFIXES, network >> 6);
        // Without a primary IPv6 address there are no others.
        let bits = if bit(0) { addresses & 3 } else { addresses };
        let seconds = [[bits & 1 != 0, bits & 2 != 0], [bits & 4 != 0, bits & 8 != 0]];
        let count = |present: [bool; 2]| present.map(u32::from).iter().sum();
        let netmask6: [u8; 16] =
            std::array::from_fn(|at| !(0xff_u8.checked_shr(clamped(prefix, at)).unwrap_or(0)));
        let config = Config {
            host_ip: Address4::new(HOST),
            netmask: Address4::new(one_of(&NETMASKS, network >> 3)),
            gateway: Address4::new(if bit(1) { [0; 4] } else { GATEWAY }),
            uplink_ifindex: UPLINK,
            host_ip6: Address6::new(if bit(0) { [0; 16] } else { HOST6 }),
            netmask6: Address6::new(netmask6),
            gateway6: Address6::new(if bit(2) { [0; 16] } else { GATEWAY6 }),
            mac: Mac::new(MAC),
            lo_mac: Mac::new(LO_MAC),
            uplink_flows: if state & 4 != 0 { 4097 } else { 0 },
            reach: if state & 64 != 0 { HOST_ACCESS_LIMITED } else { 0 },
            secret: u64::from_le_bytes([network, state, p0, p1, owner_p, q0, q1, owner_q]),
            broadcasts: u32::from(owner_q >> 7),
            more_addresses4: count(seconds[0]),
            more_addresses6: count(seconds[1]),
            direct4: u32::from(addresses & 16 == 0),
            direct6: u32::from(addresses & 32 == 0),
            more_flows: [0, 0, 0, 0, 0, 0, if owner_q & 64 != 0 { OTHER_UPLINK } else { 0 }],
            // One IPv4 address and all IPv6 addresses.
            listener: if state & 128 != 0 {
                Listener {
                    port: 80,
                    address4: Address4::new([127, 0, 0, 1]),
                    mask4: Address4::new([255; 4]),
                    ..Listener::NONE
                }
            } else {
                Listener::NONE
            },
        };
        let mut world = Self {
            config,
            endpoints: Vec::new(),
            ports: Vec::new(),
            now: 1_000_000_000_000,
            limit: (state & 8 != 0).then(|| GcraState {
                tat: u64::MAX >> 1,
                ns_per_byte: 1,
                counts_local: u32::from(state & 16 != 0),
                ..GcraState::default()
            }),
            neighbour_limited: owner_p >= 0x80,
            memory: RefCell::default(),
            races: Cell::default(),
            seconds,
            routes,
            asked: RefCell::default(),
        };
        let owner = |choice| one_of(&[A, B, C, HOST_SLOT], choice);
        world.ports = vec![
            (u16::from_le_bytes([p0, p1]), owner(owner_p)),
            (u16::from_le_bytes([q0, q1]), owner(owner_q)),
            (31_000, A),
            (31_001, A),
            (65_535, B),
            (1, B),
            (40_000, C),
        ];
        // No container can have port 0, and zero bytes select no port.
        world.ports.retain(|(port, _)| *port != 0);
        for (slot, generation) in [(A, 5), (B, 6), (C, 7)] {
            world.create(slot, generation);
        }
        if state & 1 != 0 {
            world.delete(B);
        }
        if state & 2 != 0
            && let Some((_, endpoint)) = world.endpoints.iter_mut().find(|(slot, _)| *slot == A)
        {
            endpoint.eth0_ifindex = 0;
        }
        if state & 32 != 0
            && let Some((_, endpoint)) = world.endpoints.iter_mut().find(|(slot, _)| *slot == A)
        {
            endpoint.flags = LOOPBACK_PRIVATE;
        }
        world
    }

    /// Adds a container without ports.
    pub fn create(&mut self, slot: u16, generation: u32) {
        self.endpoints.retain(|(other, _)| *other != slot);
        let host_ifindex = veth_ifindex(slot);
        let endpoint = Endpoint { host_ifindex, eth0_ifindex: 2, generation, ..Endpoint::default() };
        self.endpoints.push((slot, endpoint));
    }

    /// Deletes a container, whose ports become the host's.
    pub fn delete(&mut self, slot: u16) {
        self.endpoints.retain(|(other, _)| *other != slot);
        self.ports.retain(|(_, owner)| *owner != slot);
    }

    /// Gives a port to another owner.
    pub fn give(&mut self, port: u16, slot: u16) {
        self.ports.insert(0, (port, slot));
    }

    /// Changes the FIB, and whether programs must ask it for every packet.
    pub fn reroute(&mut self, routes: u8, direct: u8) {
        self.routes = routes;
        self.config.direct4 = u32::from(direct & 1);
        self.config.direct6 = u32::from(direct >> 1 & 1);
    }

    /// Returns the owner of a port, without flags of the port.
    pub fn owner(&self, port: u16) -> PortEntry {
        let owner = self.ports.iter().find(|(other, _)| *other == port).map_or(HOST_SLOT, |(_, slot)| *slot);
        let is_there = self.endpoints.iter().any(|(slot, _)| *slot == owner);
        if is_there { self.endpoint(owner).entry(owner) } else { PortEntry::default() }
    }

    /// Returns whether a slot owns any port.
    pub fn owns_any(&self, slot: u16) -> bool {
        self.ports.iter().any(|&(port, owner)| owner == slot && self.owner(port).slot == slot)
    }

    /// Returns whether an address is a further shared one.
    pub fn is_second(&self, is_v6: bool, address: [u8; 16]) -> bool {
        let seconds = if is_v6 { SECOND6 } else { SECOND.map(mapped) };
        seconds.iter().zip(self.seconds[usize::from(is_v6)]).any(|(second, has)| has && *second == address)
    }

    /// Returns the FIB's answer for a destination.
    pub fn answer(&self, is_v6: bool, destination: [u8; 16]) -> FibAnswer {
        fib::answer(self.routes, is_v6, destination)
    }

    /// Returns whether a local or other packet exceeds the rate limit of a slot.
    pub fn exceeds_limit(&self, slot: u16, is_local: bool) -> bool {
        slot == A && self.limit.is_some_and(|limit| !is_local || limit.counts_local == 1)
    }

    /// Returns whether a slot has exceeded its neighbour policer.
    pub fn is_neighbour_limited(&self, slot: u16) -> bool {
        slot == A && self.neighbour_limited
    }

    /// Returns the slots whose host veths exist.
    pub const fn slots() -> [u16; 4] {
        [A, B, C, GONE]
    }
}

/// Returns how many bits of an address byte a prefix covers.
fn clamped(prefix: usize, byte: usize) -> u32 {
    u32::try_from(prefix.saturating_sub(byte * 8).min(8)).expect("at most eight")
}

impl Tables for World {
    fn port(&self, port: u16) -> PortEntry {
        let mut entry = self.owner(port);
        if self.memory.borrow().flagged.contains(&port) {
            entry.flags |= HOST_CONNECTIONS;
        }
        entry
    }

    fn endpoint(&self, slot: u16) -> Endpoint {
        self.endpoints
            .iter()
            .find(|(other, _)| *other == slot)
            .map_or_else(Endpoint::default, |(_, endpoint)| *endpoint)
    }

    fn config(&self) -> &Config {
        &self.config
    }

    fn now(&self) -> u64 {
        self.now
    }

    fn fragment4(&self, key: &FragmentKey4) -> Option<FragCacheEntry> {
        self.memory.borrow().fragments.get(&key.into()).copied()
    }

    fn set_fragment4(&self, key: &FragmentKey4, entry: &FragCacheEntry) {
        self.memory.borrow_mut().fragments.insert(key.into(), *entry);
    }

    fn fragment6(&self, key: &FragmentKey6) -> Option<FragCacheEntry> {
        self.memory.borrow().fragments.get(&key.into()).copied()
    }

    fn set_fragment6(&self, key: &FragmentKey6, entry: &FragCacheEntry) {
        self.memory.borrow_mut().fragments.insert(key.into(), *entry);
    }

    fn echo(&self, key: &EchoKey) -> Option<Echo> {
        let (peer, id) = parts(key);
        self.memory.borrow().echo(peer, id)
    }

    fn set_echo(&self, key: &EchoKey, echo: &Echo) {
        self.memory.borrow_mut().echoes.insert(parts(key), *echo);
    }

    fn renew_echo(&self, key: &EchoKey, seen: u64) {
        let (peer, id) = parts(key);
        let mut memory = self.memory.borrow_mut();
        let echo = memory.echo(peer, id).expect("it has been looked up");
        memory.echoes.insert((peer, id), Echo { seen, ..echo });
    }

    fn claim_echo(&self, key: &EchoKey, echo: &Echo, stale: Option<Echo>) -> bool {
        let (peer, id) = parts(key);
        assert_eq!(self.memory.borrow().echo(peer, id), stale, "the stale entry is the one that was read");
        let races = self.races.get();
        let lost = races > 0;
        if lost {
            self.races.set(races - 1);
        }
        let entry = if lost { Echo { generation: 0, slot: HOST_SLOT, id, seen: self.now } } else { *echo };
        self.memory.borrow_mut().echoes.insert((peer, id), entry);
        !lost
    }

    fn is_host_port_allowed(&self, port: u16) -> bool {
        port == 1_024
    }

    fn host_flow(&self, key: &HostFlowKey) -> Option<HostFlow> {
        self.memory.borrow().host_flows.get(key).copied().map(|seen| HostFlow { seen })
    }

    fn set_host_flow(&self, key: &HostFlowKey, flow: &HostFlow) {
        self.memory.borrow_mut().host_flows.insert(*key, flow.seen);
    }

    fn neighbour(&self, key: &NeighbourKey) -> Option<Neighbour> {
        self.memory.borrow().neighbours.get(key).copied()
    }

    fn set_neighbour(&self, key: &NeighbourKey, neighbour: &Neighbour) {
        self.memory.borrow_mut().neighbours.insert(*key, *neighbour);
    }

    fn charge_neighbour(&self, slot: u16, now: u64) -> bool {
        assert_eq!(now, self.now, "the time is constant");
        !self.is_neighbour_limited(slot)
    }

    fn is_broadcast(&self, address: Address4) -> bool {
        assert_ne!(self.config.broadcasts, 0, "there is nothing to look up");
        address.bytes == OTHER_BROADCAST
    }

    fn is_address4(&self, address: Address4) -> bool {
        assert_ne!(self.config.more_addresses4, 0, "there is nothing to look up");
        self.is_second(false, mapped(address.bytes))
    }

    fn is_address6(&self, address: Address6) -> bool {
        assert_ne!(self.config.more_addresses6, 0, "there is nothing to look up");
        self.is_second(true, address.bytes)
    }

    fn fib(&self, question: &FibQuestion) -> FibAnswer {
        let question = fib::question(question);
        self.asked.borrow_mut().push(question);
        self.answer(question.is_v6, question.destination)
    }

    fn host_connection(&self, key: &HostConnectionKey) -> HostConnection {
        self.memory.borrow().host_connections.get(key).copied().unwrap_or_default()
    }

    fn set_host_connection(&self, key: &HostConnectionKey, connection: &HostConnection) {
        let mut memory = self.memory.borrow_mut();
        memory.host_connections.insert(*key, *connection);
        memory.flagged.insert(key.local_port);
    }

    fn policer(&self, slot: u16) -> Option<&GcraState> {
        self.limit.as_ref().filter(|_| slot == A)
    }

    fn advance_tat(&self, _slot: u16, _time: u64, now: u64, tolerance: u64) -> bool {
        self.limit.is_none_or(|limit| limit.tat <= now + tolerance)
    }
}
