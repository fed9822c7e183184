//! The maps, and their implementation of [`Tables`].

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, ProgramArray, RingBuf},
    helpers::bpf_ktime_get_ns,
    macros::btf_map,
    maps::ring_buf::RingBufEntry,
    programs::TcContext,
};
use portmap_common::{
    address_filter::{AddressFilter, hash4, hash6},
    counters::Counters,
    event::{DropEvent, RING_BYTES, SampleLimiter},
    flow_state::{
        ENTRIES, Echo, EchoKey, FragCacheEntry, FragmentKey4, FragmentKey6, HOST_CONNECTION_ENTRIES,
        HostConnection, HostConnectionKey, HostFlow, HostFlowKey, NEIGHBOUR_INTERVAL, NEIGHBOUR_TOLERANCE,
        Neighbour, NeighbourBudget, NeighbourKey,
    },
    gcra::GcraState,
    names::TAIL_CALLS,
    reason::{Drops, HostHook, ReasonCounts},
    slot::SLOTS,
    tables::{
        ADDRESSES, Address4, Address6, BROADCASTS, Config, Endpoint, FURTHER_FLOWS, HOST_ACCESS_WORDS,
        HOST_CONNECTIONS, Listener, Mac, PORTS, PortEntry,
    },
};
use portmap_ebpf::{
    Tables,
    fib::{FibAnswer, FibQuestion},
};

use super::{atomic, fib, gcra, skb::is_dry_run};

/// `BPF_F_MMAPABLE`: the daemon maps this map into its memory.
const MMAPABLE: usize = 1 << 10;

#[btf_map(name = "pm_ports")]
static PM_PORTS: Array<PortEntry, PORTS, MMAPABLE> = Array::new();
#[btf_map(name = "pm_endpoints")]
static PM_ENDPOINTS: Array<Endpoint, { SLOTS as usize }> = Array::new();
#[btf_map(name = "pm_config")]
static PM_CONFIG: Array<Config, 1> = Array::new();
#[btf_map(name = "pm_counters")]
static PM_COUNTERS: PerCpuArray<Counters, { SLOTS as usize }> = PerCpuArray::new();
#[btf_map(name = "pm_drops")]
static PM_DROPS: Array<Drops, { SLOTS as usize }> = Array::new();
#[btf_map(name = "pm_host")]
static PM_HOST: PerCpuArray<ReasonCounts, { HostHook::ALL.len() }> = PerCpuArray::new();
#[btf_map(name = "pm_frags4")]
static PM_FRAGMENTS4: LruHashMap<FragmentKey4, FragCacheEntry, ENTRIES> = LruHashMap::new();
#[btf_map(name = "pm_frags6")]
static PM_FRAGMENTS6: LruHashMap<FragmentKey6, FragCacheEntry, ENTRIES> = LruHashMap::new();
#[btf_map(name = "pm_echo")]
static PM_ECHO: LruHashMap<EchoKey, Echo, ENTRIES> = LruHashMap::new();
#[btf_map(name = "pm_events")]
static PM_EVENTS: RingBuf<DropEvent, RING_BYTES> = RingBuf::new();
#[btf_map(name = "pm_budgets")]
static PM_BUDGETS: Array<SampleLimiter, { SLOTS as usize }> = Array::new();

#[btf_map(name = "pm_limits")]
static PM_LIMITS: Array<GcraState, { SLOTS as usize }> = Array::new();

#[btf_map(name = "pm_host_access")]
static PM_HOST_ACCESS: Array<u64, HOST_ACCESS_WORDS> = Array::new();
#[btf_map(name = "pm_host_flows")]
static PM_HOST_FLOWS: LruHashMap<HostFlowKey, HostFlow, ENTRIES> = LruHashMap::new();

#[btf_map(name = "pm_neighbours")]
static PM_NEIGHBOURS: LruHashMap<NeighbourKey, Neighbour, ENTRIES> = LruHashMap::new();
#[btf_map(name = "pm_neigh_budget")]
static PM_NEIGHBOUR_BUDGETS: Array<NeighbourBudget, { SLOTS as usize }> = Array::new();

