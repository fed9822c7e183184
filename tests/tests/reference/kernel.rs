//! The loaded programs and their maps.

use std::{
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
};

use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData},
    programs::SchedClassifier,
};
use nix::{
    libc,
    time::{ClockId, clock_gettime},
};
use portmap::{
    kernel::{
        link::{self, VethPair},
        maps::Maps,
        namespace::Namespace,
        netlink::Netlink,
        port_table::PortTable,
        programs,
    },
    model::{HostAccess, PortRange, PortSet, Reach},
    paths::Pins,
};
use portmap_common::{
    flow_state::{
        Echo, EchoKey, FragCacheEntry, FragmentKey4, FragmentKey6, HOST_FLOW_LIFETIME, HostConnection,
        HostConnectionKey, HostFlow, HostFlowKey, NEIGHBOUR_CHECK_INTERVAL, Neighbour, NeighbourBudget,
        NeighbourKey,
    },
    gcra::GcraState,
    hook_point::HookPoint,
    marks::{DRY_RUN_HWTSTAMP, DRY_RUN_MARK},
    names,
    slot::{HOST_SLOT, veth_ifindex},
    tables::{Endpoint, PortEntry},
};
use portmap_ebpf::{Verdict, verdict_codec};
use portmap_tests::private;

use crate::{
    differential::NOW,
    spec_state::Entry,
    test_run::{self, CB, GSO_SIZE, HWTSTAMP, IFINDEX, INGRESS_IFINDEX, MARK, PRIORITY, Skb},
    world::{A, B, C, Case, MAC, MTU, NO_CONTAINER, UNREACHABLE, UNREACHABLE6, UPLINK, World, ifindex},
};

/// Slots for which the maps can have entries.
pub(crate) const SLOTS: [u16; 5] = [HOST_SLOT, A, B, C, NO_CONTAINER];

/// Programs and maps of one thread.
pub(crate) struct Kernel {
    programs: Vec<(&'static str, SchedClassifier)>,
    pub(crate) maps: Maps,
    ports: PortTable,
    // Written here, because the daemon's way would choose the generations itself.
    endpoints: Array<MapData, Endpoint>,
    limits: Array<MapData, GcraState>,
    fragments4: HashMap<MapData, FragmentKey4, FragCacheEntry>,
    fragments6: HashMap<MapData, FragmentKey6, FragCacheEntry>,
    echoes: HashMap<MapData, EchoKey, Echo>,
    host_flows: HashMap<MapData, HostFlowKey, HostFlow>,
    neighbours: HashMap<MapData, NeighbourKey, Neighbour>,
    host_connections: HashMap<MapData, HostConnectionKey, HostConnection>,
    neighbour_budgets: Array<MapData, NeighbourBudget>,
}

impl Kernel {
    /// Loads programs and maps in the calling thread's namespaces and pins them below a directory.
    pub(crate) fn load(directory: &Path) -> Self {
        let pins = Pins::new(directory);
        let netlink = Netlink::open().expect("netlink");
        let here = Namespace::current().expect("a namespace");
        // A test run needs interfaces with these indices and MAC addresses.
        for (name, index) in
            [("uplink", UPLINK), ("a", veth_ifindex(A)), ("b", veth_ifindex(B)), ("c", veth_ifindex(C))]
        {
            let pair = VethPair {
                host_name: name,
                host_index: index,
                alias: "",
                container_name: &format!("{name}-peer"),
                container_index: index + 5000,
                container: &here,
                mac: MAC,
                mtu: MTU,
            };
            link::create_veth(&netlink, &pair).expect("a veth pair");
            link::set_up(&netlink, index, name).expect("up");
        }
        link::set_up(&netlink, link::LOOPBACK, "lo").expect("up");
        // The routes of `World::has_route`.
        let reject = [UNREACHABLE.1, UNREACHABLE6.1].map(|network| format!("unreachable {network}"));
        let all = "default dev uplink";
        private::add_routes(&[("-4", &reject[0]), ("-6", &reject[1]), ("-4", all), ("-6", all)]);
        programs::load(&pins).expect("the kernel takes the programs");
        let programs = names::PROGRAMS
            .map(|name| (name, SchedClassifier::from_pin(pins.program(name)).expect("a pinned program")));
        Self {
            programs: programs.into(),
            maps: Maps::open(&pins).expect("the maps"),
            ports: PortTable::open(&pins).expect("the port map"),
            endpoints: Array::try_from(Map::Array(open(&pins, names::MAP_ENDPOINTS))).expect("an array"),
            limits: Array::try_from(Map::Array(open(&pins, names::MAP_LIMITS))).expect("an array"),
            fragments4: hash(&pins, names::MAP_FRAGMENTS4),
            fragments6: hash(&pins, names::MAP_FRAGMENTS6),
            echoes: hash(&pins, names::MAP_ECHO),
            host_flows: hash(&pins, names::MAP_HOST_FLOWS),
            neighbours: hash(&pins, names::MAP_NEIGHBOURS),
            host_connections: hash(&pins, names::MAP_HOST_CONNECTIONS),
            neighbour_budgets: Array::try_from(Map::Array(open(&pins, names::MAP_NEIGHBOUR_BUDGETS)))
                .expect("an array"),
        }
    }

