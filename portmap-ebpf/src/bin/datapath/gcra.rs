//! Theoretical arrival times (TAT) of GCRA policers: one word per slot, which all CPUs update concurrently.

use super::atomic::{compare_exchange, fetch_add};

/// Advances a TAT; see [`portmap_ebpf::Tables::advance_tat`].
///
/// # Safety
///
/// `tat` must point into a map's entry, aligned to eight bytes.
#[inline(always)]
pub(super) unsafe fn advance_tat(tat: *mut u64, time: u64, now: u64, tolerance: u64) -> bool {
    // SAFETY: the pointer is to a map's entry. An aligned word is loaded whole.
    let before = unsafe { tat.read_volatile() };
    if before < now {
        // SAFETY: as this function's. The first CPU moves it to `now`; the others continue from there.
        unsafe { compare_exchange(tat, before, now) };
    }
    // Adding comes before the check, so that only one of two concurrent CPUs gets the rest of the tolerance.
    // SAFETY: as this function's.
    let from = unsafe { fetch_add(tat, time) };
    if from <= now.wrapping_add(tolerance) {
        return true;
    }
    // SAFETY: as this function's.
    unsafe { fetch_add(tat, time.wrapping_neg()) };
    false
}
