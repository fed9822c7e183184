//! The schedules of limits: one word for each slot, on which all CPUs work at once.

use core::arch::asm;

/// Moves a schedule on; see [`portmap_ebpf::Tables::schedule`].
///
/// # Safety
///
/// `scheduled` must point into a map's entry, aligned to eight bytes.
#[inline(always)]
pub(super) unsafe fn schedule(scheduled: *mut u64, time: u64, now: u64, slack: u64) -> bool {
    // SAFETY: the pointer is to a map's entry. An aligned word is loaded whole.
    let before = unsafe { scheduled.read_volatile() };
    if before < now {
        // SAFETY: as this function's. Whoever comes first moves it; the others go on from there.
        unsafe { replace(scheduled, before, now) };
    }
    // Added first and looked at then, so that of two CPUs that come at once only one finds what is left.
    // SAFETY: as this function's.
    let from = unsafe { add(scheduled, time) };
    if from <= now.wrapping_add(slack) {
        return true;
    }
    // SAFETY: as this function's.
    unsafe { add(scheduled, time.wrapping_neg()) };
    false
}

/// Adds to a word and returns what it was before. (core has no read-modify-write atomics for this target.)
///
/// # Safety
///
/// `word` must point into a map's entry, aligned to eight bytes.
#[inline(always)]
unsafe fn add(word: *mut u64, number: u64) -> u64 {
    let mut number = number;
    // SAFETY: the instruction changes the eight bytes at `word` and the register, nothing else.
    unsafe {
        asm!("{number} = atomic_fetch_add((u64 *)({word} + 0), {number})", word = in(reg) word, number = inout(reg) number);
    }
    number
}

/// Replaces a word, if it still has a value, by another.
///
/// # Safety
///
/// `word` must point into a map's entry, aligned to eight bytes.
#[inline(always)]
unsafe fn replace(word: *mut u64, old: u64, new: u64) {
    // SAFETY: the instruction changes the eight bytes at `word` and the register r0, nothing else.
    unsafe {
        asm!("r0 = cmpxchg_64({word} + 0, r0, {new})", word = in(reg) word, new = in(reg) new, inout("r0") old => _);
    }
}
