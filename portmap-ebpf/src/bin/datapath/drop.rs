//! Drops: a dropped packet is marked for the kernel's tracers, counted, and sampled if the limit on samples
//! allows.

use aya_ebpf::{bindings::TC_ACT_SHOT, programs::TcContext};
use portmap_common::{
    event::{DropEvent, MAX_SAMPLES_PER_WINDOW, SAMPLE_WINDOW, SampleLimiter},
    marks::DROP_MARK,
    names::tail_call_index,
    reason::Reason,
    slot::{HOST_SLOT, slot_of_veth},
};
use portmap_ebpf::{Frame as _, sample};

use super::{
    counters::{add_one, reason_counter},
    maps,
    metadata::set_mark,
    skb::Skb,
};

/// Continues in the program that counts and drops the packet. The mark contains the reason, for that program
/// and for the kernel's tracers.
#[inline(always)]
pub(super) fn tail_call(context: &TcContext, reason: Reason) -> i32 {
    set_mark(context, DROP_MARK | reason as u32);
    maps::tail_call(context, const { tail_call_index("pm_dropped") });
    // Reached only if the program is missing. The daemon installs it before it attaches any program.
    TC_ACT_SHOT
}

/// Counts and samples a packet that is dropped.
#[inline(always)]
pub(super) fn record(context: &TcContext) {
    let frame = Skb::new(context);
    // A packet that has not entered by a host veth is from outside, and counts for the host.
    let slot = slot_of_veth(frame.ifindex());
    let [reason, ..] = frame.mark().to_le_bytes();
    count(slot, u32::from(reason));
    let Some(limiter) = maps::sample_limiter(slot) else { return };
    // SAFETY: the pointer is to a map's entry. Concurrent changes by other CPUs can cause an extra sample or
    // a lost count of suppressed ones, which is harmless.
    let limiter = unsafe { &mut *limiter };
    let time = maps::now();
    if !may_sample(limiter, time) {
        limiter.suppressed += 1;
        return;
    }
    let Some(mut entry) = maps::reserve_event() else {
        // The ring is full: it has no reader, or a slow one.
        limiter.suppressed += 1;
        return;
    };
    let event =
        entry.write(DropEvent { time, suppressed: limiter.suppressed, slot, reason, ..DropEvent::default() });
    sample::describe(&frame, event);
    entry.submit(0);
}

/// Returns whether the limit allows a sample now, and charges it if so.
#[inline(always)]
fn may_sample(limiter: &mut SampleLimiter, now: u64) -> bool {
    if now.wrapping_sub(limiter.start) > SAMPLE_WINDOW {
        limiter.start = now;
        limiter.taken = 0;
    }
    if limiter.taken >= MAX_SAMPLES_PER_WINDOW {
        return false;
    }
    limiter.taken += 1;
    true
}

#[inline(always)]
fn count(slot: u16, reason: u32) {
    let Some(drops) = maps::drops(slot) else { return };
    // Packets from outside count as received by the host, all others as sent by the slot.
    let counts = if slot == HOST_SLOT {
        // SAFETY: the pointer is to a map's entry.
        unsafe { &raw mut (*drops).rx }
    } else {
        // SAFETY: the pointer is to a map's entry.
        unsafe { &raw mut (*drops).tx }
    };
    // SAFETY: the pointer is into a map's entry.
    let count = unsafe { reason_counter(counts, reason) };
    // Several CPUs can drop packets of one container concurrently, and drops are rare enough for one counter
    // for all CPUs.
    // SAFETY: the counter is in the map's entry and aligned as all of it.
    unsafe { add_one(count) };
}