#[btf_map(name = "pm_broadcasts")]
static PM_BROADCASTS: HashMap<Address4, u32, BROADCASTS> = HashMap::new();

#[btf_map(name = "pm_addresses4")]
static PM_ADDRESSES4: HashMap<Address4, u32, ADDRESSES> = HashMap::new();
#[btf_map(name = "pm_addresses6")]
static PM_ADDRESSES6: HashMap<Address6, u32, ADDRESSES> = HashMap::new();
#[btf_map(name = "pm_addr_filter")]
static PM_ADDRESS_FILTER: Array<AddressFilter, 1> = Array::new();
#[btf_map(name = "pm_host_conns")]
static PM_HOST_CONNECTIONS: LruHashMap<HostConnectionKey, HostConnection, HOST_CONNECTION_ENTRIES> =
    LruHashMap::new();

#[btf_map(name = "pm_rest")]
static PM_TAIL_CALLS: ProgramArray<{ TAIL_CALLS.len() }> = ProgramArray::new();

/// Makes a tail call. Returns only if the program is missing.
#[inline(always)]
pub(super) fn tail_call(context: &TcContext, program: u32) {
    // SAFETY: the programs in the map are of this type and take this context.
    unsafe { PM_TAIL_CALLS.tail_call(context, program) };
}

/// The maps as [`Tables`], for one run of a program.
pub(super) struct Maps<'a> {
    context: &'a TcContext,
}

impl<'a> Maps<'a> {
    /// Returns the maps. In a dry run they are not written.
    #[inline(always)]
    pub(super) const fn new(context: &'a TcContext) -> Self {
        Self { context }
    }
}

