//! The pinned maps, each behind a type that knows what lies in it.

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    num::NonZeroUsize,
    os::fd::AsFd as _,
    path::Path,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues},
};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use portmap_common::{
    counters::Counters,
    event::SampleLimiter,
    flow_state::{Echo, EchoKey, FragCacheEntry, FragmentKey4, FragmentKey6, HostFlow, HostFlowKey},
    gcra::GcraState,
    names,
    reason::{Drops, HostHook, ReasonCounts},
    tables::{Address4, Config, Endpoint, PORTS, PortEntry},
};

use crate::{
    error::{Context as _, Result},
    fault,
    locks::{Rank, Ranked},
    paths::Pins,
    reach::Reach,
};

/// All maps of one daemon. Any thread may use them at any time: the table of ports needs no lock, and what has one holds it
/// for a single system call, so that nothing else is ever done under it.
pub struct Maps {
    /// Port to owner.
    pub ports: PortTable,
    tables: Ranked<Tables>,
}

/// Those that are read and written by system calls.
struct Tables {
    endpoints: Array<MapData, Endpoint>,
    config: Array<MapData, Config>,
    counters: PerCpuArray<MapData, Counters>,
    drops: Array<MapData, Drops>,
    host: PerCpuArray<MapData, ReasonCounts>,
    budgets: Array<MapData, SampleLimiter>,
    limits: Array<MapData, GcraState>,
    fragments4: HashMap<MapData, FragmentKey4, FragCacheEntry>,
    fragments6: HashMap<MapData, FragmentKey6, FragCacheEntry>,
    echoes: HashMap<MapData, EchoKey, Echo>,
    host_ports: Array<MapData, u64>,
    host_flows: HashMap<MapData, HostFlowKey, HostFlow>,
    broadcasts: HashMap<MapData, Address4, u32>,
}

impl Maps {
    /// Opens the pinned maps.
    pub fn open(pins: &Pins) -> Result<Self> {
        let tables = Tables {
            endpoints: array(pins, names::MAP_ENDPOINTS)?,
            config: array(pins, names::MAP_CONFIG)?,
            counters: per_cpu_array(pins, names::MAP_COUNTERS)?,
            drops: array(pins, names::MAP_DROPS)?,
            host: per_cpu_array(pins, names::MAP_HOST)?,
            budgets: array(pins, names::MAP_BUDGETS)?,
            limits: array(pins, names::MAP_LIMITS)?,
            fragments4: lru_hash(pins, names::MAP_FRAGMENTS4)?,
            fragments6: lru_hash(pins, names::MAP_FRAGMENTS6)?,
            echoes: lru_hash(pins, names::MAP_ECHO)?,
            host_ports: array(pins, names::MAP_HOST_ACCESS)?,
            host_flows: lru_hash(pins, names::MAP_HOST_FLOWS)?,
            broadcasts: HashMap::try_from(Map::HashMap(open(&pins.map(names::MAP_BROADCASTS))?))
                .context(|| reading(names::MAP_BROADCASTS))?,
        };
        let ports = PortTable::open(&pins.map(names::MAP_PORTS))?;
        Ok(Self { ports, tables: Ranked::new(Rank::Maps, tables) })
    }

    /// Tells the programs the host's addresses.
    pub fn set_config(&self, config: &Config) -> Result<()> {
        put(&mut self.tables.lock().config, 0, *config, names::MAP_CONFIG)
    }

    /// The host's addresses as the programs know them.
    pub fn config(&self) -> Result<Config> {
        self.tables.lock().config.get(&0, 0).context(|| reading(names::MAP_CONFIG))
    }

    /// Tells the programs a container's interfaces. Its generation becomes one that no earlier container in the slot
    /// had.
    pub fn set_endpoint(&self, slot: u16, endpoint: Endpoint) -> Result<()> {
        let generation = self.endpoint(slot)?.generation.wrapping_add(1);
        self.change_endpoint(slot, Endpoint { generation, ..endpoint })
    }

    /// A container's interfaces as the programs know them.
    pub fn endpoint(&self, slot: u16) -> Result<Endpoint> {
        self.tables.lock().endpoints.get(&u32::from(slot), 0).context(|| reading(names::MAP_ENDPOINTS))
    }

    /// Tells the programs more of a container that they know already.
    pub fn change_endpoint(&self, slot: u16, endpoint: Endpoint) -> Result<()> {
        put(&mut self.tables.lock().endpoints, u32::from(slot), endpoint, names::MAP_ENDPOINTS)
    }

    /// Limits what a slot sends, from now on.
    pub fn set_limit(&self, slot: u16, limit: GcraState) -> Result<()> {
        put(&mut self.tables.lock().limits, u32::from(slot), limit, names::MAP_LIMITS)
    }