    /// Fills the maps.
    pub(crate) fn set_world(&mut self, world: &World) {
        if let Some(open) = &world.open {
            let host = HostAccess::Ports(open.iter().fold(PortSet::default(), |ports, port| {
                ports.union(&PortRange::new(*port, *port).expect("one port").into())
            }));
            self.maps.set_host_ports(&Reach { host, ..Reach::default() }).expect("written");
        }
        self.maps.set_broadcasts(&world.broadcasts).expect("written");
        self.maps.set_addresses(&world.more).expect("written");
        self.maps.set_config(&world.config).expect("written");
        for slot in SLOTS {
            self.endpoints.set(slot.into(), world.endpoint(slot), 0).expect("written");
            let limit = world.limits.get(&slot).copied().unwrap_or_default();
            self.limits.set(slot.into(), limit, 0).expect("written");
            // Far beyond the value of any clock.
            let tat = if world.neighbour_limited.contains(&slot) { 1 << 61 } else { 0 };
            self.neighbour_budgets.set(slot.into(), NeighbourBudget { tat }, 0).expect("written");
        }
        for port in 0..=u16::MAX {
            // The host's entry first, because it removes the flag of an earlier world.
            self.ports.set(port, PortEntry::default());
            self.ports.set(port, world.entry(world.owner(port)));
        }
    }

    pub(crate) fn apply(&mut self, entry: Entry) {
        match entry {
            Entry::Fragment4(key, fragment) => self.fragments4.insert(key, in_kernel_time_of(fragment), 0),
            Entry::Fragment6(key, fragment) => self.fragments6.insert(key, in_kernel_time_of(fragment), 0),
            Entry::Echo(key, echo) => {
                self.echoes.insert(key, Echo { seen: in_kernel_time(echo.seen), ..echo }, 0)
            }
            Entry::HostFlow(key, HostFlow { seen }) => {
                self.host_flows.insert(key, HostFlow { seen: in_kernel_time(seen) }, 0)
            }
            Entry::Neighbour(key, Neighbour { seen, checked }) => {
                let seen = if seen == 0 { 0 } else { in_kernel_time(seen) };
                // It would age before the last packet is compared.
                let is_fresh = NOW - checked <= NEIGHBOUR_CHECK_INTERVAL;
                let checked = in_kernel_time(if is_fresh { NOW + HOST_FLOW_LIFETIME } else { checked });
                self.neighbours.insert(key, Neighbour { seen, checked }, 0)
            }
            Entry::HostConnection(key, HostConnection { until, closing, .. }) => {
                self.ports.flag_host_connections(key.local_port);
                let until = in_kernel_time(until);
                self.host_connections.insert(key, HostConnection { until, closing, reserved: 0 }, 0)
            }
        }
        .expect("written");
    }