impl Tables for Maps<'_> {
    #[inline(always)]
    fn port(&self, port: u16) -> PortEntry {
        PM_PORTS.get(u32::from(port)).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn endpoint(&self, slot: u16) -> Endpoint {
        PM_ENDPOINTS.get(u32::from(slot)).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn config(&self) -> &Config {
        config()
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        now()
    }

    #[inline(always)]
    fn fragment4(&self, key: &FragmentKey4) -> Option<FragCacheEntry> {
        // SAFETY: the pointer is valid as long as the program runs. If the entry is reused meanwhile, the
        // copy is another datagram's, and the packet goes to the owner of that one's ports.
        unsafe { PM_FRAGMENTS4.get(key) }.copied()
    }

    #[inline(always)]
    fn set_fragment4(&self, key: &FragmentKey4, entry: &FragCacheEntry) {
        if !is_dry_run(self.context) {
            // It fails only if the kernel has no free element on this CPU; subsequent fragments then have no
            // entry.
            let _ = PM_FRAGMENTS4.insert(key, entry, u64::from(BPF_ANY));
        }
    }

    #[inline(always)]
    fn fragment6(&self, key: &FragmentKey6) -> Option<FragCacheEntry> {
        // SAFETY: see `fragment4`.
        unsafe { PM_FRAGMENTS6.get(key) }.copied()
    }

    #[inline(always)]
    fn set_fragment6(&self, key: &FragmentKey6, entry: &FragCacheEntry) {
        if !is_dry_run(self.context) {
            let _ = PM_FRAGMENTS6.insert(key, entry, u64::from(BPF_ANY));
        }
    }

    #[inline(always)]
    fn echo(&self, key: &EchoKey) -> Option<Echo> {
        // SAFETY: the pointer is valid as long as the program runs. The owner is one aligned word and read
        // atomically; if the entry is reused meanwhile, the time can be another one's.
        unsafe { PM_ECHO.get(key) }.copied()
    }

    #[inline(always)]
    fn set_echo(&self, key: &EchoKey, echo: &Echo) {
        if !is_dry_run(self.context) {
            let _ = PM_ECHO.insert(key, echo, u64::from(BPF_ANY));
        }
    }

    #[inline(always)]
    fn renew_echo(&self, key: &EchoKey, seen: u64) {
        if is_dry_run(self.context) {
            return;
        }
        // In place, so that it does not overwrite an owner that has claimed the identifier meanwhile.
        if let Some(echo) = PM_ECHO.get_ptr_mut(key) {
            // SAFETY: the pointer is to a map's entry.
            let time = unsafe { &raw mut (*echo).seen };
            // SAFETY: it is an aligned word of that entry.
            unsafe { time.write_volatile(seen) };
        }
    }

    #[inline(always)]
    fn claim_echo(&self, key: &EchoKey, echo: &Echo, stale: Option<Echo>) -> bool {
        if is_dry_run(self.context) {
            return true;
        }
        if stale.is_some() {
            let _ = PM_ECHO.remove(key);
        }
        PM_ECHO.insert(key, echo, u64::from(BPF_NOEXIST)).is_ok()
    }

    #[inline(always)]
    fn is_host_port_allowed(&self, port: u16) -> bool {
        let word = PM_HOST_ACCESS.get(u32::from(port / 64)).copied().unwrap_or_default();
        word >> (port % 64) & 1 != 0
    }

    #[inline(always)]
    fn host_flow(&self, key: &HostFlowKey) -> Option<HostFlow> {
        // SAFETY: an entry is one aligned word and read atomically.
        unsafe { PM_HOST_FLOWS.get(key) }.copied()
    }

    #[inline(always)]
    fn set_host_flow(&self, key: &HostFlowKey, flow: &HostFlow) {
        if !is_dry_run(self.context) {
            // It fails only if the kernel has no free element on this CPU; a reply is then dropped.
            let _ = PM_HOST_FLOWS.insert(key, flow, u64::from(BPF_ANY));
        }
    }

    #[inline(always)]
    fn neighbour(&self, key: &NeighbourKey) -> Option<Neighbour> {
        // SAFETY: the pointer is valid as long as the program runs. Each of the two times is one aligned word; if
        // they are of different moments, a check is made once too often or a charge once more.
        unsafe { PM_NEIGHBOURS.get(key) }.copied()
    }

    #[inline(always)]
    fn set_neighbour(&self, key: &NeighbourKey, neighbour: &Neighbour) {
        if !is_dry_run(self.context) {
            // It fails only if the kernel has no free element on this CPU; the next packet is then charged
            // again.
            let _ = PM_NEIGHBOURS.insert(key, neighbour, u64::from(BPF_ANY));
        }
    }

    #[inline(always)]
    fn charge_neighbour(&self, slot: u16, now: u64) -> bool {
        if is_dry_run(self.context) {
            return true;
        }
        let Some(budget) = PM_NEIGHBOUR_BUDGETS.get_ptr_mut(u32::from(slot)) else { return true };
        // SAFETY: the pointer is to a map's entry.
        let tat = unsafe { &raw mut (*budget).tat };
        // SAFETY: it points into a map's entry and is aligned to eight bytes.
        unsafe { gcra::advance_tat(tat, NEIGHBOUR_INTERVAL, now, NEIGHBOUR_TOLERANCE) }
    }

    #[inline(always)]
    fn is_broadcast(&self, address: Address4) -> bool {
        // SAFETY: the entry itself is not read.
        unsafe { PM_BROADCASTS.get(address) }.is_some()
    }

    #[inline(always)]
    fn is_address4(&self, address: Address4) -> bool {
        // SAFETY: the entry itself is not read.
        passes_filter(hash4(address)) && unsafe { PM_ADDRESSES4.get(address) }.is_some()
    }

    #[inline(always)]
    fn is_address6(&self, address: Address6) -> bool {
        // SAFETY: the entry itself is not read.
        passes_filter(hash6(address)) && unsafe { PM_ADDRESSES6.get(address) }.is_some()
    }

    #[inline(always)]
    fn fib(&self, question: &FibQuestion) -> FibAnswer {
        fib::ask(self.context, question)
    }

    #[inline(always)]
    fn host_connection(&self, key: &HostConnectionKey) -> HostConnection {
        // SAFETY: the pointer is valid as long as the program runs. The time is one aligned word; if the entry
        // is reused meanwhile, the copy is another connection's, and one packet is misjudged.
        unsafe { PM_HOST_CONNECTIONS.get(key) }.copied().unwrap_or_default()
    }

    #[inline(always)]
    fn set_host_connection(&self, key: &HostConnectionKey, connection: &HostConnection) {
        if is_dry_run(self.context) {
            return;
        }
        // It fails only if the kernel has no free element on this CPU; the next packet then tries again.
        if PM_HOST_CONNECTIONS.insert(key, connection, u64::from(BPF_ANY)).is_err() {
            return;
        }
        if let Some(entry) = PM_PORTS.get_ptr_mut(u32::from(key.local_port)) {
            let flag = PortEntry { ifindex: 0, slot: 0, flags: HOST_CONNECTIONS };
            // SAFETY: the pointer is to an entry of the map, which is eight aligned bytes. The daemon can
            // replace the whole entry at any time, and the flag is added to whichever one is there.
            unsafe { atomic::or(entry.cast(), flag.to_word()) };
        }
    }

    #[inline(always)]
    fn policer(&self, slot: u16) -> Option<&GcraState> {
        PM_LIMITS.get(u32::from(slot))
    }

    #[inline(always)]
    fn advance_tat(&self, slot: u16, time: u64, now: u64, tolerance: u64) -> bool {
        if is_dry_run(self.context) {
            return true;
        }
        let Some(limit) = PM_LIMITS.get_ptr_mut(u32::from(slot)) else { return true };
        // SAFETY: the pointer is to a map's entry.
        let tat = unsafe { &raw mut (*limit).tat };
        // SAFETY: it points into a map's entry and is aligned to eight bytes.
        unsafe { gcra::advance_tat(tat, time, now, tolerance) }
    }
}

/// Returns whether the address with this hash may be in one of the maps of addresses.
#[inline(always)]
fn passes_filter(hash: u64) -> bool {
    PM_ADDRESS_FILTER.get(0).is_some_and(|filter| filter.passes(hash))
}

/// The configuration for a missing entry of the map, which the verifier cannot exclude.
static NO_CONFIG: Config = Config {
    host_ip: Address4::new([0; 4]),
    netmask: Address4::new([0; 4]),
    gateway: Address4::new([0; 4]),
    uplink_ifindex: 0,
    host_ip6: Address6::new([0; 16]),
    netmask6: Address6::new([0; 16]),
    gateway6: Address6::new([0; 16]),
    mac: Mac::new([0; 6]),
    lo_mac: Mac::new([0; 6]),
    uplink_flows: 0,
    reach: 0,
    listener: Listener::NONE,
    secret: 0,
    broadcasts: 0,
    more_addresses4: 0,
    more_addresses6: 0,
    direct4: 0,
    direct6: 0,
    more_flows: [0; FURTHER_FLOWS],
};

/// Returns the configuration of the host's network.
#[inline(always)]
pub(super) fn config() -> &'static Config {
    PM_CONFIG.get(0).unwrap_or(&NO_CONFIG)
}