    /// The limit on what a slot sends.
    pub fn limit(&self, slot: u16) -> Result<GcraState> {
        self.tables.lock().limits.get(&u32::from(slot), 0).context(|| reading(names::MAP_LIMITS))
    }

    /// Delivered traffic of a slot, all CPUs together.
    pub fn counters(&self, slot: u16) -> Result<Counters> {
        let read = self.tables.lock().counters.get(&u32::from(slot), 0);
        let values = read.context(|| reading(names::MAP_COUNTERS))?;
        Ok(values.iter().fold(Counters::default(), Counters::plus))
    }

    /// Drops of a slot.
    pub fn drops(&self, slot: u16) -> Result<Drops> {
        self.tables.lock().drops.get(&u32::from(slot), 0).context(|| reading(names::MAP_DROPS))
    }

    /// Packets that a hook left to the host, all CPUs together.
    pub fn host(&self, hook: HostHook) -> Result<ReasonCounts> {
        let read = self.tables.lock().host.get(&(hook as u32), 0);
        let values = read.context(|| reading(names::MAP_HOST))?;
        Ok(values.iter().fold(ReasonCounts::default(), ReasonCounts::plus))
    }

    /// What the first fragment of an IPv4 datagram carried, as far as the programs remember.
    pub fn fragment4(&self, key: &FragmentKey4) -> Result<Option<FragCacheEntry>> {
        found(self.tables.lock().fragments4.get(key, 0), names::MAP_FRAGMENTS4)
    }

    /// What the first fragment of an IPv6 datagram carried, as far as the programs remember.
    pub fn fragment6(&self, key: &FragmentKey6) -> Result<Option<FragCacheEntry>> {
        found(self.tables.lock().fragments6.get(key, 0), names::MAP_FRAGMENTS6)
    }

    /// Who has asked for an echo, as far as the programs remember.
    pub fn echo(&self, key: &EchoKey) -> Result<Option<Echo>> {
        found(self.tables.lock().echoes.get(key, 0), names::MAP_ECHO)
    }

    /// Tells the programs which ports of the host containers may reach, if those are not all. Returns whether they did
    /// not know.
    pub fn set_host_ports(&self, reach: &Reach) -> Result<bool> {
        let mut was_other = false;
        for (index, word) in (0..).zip(reach.host_ports().iter().flatten()) {
            if self.host_ports_word(index)? != *word {
                put(&mut self.tables.lock().host_ports, index, *word, names::MAP_HOST_ACCESS)?;
                was_other = true;
            }
        }
        Ok(was_other)
    }

