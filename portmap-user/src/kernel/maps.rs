//! The pinned maps, with typed keys and values.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    path::Path,
};

use aya::{
    Pod,
    maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues},
};
use nix::libc::EEXIST;
use portmap_common::{
    address_filter::{AddressFilter, hash4, hash6},
    counters::Counters,
    event::SampleLimiter,
    flow_state::{
        Echo, EchoKey, FragCacheEntry, FragmentKey4, FragmentKey6, HostConnection, HostConnectionKey,
        HostFlow, HostFlowKey,
    },
    gcra::GcraState,
    names,
    reason::{Drops, HostHook, ReasonCounts},
    tables::{Address4, Address6, Config, Endpoint},
};

use super::slot_counters::{self, SlotCounters, SlotTable};
use crate::{
    failpoint,
    kernel::error::{Context as _, Result},
    locks::{Rank, Ranked},
    model::Reach,
    paths::Pins,
};

/// Flag of an insertion: the key must not exist.
const BPF_NOEXIST: u64 = 1;

/// The maps of one daemon that are accessed by system calls. Any thread may use them: their lock is held for
/// a single system call.
pub struct Maps {
    tables: Ranked<Tables>,
    slots: SlotCounters,
}

/// The maps that are read and written by system calls.
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
    addresses4: HashMap<MapData, Address4, u32>,
    addresses6: HashMap<MapData, Address6, u32>,
    address_filter: Array<MapData, AddressFilter>,
    host_connections: HashMap<MapData, HostConnectionKey, HostConnection>,
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
            broadcasts: hash(pins, names::MAP_BROADCASTS)?,
            addresses4: hash(pins, names::MAP_ADDRESSES4)?,
            addresses6: hash(pins, names::MAP_ADDRESSES6)?,
            address_filter: array(pins, names::MAP_ADDRESS_FILTER)?,
            host_connections: lru_hash(pins, names::MAP_HOST_CONNECTIONS)?,
        };
        let slots =
            SlotCounters::new(open(&pins.map(names::MAP_COUNTERS))?, open(&pins.map(names::MAP_DROPS))?)?;
        Ok(Self { tables: Ranked::new(Rank::Maps, tables), slots })
    }

    /// Writes the host's configuration.
    pub fn set_config(&self, config: &Config) -> Result<()> {
        put(&mut self.tables.lock().config, 0, *config, names::MAP_CONFIG)
    }

    /// Reads the host's configuration.
    pub fn config(&self) -> Result<Config> {
        self.tables.lock().config.get(&0, 0).context(|| reading(names::MAP_CONFIG))
    }

    /// Writes the endpoint of a new container, with a generation that no earlier container in the slot had.
    pub fn set_endpoint(&self, slot: u16, endpoint: Endpoint) -> Result<()> {
        let generation = self.endpoint(slot)?.generation.wrapping_add(1);
        self.change_endpoint(slot, Endpoint { generation, ..endpoint })
    }

    /// Reads a container's endpoint.
    pub fn endpoint(&self, slot: u16) -> Result<Endpoint> {
        self.tables.lock().endpoints.get(&u32::from(slot), 0).context(|| reading(names::MAP_ENDPOINTS))
    }

    /// Writes the endpoint of an existing container, generation included.
    pub fn change_endpoint(&self, slot: u16, endpoint: Endpoint) -> Result<()> {
        put(&mut self.tables.lock().endpoints, u32::from(slot), endpoint, names::MAP_ENDPOINTS)
    }

    /// Writes a slot's policer.
    pub fn set_limit(&self, slot: u16, limit: GcraState) -> Result<()> {
        put(&mut self.tables.lock().limits, u32::from(slot), limit, names::MAP_LIMITS)
    }

    /// Reads a slot's policer.
    pub fn limit(&self, slot: u16) -> Result<GcraState> {
        self.tables.lock().limits.get(&u32::from(slot), 0).context(|| reading(names::MAP_LIMITS))
    }

    /// Reads all counters of some slots, at a few hundred slots per system call.
    pub fn slot_counts(&self, slots: &BTreeSet<u16>) -> Result<SlotTable> {
        self.slots
            .read(slots)
            .context(|| format!("cannot read the maps {} and {}", names::MAP_COUNTERS, names::MAP_DROPS))
    }

    /// Reads a slot's counters of delivered traffic, summed over all CPUs.
    pub fn counters(&self, slot: u16) -> Result<Counters> {
        let read = self.tables.lock().counters.get(&u32::from(slot), 0);
        let values = read.context(|| reading(names::MAP_COUNTERS))?;
        Ok(values.iter().fold(Counters::default(), Counters::plus))
    }

    /// Reads a slot's drop counters.
    pub fn drops(&self, slot: u16) -> Result<Drops> {
        self.tables.lock().drops.get(&u32::from(slot), 0).context(|| reading(names::MAP_DROPS))
    }

    /// Reads the counters of packets that a hook passed to the host's stack, summed over all CPUs.
    pub fn host(&self, hook: HostHook) -> Result<ReasonCounts> {
        let read = self.tables.lock().host.get(&(hook as u32), 0);
        let values = read.context(|| reading(names::MAP_HOST))?;
        Ok(values.iter().fold(ReasonCounts::default(), ReasonCounts::plus))
    }

    /// Looks up an IPv4 datagram in the fragment cache.
    pub fn fragment4(&self, key: &FragmentKey4) -> Result<Option<FragCacheEntry>> {
        found(self.tables.lock().fragments4.get(key, 0), names::MAP_FRAGMENTS4)
    }

    /// Looks up an IPv6 datagram in the fragment cache.
    pub fn fragment6(&self, key: &FragmentKey6) -> Result<Option<FragCacheEntry>> {
        found(self.tables.lock().fragments6.get(key, 0), names::MAP_FRAGMENTS6)
    }

    /// Looks up the owner of an ICMP echo identifier.
    pub fn echo(&self, key: &EchoKey) -> Result<Option<Echo>> {
        found(self.tables.lock().echoes.get(key, 0), names::MAP_ECHO)
    }

    /// Writes which of the host's ports containers may reach, unless all are open. Returns true if that
    /// changed anything.
    pub fn set_host_ports(&self, reach: &Reach) -> Result<bool> {
        let mut has_changed = false;
        for (index, word) in (0..).zip(reach.host_ports().iter().flatten()) {
            if self.host_ports_word(index)? != *word {
                put(&mut self.tables.lock().host_ports, index, *word, names::MAP_HOST_ACCESS)?;
                has_changed = true;
            }
        }
        Ok(has_changed)
    }

    /// Whether the map differs from the host's ports that containers may reach.
    pub fn lacks_host_ports(&self, reach: &Reach) -> Result<bool> {
        for (index, word) in (0..).zip(reach.host_ports().iter().flatten()) {
            if self.host_ports_word(index)? != *word {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether containers may reach a port of the host, where not all are open.
    pub fn is_open(&self, port: u16) -> Result<bool> {
        Ok(self.host_ports_word(u32::from(port / 64))? >> (port % 64) & 1 != 0)
    }

    fn host_ports_word(&self, index: u32) -> Result<u64> {
        self.tables.lock().host_ports.get(&index, 0).context(|| reading(names::MAP_HOST_ACCESS))
    }

    /// Looks up a flow of the host.
    pub fn host_flow(&self, key: &HostFlowKey) -> Result<Option<HostFlow>> {
        found(self.tables.lock().host_flows.get(key, 0), names::MAP_HOST_FLOWS)
    }

    /// Whether an address is in the map of broadcast addresses.
    pub fn is_broadcast(&self, address: Address4) -> Result<bool> {
        Ok(found(self.tables.lock().broadcasts.get(&address, 0), names::MAP_BROADCASTS)?.is_some())
    }

    /// Writes the broadcast addresses of the host's networks. Returns true if that changed anything.
    pub fn set_broadcasts(&self, wanted: &BTreeSet<Ipv4Addr>) -> Result<bool> {
        let wanted = wanted.iter().map(|address| Address4::new(address.octets())).collect();
        self.set_keys(|tables| &mut tables.broadcasts, &wanted, names::MAP_BROADCASTS)
    }

    /// Whether the map of broadcast addresses has exactly these.
    pub fn has_broadcasts(&self, wanted: &BTreeSet<Ipv4Addr>) -> Result<bool> {
        let wanted: BTreeSet<_> = wanted.iter().map(|address| Address4::new(address.octets())).collect();
        Ok(keys(&self.tables.lock().broadcasts, names::MAP_BROADCASTS)? == wanted)
    }

    /// Writes the shared addresses other than the primary ones. Returns true if that changed anything.
    pub fn set_addresses(&self, wanted: &BTreeSet<IpAddr>) -> Result<bool> {
        let (v4, v6) = by_version(wanted);
        let filter = filter_of(&v4, &v6);
        // First, so that an address that is in a map passes.
        let has_other_filter = self.address_filter()? != filter;
        if has_other_filter {
            put(&mut self.tables.lock().address_filter, 0, filter, names::MAP_ADDRESS_FILTER)?;
        }
        let v4 = self.set_keys(|tables| &mut tables.addresses4, &v4, names::MAP_ADDRESSES4)?;
        let v6 = self.set_keys(|tables| &mut tables.addresses6, &v6, names::MAP_ADDRESSES6)?;
        Ok(v4 || v6 || has_other_filter)
    }

    /// Whether the maps of shared addresses have exactly these.
    pub fn has_addresses(&self, wanted: &BTreeSet<IpAddr>) -> Result<bool> {
        let (v4, v6) = by_version(wanted);
        if self.address_filter()? != filter_of(&v4, &v6) {
            return Ok(false);
        }
        let tables = self.tables.lock();
        Ok(keys(&tables.addresses4, names::MAP_ADDRESSES4)? == v4
            && keys(&tables.addresses6, names::MAP_ADDRESSES6)? == v6)
    }

    fn address_filter(&self) -> Result<AddressFilter> {
        self.tables.lock().address_filter.get(&0, 0).context(|| reading(names::MAP_ADDRESS_FILTER))
    }

    /// Whether an IPv4 address is a shared one other than the primary one.
    pub fn is_address4(&self, address: Address4) -> Result<bool> {
        Ok(found(self.tables.lock().addresses4.get(&address, 0), names::MAP_ADDRESSES4)?.is_some())
    }

    /// Whether an IPv6 address is a shared one other than the primary one.
    pub fn is_address6(&self, address: Address6) -> Result<bool> {
        Ok(found(self.tables.lock().addresses6.get(&address, 0), names::MAP_ADDRESSES6)?.is_some())
    }

    /// Looks up a connection of the host's from a port that a container owns.
    pub fn host_connection(&self, key: &HostConnectionKey) -> Result<Option<HostConnection>> {
        found(self.tables.lock().host_connections.get(key, 0), names::MAP_HOST_CONNECTIONS)
    }

    /// Records a connection of the host's, unless the programs know it. The port needs its flag, too.
    pub fn add_host_connection(&self, key: &HostConnectionKey, connection: HostConnection) -> Result<()> {
        let doing = || writing(names::MAP_HOST_CONNECTIONS);
        failpoint::hit("write a map").context(doing)?;
        let connections = &mut self.tables.lock().host_connections;
        match connections.insert(key, connection, BPF_NOEXIST) {
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(EEXIST) => {}
            other => return other.context(doing),
        }
        // An entry that has expired stays until the map needs its place.
        match connections.get(key, 0) {
            Ok(known) if known.until >= connection.until => Ok(()),
            _ => connections.insert(key, connection, 0).context(doing),
        }
    }

    /// Makes the keys of a map equal to a set. Removes keys before it adds others, so that the map has room.
    fn set_keys<K: Pod + Ord>(
        &self,
        map: fn(&mut Tables) -> &mut HashMap<MapData, K, u32>,
        wanted: &BTreeSet<K>,
        name: &str,
    ) -> Result<bool> {
        let known = keys(map(&mut self.tables.lock()), name)?;
        let doing = || writing(name);
        for key in known.difference(wanted) {
            failpoint::hit("write a map").context(doing)?;
            map(&mut self.tables.lock()).remove(key).context(doing)?;
        }
        for key in wanted.difference(&known) {
            failpoint::hit("write a map").context(doing)?;
            map(&mut self.tables.lock()).insert(key, 1, 0).context(doing)?;
        }
        Ok(known != *wanted)
    }

    /// Resets all counters of a slot for its next container.
    pub fn reset_counters(&self, slot: u16) -> Result<()> {
        let zeros = PerCpuValues::try_from(vec![Counters::default(); slot_counters::cpus()?])
            .context(|| writing(names::MAP_COUNTERS))?;
        let mut tables = self.tables.lock();
        failpoint::hit("write a map").context(|| writing(names::MAP_COUNTERS))?;
        tables.counters.set(u32::from(slot), zeros, 0).context(|| writing(names::MAP_COUNTERS))?;
        put(&mut tables.drops, u32::from(slot), Drops::default(), names::MAP_DROPS)?;
        put(&mut tables.budgets, u32::from(slot), SampleLimiter::default(), names::MAP_BUDGETS)
    }
}

/// The keys of a map.
fn keys<K: Pod + Ord>(map: &HashMap<MapData, K, u32>, name: &str) -> Result<BTreeSet<K>> {
    map.keys().collect::<std::result::Result<_, _>>().context(|| reading(name))
}

/// Addresses as keys, by IP version.
fn by_version(addresses: &BTreeSet<IpAddr>) -> (BTreeSet<Address4>, BTreeSet<Address6>) {
    let (mut v4, mut v6) = (BTreeSet::new(), BTreeSet::new());
    for address in addresses {
        match address {
            IpAddr::V4(address) => v4.insert(Address4::new(address.octets())),
            IpAddr::V6(address) => v6.insert(Address6::new(address.octets())),
        };
    }
    (v4, v6)
}

/// The filter that exactly these addresses are inserted into.
fn filter_of(v4: &BTreeSet<Address4>, v6: &BTreeSet<Address6>) -> AddressFilter {
    let mut filter = AddressFilter::EMPTY;
    let hashes = v4.iter().copied().map(hash4).chain(v6.iter().copied().map(hash6));
    hashes.for_each(|hash| filter.insert(hash));
    filter
}

fn reading(name: &str) -> String {
    format!("cannot read the map {name}")
}

fn writing(name: &str) -> String {
    format!("cannot write the map {name}")
}

/// Writes an element of an array.
fn put<V: Pod>(map: &mut Array<MapData, V>, index: u32, value: V, name: &str) -> Result<()> {
    failpoint::hit("write a map").context(|| writing(name))?;
    map.set(index, value, 0).context(|| writing(name))
}

pub(super) fn open(path: &Path) -> Result<MapData> {
    failpoint::hit("open a map").context(|| format!("cannot open the pinned map {}", path.display()))?;
    MapData::from_pin(path).context(|| format!("cannot open the pinned map {}", path.display()))
}

fn array<V: Pod>(pins: &Pins, name: &str) -> Result<Array<MapData, V>> {
    Array::try_from(Map::Array(open(&pins.map(name))?)).context(|| reading(name))
}

fn per_cpu_array<V: Pod>(pins: &Pins, name: &str) -> Result<PerCpuArray<MapData, V>> {
    PerCpuArray::try_from(Map::PerCpuArray(open(&pins.map(name))?)).context(|| reading(name))
}

fn hash<K: Pod, V: Pod>(pins: &Pins, name: &str) -> Result<HashMap<MapData, K, V>> {
    HashMap::try_from(Map::HashMap(open(&pins.map(name))?)).context(|| reading(name))
}

fn lru_hash<K: Pod, V: Pod>(pins: &Pins, name: &str) -> Result<HashMap<MapData, K, V>> {
    HashMap::try_from(Map::LruHashMap(open(&pins.map(name))?)).context(|| reading(name))
}

/// Maps a missing key to `None`.
fn found<V>(looked_up: std::result::Result<V, MapError>, name: &str) -> Result<Option<V>> {
    match looked_up {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error).context(|| reading(name)),
    }
}