/// Returns the time in nanoseconds of the monotonic clock.
#[inline(always)]
pub(super) fn now() -> u64 {
    // SAFETY: the helper has no arguments.
    unsafe { bpf_ktime_get_ns() }
}

/// Returns this CPU's traffic counters of a slot.
#[inline(always)]
pub(super) fn counters(slot: u16) -> Option<*mut Counters> {
    PM_COUNTERS.get_ptr_mut(u32::from(slot))
}

/// Returns the drop counters of a slot.
#[inline(always)]
pub(super) fn drops(slot: u16) -> Option<*mut Drops> {
    PM_DROPS.get_ptr_mut(u32::from(slot))
}

/// Returns this CPU's counters of packets left to the host.
#[inline(always)]
pub(super) fn host(hook: HostHook) -> Option<*mut ReasonCounts> {
    PM_HOST.get_ptr_mut(hook as u32)
}

/// Returns the limit on the samples of a slot.
#[inline(always)]
pub(super) fn sample_limiter(slot: u16) -> Option<*mut SampleLimiter> {
    PM_BUDGETS.get_ptr_mut(u32::from(slot))
}

/// Reserves space for a sample, which the caller must submit; `None` if the ring is full.
#[inline(always)]
pub(super) fn reserve_event() -> Option<RingBufEntry<DropEvent>> {
    PM_EVENTS.reserve(0)
}
