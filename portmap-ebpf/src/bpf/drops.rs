//! Dropping a packet: it is counted, marked for the kernel's own tracers, and perhaps sampled.

use core::arch::asm;

use aya_ebpf::{bindings::TC_ACT_SHOT, programs::TcContext};
use portmap_common::{
    event::{DROP_MARK, DropEvent, EventBudget, SAMPLES, WINDOW},
    names::tail_call_index,
    reason::Reason,
    slot::{HOST_SLOT, slot_of_veth},
};
use portmap_ebpf::{Frame as _, sample};

use super::{
    apply::{place, set_mark},
    frame::Skb,
    maps,
};

/// Leaves a packet to the program that counts it and drops it. The mark tells that one the reason, and the kernel's
/// tracers, too.
#[inline(always)]
pub(super) fn tail_call(context: &TcContext, reason: Reason) -> i32 {
    set_mark(context, DROP_MARK | reason as u32);
    maps::tail_call(context, const { tail_call_index("pm_dropped") });
    // Only if the daemon has not put the program there, which it does before it attaches any.
    TC_ACT_SHOT
}

/// Does all that is done about a dropped packet, besides dropping it.
#[inline(always)]
pub(super) fn record(context: &TcContext) {
    let frame = Skb::new(context);
    // A packet that came in by no host veth came from outside, and is counted for the host.
    let slot = slot_of_veth(frame.ifindex());
    let [reason, ..] = frame.mark().to_le_bytes();
    count(slot, u32::from(reason));
    let Some(budget) = maps::budget(slot) else { return };
    // SAFETY: the pointer is to a map's entry. Other CPUs may change it at the same time; a sample too many or a
    // lost count of those that were left out does no harm.
    let budget = unsafe { &mut *budget };
    let time = maps::now();
    if !take(budget, time) {
        budget.suppressed += 1;
        return;
    }
    let Some(mut entry) = maps::reserve_event() else {
        // Nobody reads, or not fast enough.
        budget.suppressed += 1;
        return;
    };
    let event =
        entry.write(DropEvent { time, suppressed: budget.suppressed, slot, reason, ..DropEvent::default() });
    sample::describe(&frame, event);
    entry.submit(0);
}

/// Whether a sample may be taken now.
#[inline(always)]
fn take(budget: &mut EventBudget, now: u64) -> bool {
    if now.wrapping_sub(budget.start) > WINDOW {
        budget.start = now;
        budget.taken = 0;
    }
    if budget.taken >= SAMPLES {
        return false;
    }
    budget.taken += 1;
    true
}

#[inline(always)]
fn count(slot: u16, reason: u32) {
    let Some(drops) = maps::drops(slot) else { return };
    // Packets from outside are on their way to the host, all others were sent by the slot.
    let counts = if slot == HOST_SLOT {
        // SAFETY: the pointer is to a map's entry.
        unsafe { &raw mut (*drops).rx }
    } else {
        // SAFETY: the same.
        unsafe { &raw mut (*drops).tx }
    };
    // SAFETY: the pointer is into a map's entry.
    let count = unsafe { place(counts, reason) };
    // SAFETY: the instruction adds one to the eight bytes at `count`, which is in the map's entry and aligned as
    // all of it. Drops of one container can happen on several CPUs at once, hence the lock; they are rare enough
    // for one counter to serve all CPUs. (core has no read-modify-write atomics for this target.)
    unsafe {
        asm!("lock *(u64 *)({count} + 0) += {one}", count = in(reg) count, one = in(reg) 1u64);
    }
}
