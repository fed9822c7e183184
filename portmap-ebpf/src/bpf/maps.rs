//! The maps, and how the decision code sees them.

use aya_ebpf::{
    btf_maps::{Array, PerCpuArray},
    macros::btf_map,
};
use portmap_common::{
    counters::Counters,
    reason::{Drops, HostHook, ReasonCounts},
    slot::SLOTS,
    tables::{Config, Endpoint, PORTS, PortEntry},
};
use portmap_ebpf::Tables;

/// The daemon writes ports through a mapping of this map (`BPF_F_MMAPABLE`).
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

/// The maps as [`Tables`].
pub(super) struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn port(&self, port: u16) -> PortEntry {
        PM_PORTS.get(u32::from(port)).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn endpoint(&self, slot: u16) -> Endpoint {
        PM_ENDPOINTS.get(u32::from(slot)).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn config(&self) -> Config {
        PM_CONFIG.get(0).copied().unwrap_or_default()
    }
}

/// This CPU's traffic counters of a slot.
#[inline(always)]
pub(super) fn counters(slot: u16) -> Option<*mut Counters> {
    PM_COUNTERS.get_ptr_mut(u32::from(slot))
}

/// The drop counters of a slot.
#[inline(always)]
pub(super) fn drops(slot: u16) -> Option<*mut Drops> {
    PM_DROPS.get_ptr_mut(u32::from(slot))
}

/// This CPU's counters of packets left to the host.
#[inline(always)]
pub(super) fn host(hook: HostHook) -> Option<*mut ReasonCounts> {
    PM_HOST.get_ptr_mut(hook as u32)
}
