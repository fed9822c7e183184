//! Theoretical arrival times (TAT) of GCRA policers: one word per slot, which all CPUs update concurrently.

use core::arch::asm;

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

/// Adds to a word and returns its previous value. (core has no read-modify-write atomics for this target.)
///
/// # Safety
///
/// `word` must point into a map's entry, aligned to eight bytes.
#[inline(always)]
unsafe fn fetch_add(word: *mut u64, number: u64) -> u64 {
    let mut number = number;
    // SAFETY: the instruction changes the eight bytes at `word` and the register, nothing else.
    unsafe {
        asm!(
            "{number} = atomic_fetch_add((u64 *)({word} + 0), {number})",
            word = in(reg) word,
            number = inout(reg) number,
        );
    }
    number
}

/// Replaces a word if it still has the value `old`.
///
/// # Safety
///
/// `word` must point into a map's entry, aligned to eight bytes.
#[inline(always)]
unsafe fn compare_exchange(word: *mut u64, old: u64, new: u64) {
    // SAFETY: the instruction changes the eight bytes at `word` and the register r0, nothing else.
    unsafe {
        asm!("r0 = cmpxchg_64({word} + 0, r0, {new})", word = in(reg) word, new = in(reg) new, inout("r0") old => _);
    }
}
