//! Counters of packets, in the maps.

use core::arch::asm;

use portmap_common::{
    counters::{Counters, PacketCount},
    reason::{REASON_PLACES, ReasonCounts},
};
use portmap_ebpf::segments::WireSize;

use super::maps;

/// Counts traffic for a container, in the counter that `path` selects.
#[inline(always)]
pub(super) fn count_for(slot: u16, size: WireSize, path: impl FnOnce(&mut Counters) -> &mut PacketCount) {
    if let Some(counters) = maps::counters(slot) {
        // SAFETY: the entry belongs to this CPU, and a tc program is neither preempted nor interrupted by
        // another one, so there is no other reference to it.
        path(unsafe { &mut *counters }).count(size.packets, size.bytes);
    }
}

/// Counts a packet by reason, in an entry of this CPU.
#[inline(always)]
pub(super) fn count_reason(counts: *mut ReasonCounts, reason: u32) {
    // SAFETY: the pointer is to a map's entry.
    let count = unsafe { reason_counter(counts, reason) };
    // SAFETY: the entry belongs to this CPU, see `count_for`.
    unsafe { *count += 1 };
}

/// Adds one to a counter that several CPUs increment. (core has no read-modify-write atomics for this target.)
///
/// # Safety
///
/// `count` must point into a map's entry, and be aligned to eight bytes.
#[inline(always)]
pub(super) unsafe fn add_one(count: *mut u64) {
    // SAFETY: the instruction changes only the eight bytes at `count`.
    unsafe {
        asm!("lock *(u64 *)({count} + 0) += {one}", count = in(reg) count, one = in(reg) 1u64);
    }
}

/// Returns the counter of a reason.
///
/// # Safety
///
/// `counts` must point to a whole [`ReasonCounts`].
#[inline(always)]
pub(super) unsafe fn reason_counter(counts: *mut ReasonCounts, reason: u32) -> *mut u64 {
    let mut index = u64::from(reason);
    // The compiler can prove the bound and would remove the mask, but the verifier cannot prove it.
    // SAFETY: the instruction changes only the register.
    unsafe { asm!("{index} &= {mask}", index = inout(reg) index, mask = const REASON_PLACES - 1) };
    #[expect(clippy::cast_possible_truncation, reason = "it is less than REASON_PLACES")]
    let index = index as usize;
    // SAFETY: ReasonCounts is REASON_PLACES counters in the order of the reasons' numbers, and `index` is
    // less.
    unsafe { counts.cast::<u64>().add(index) }
}
