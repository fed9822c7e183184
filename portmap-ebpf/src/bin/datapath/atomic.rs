//! Atomic operations on words of maps, which core does not have for this target.

use core::arch::asm;

/// Adds to a word and returns its previous value.
///
/// # Safety
///
/// `word` must point into a map's entry, aligned to eight bytes.
#[inline(always)]
pub(super) unsafe fn fetch_add(word: *mut u64, number: u64) -> u64 {
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
pub(super) unsafe fn compare_exchange(word: *mut u64, old: u64, new: u64) {
    // SAFETY: the instruction changes the eight bytes at `word` and the register r0, nothing else.
    unsafe {
        asm!("r0 = cmpxchg_64({word} + 0, r0, {new})", word = in(reg) word, new = in(reg) new, inout("r0") old => _);
    }
}

/// Sets bits of a word.
///
/// # Safety
///
/// `word` must point into a map's entry, aligned to eight bytes.
#[inline(always)]
pub(super) unsafe fn or(word: *mut u64, bits: u64) {
    // SAFETY: the instruction changes the eight bytes at `word`, nothing else.
    unsafe { asm!("lock *(u64 *)({word} + 0) |= {bits}", word = in(reg) word, bits = in(reg) bits) };
}