    pub(crate) fn remove(&mut self, entry: Entry) {
        // The kernel may have evicted the entry already.
        let _ = match entry {
            Entry::Fragment4(key, _) => self.fragments4.remove(&key),
            Entry::Fragment6(key, _) => self.fragments6.remove(&key),
            Entry::Echo(key, _) => self.echoes.remove(&key),
            Entry::HostFlow(key, _) => self.host_flows.remove(&key),
            Entry::Neighbour(key, _) => self.neighbours.remove(&key),
            Entry::HostConnection(key, _) => self.host_connections.remove(&key),
        };
    }

    /// Returns the verdict of the program at a hook from a dry run; `None` if a test run cannot produce the
    /// frame.
    pub(crate) fn decide(&self, case: &Case<'_>) -> Option<Verdict> {
        if case.mark != 0 || !is_possible(case) {
            return None;
        }
        let (_, after) = self.run(case, DRY_RUN_MARK, DRY_RUN_HWTSTAMP);
        let mut words = [0; 7];
        words[..5].copy_from_slice(&after[CB..CB + 5]);
        words[5..].copy_from_slice(&[after[PRIORITY], after[MARK]]);
        Some(verdict_codec::decode(words).expect("a verdict"))
    }

    /// Runs the program at a hook on a frame, with its side effects, and returns priority and mark behind it.
    pub(crate) fn deliver(&self, case: &Case<'_>) -> Option<(u32, u32)> {
        is_possible(case).then(|| {
            let (_, after) = self.run(case, case.mark, 0);
            (after[PRIORITY], after[MARK])
        })
    }

    /// Returns by how many nanoseconds the TAT of a slot has advanced since the world was set.
    pub(crate) fn spent(&self, world: &World, slot: u16) -> u64 {
        let before = world.limits.get(&slot).copied().unwrap_or_default();
        self.limits.get(&slot.into(), 0).expect("an entry").tat - before.tat
    }

    fn run(&self, case: &Case<'_>, mark: u32, time: u64) -> (i32, Skb) {
        let mut context: Skb = [0; 48];
        for (word, bytes) in context[HWTSTAMP..].iter_mut().zip(time.to_ne_bytes().as_chunks().0) {
            *word = u32::from_ne_bytes(*bytes);
        }
        context[MARK] = mark;
        context[INGRESS_IFINDEX] = case.ingress;
        context[IFINDEX] = ifindex(case.hook);
        context[PRIORITY] = case.priority;
        context[GSO_SIZE] = case.segment;
        test_run::run(self.fd(case.hook), case.frame, &context).expect("the kernel runs it")
    }

    fn fd(&self, hook: HookPoint) -> libc::c_int {
        let (_, program) = self.programs.iter().find(|(name, _)| *name == hook.program()).expect("loaded");
        program.fd().expect("loaded").as_fd().as_raw_fd()
    }
}

/// Returns whether a test run can produce a frame: it cannot remove a tag, and it needs an IP header if the
/// Ethertype is that of IP.
fn is_possible(case: &Case<'_>) -> bool {
    let shortest = match case.frame.get(12..14) {
        Some([0x08, 0x00]) => 34,
        Some([0x86, 0xdd]) => 54,
        _ => 14,
    };
    case.tag.is_none() && case.frame.len() >= shortest
}

/// Converts the time of a fragment from the model's clock to the kernel's.
fn in_kernel_time_of(fragment: FragCacheEntry) -> FragCacheEntry {
    FragCacheEntry { seen: in_kernel_time(fragment.seen), ..fragment }
}

/// Converts a time from the model's clock to the kernel's, with equal age.
fn in_kernel_time(seen: u64) -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every kernel has it");
    let now = std::time::Duration::from(now).as_nanos();
    let now = u64::try_from(now).expect("not up for centuries");
    now.wrapping_sub(NOW.wrapping_sub(seen))
}

fn hash<K: Pod, V: Pod>(pins: &Pins, name: &str) -> HashMap<MapData, K, V> {
    HashMap::try_from(Map::LruHashMap(open(pins, name))).expect("a map of its kind")
}

fn open(pins: &Pins, name: &str) -> MapData {
    MapData::from_pin(pins.map(name)).expect("a pinned map")
}