    /// Whether the programs know other ports of the host that containers may reach.
    pub fn lacks_host_ports(&self, reach: &Reach) -> Result<bool> {
        for (index, word) in (0..).zip(reach.host_ports().iter().flatten()) {
            if self.host_ports_word(index)? != *word {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether the programs take a port for one of the host's that containers may reach, where not all are.
    pub fn is_open(&self, port: u16) -> Result<bool> {
        Ok(self.host_ports_word(u32::from(port / 64))? >> (port % 64) & 1 != 0)
    }

    fn host_ports_word(&self, index: u32) -> Result<u64> {
        self.tables.lock().host_ports.get(&index, 0).context(|| reading(names::MAP_HOST_ACCESS))
    }

    /// When the host has sent something between two ports, as far as the programs remember.
    pub fn host_flow(&self, key: &HostFlowKey) -> Result<Option<HostFlow>> {
        found(self.tables.lock().host_flows.get(key, 0), names::MAP_HOST_FLOWS)
    }

    /// Whether programs take an address for a broadcast of one of the host's networks other than the shared one.
    pub fn is_broadcast(&self, address: Address4) -> Result<bool> {
        Ok(found(self.tables.lock().broadcasts.get(&address, 0), names::MAP_BROADCASTS)?.is_some())
    }

    /// The broadcast addresses that programs know.
    pub fn broadcasts(&self) -> Result<BTreeSet<Ipv4Addr>> {
        let tables = self.tables.lock();
        let keys = tables.broadcasts.keys().map(|key| key.map(|key| Ipv4Addr::from(key.bytes)));
        keys.collect::<std::result::Result<_, _>>().context(|| reading(names::MAP_BROADCASTS))
    }

    /// Tells the programs the broadcast addresses of the host's networks. Returns whether they did not know.
    pub fn set_broadcasts(&self, wanted: &BTreeSet<Ipv4Addr>) -> Result<bool> {
        let known = self.broadcasts()?;
        let key = |address: &Ipv4Addr| Address4::new(address.octets());
        let doing = || writing(names::MAP_BROADCASTS);
        for address in known.difference(wanted) {
            fault::step("write a map").context(doing)?;
            self.tables.lock().broadcasts.remove(&key(address)).context(doing)?;
        }
        for address in wanted.difference(&known) {
            fault::step("write a map").context(doing)?;
            self.tables.lock().broadcasts.insert(key(address), 1, 0).context(doing)?;
        }
        Ok(known != *wanted)
    }

    /// Sets all counters of a slot to zero, so that its next owner starts afresh.
    pub fn reset_counters(&self, slot: u16) -> Result<()> {
        let cpus = aya::util::nr_cpus().map_err(|(file, error)| {
            crate::error::Error::failure(format!("cannot read the number of CPUs from {file}: {error}"))
        })?;
        let zeros = PerCpuValues::try_from(vec![Counters::default(); cpus])
            .context(|| writing(names::MAP_COUNTERS))?;
        let mut tables = self.tables.lock();
        fault::step("write a map").context(|| writing(names::MAP_COUNTERS))?;
        tables.counters.set(u32::from(slot), zeros, 0).context(|| writing(names::MAP_COUNTERS))?;
        put(&mut tables.drops, u32::from(slot), Drops::default(), names::MAP_DROPS)?;
        put(&mut tables.budgets, u32::from(slot), SampleLimiter::default(), names::MAP_BUDGETS)
    }
}

fn reading(name: &str) -> String {
    format!("cannot read the map {name}")
}

fn writing(name: &str) -> String {
    format!("cannot write the map {name}")
}

/// Writes an element of an array.
fn put<V: Pod>(map: &mut Array<MapData, V>, index: u32, value: V, name: &str) -> Result<()> {
    fault::step("write a map").context(|| writing(name))?;
    map.set(index, value, 0).context(|| writing(name))
}

fn open(path: &Path) -> Result<MapData> {
    fault::step("open a map").context(|| format!("cannot open the pinned map {}", path.display()))?;
    MapData::from_pin(path).context(|| format!("cannot open the pinned map {}", path.display()))
}

fn array<V: Pod>(pins: &Pins, name: &str) -> Result<Array<MapData, V>> {
    Array::try_from(Map::Array(open(&pins.map(name))?)).context(|| reading(name))
}

fn per_cpu_array<V: Pod>(pins: &Pins, name: &str) -> Result<PerCpuArray<MapData, V>> {
    PerCpuArray::try_from(Map::PerCpuArray(open(&pins.map(name))?)).context(|| reading(name))
}

fn lru_hash<K: Pod, V: Pod>(pins: &Pins, name: &str) -> Result<HashMap<MapData, K, V>> {
    HashMap::try_from(Map::LruHashMap(open(&pins.map(name))?)).context(|| reading(name))
}

/// What was looked up, if it is there.
fn found<V>(looked_up: std::result::Result<V, MapError>, name: &str) -> Result<Option<V>> {
    match looked_up {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error).context(|| reading(name)),
    }
}

/// The port map, mapped into memory: publishing a port is one store, without a system call.
pub struct PortTable {
    words: NonNull<AtomicU64>,
}

const PORT_TABLE_BYTES: NonZeroUsize = NonZeroUsize::new(PORTS * size_of::<PortEntry>()).expect("not empty");

impl PortTable {
    fn open(path: &Path) -> Result<Self> {
        let map = open(path)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping is placed where nothing else is. It has the size of the map, which the loader has
        // checked, and outlives the descriptor.
        let address =
            unsafe { mmap(None, PORT_TABLE_BYTES, protection, MapFlags::MAP_SHARED, map.fd().as_fd(), 0) };
        let words = address.context(|| format!("cannot map {} into memory", path.display()))?.cast();
        Ok(Self { words })
    }

    fn word(&self, port: u16) -> &AtomicU64 {
        // SAFETY: the mapping has one word for each of the 65,536 ports.
        let word = unsafe { self.words.add(usize::from(port)) };
        // SAFETY: the mapping lives as long as `self`, is aligned to a page, and everybody, the kernel included,
        // reads and writes its words whole.
        unsafe { word.as_ref() }
    }

    /// The owner of a port.
    pub fn get(&self, port: u16) -> PortEntry {
        PortEntry::from_word(self.word(port).load(Ordering::Relaxed))
    }

    /// Gives a port to an owner, or back to the host. Programs see either the old or the new owner.
    pub fn set(&self, port: u16, owner: PortEntry) {
        self.word(port).store(owner.to_word(), Ordering::Relaxed);
    }
}

impl Drop for PortTable {
    fn drop(&mut self) {
        // SAFETY: `open` made the mapping with this size, and no reference into it outlives `self`.
        let unmapped = unsafe { munmap(self.words.cast(), PORT_TABLE_BYTES.get()) };
        debug_assert_eq!(unmapped, Ok(()));
    }
}

// SAFETY: the words are atomics; any thread may use them.
unsafe impl Send for PortTable {}
// SAFETY: see above.
unsafe impl Sync for PortTable {}
