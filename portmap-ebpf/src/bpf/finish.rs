//! Carrying out a verdict: the only place that counts, redirects and returns a code to the kernel.

use core::arch::asm;

use aya_ebpf::{
    bindings::{BPF_F_INGRESS, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_redir_neigh, bpf_redir_neigh__bindgen_ty_1},
    helpers::{bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer},
    programs::TcContext,
};
use portmap_common::{
    counters::{Counters, Tally},
    reason::{HostHook, REASON_PLACES, Reason, ReasonCounts},
    slot::HOST_SLOT,
};
use portmap_ebpf::{
    Tables as _,
    verdict::{Origin, Verdict},
};

use super::maps::{self, Maps};

/// Address family of `bpf_redir_neigh`.
const AF_INET: u32 = 2;
/// The loopback device has the first interface index in every network namespace.
const LO_IFINDEX: u32 = 1;

/// The next hop as the kernel wants it, aligned so that it is written in words that the verifier accepts on the
/// stack although the object is built for misaligned loads from packets.
#[repr(C, align(8))]
struct Neighbour(bpf_redir_neigh);

/// Bytes of a next hop, as the kernel wants to be told.
#[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "it is a small structure")]
const NEIGHBOUR_SIZE: i32 = size_of::<bpf_redir_neigh>() as i32;

/// Carries out the verdict of a hook on the host's own interfaces.
#[inline(always)]
pub(super) fn host_hook(context: &TcContext, hook: HostHook, verdict: Verdict) -> i32 {
    if let Verdict::Continue(reason) = verdict {
        if let Some(counts) = maps::host(hook) {
            count_reason(counts, reason);
        }
        return TC_ACT_UNSPEC;
    }
    finish(context, verdict)
}

/// Carries out the verdict of a hook on a container's interfaces.
#[inline(always)]
pub(super) fn finish(context: &TcContext, verdict: Verdict) -> i32 {
    let bytes = context.len();
    match verdict {
        Verdict::Continue(_) | Verdict::Decided => TC_ACT_UNSPEC,
        Verdict::Own(slot) => {
            count(slot, bytes, |counters| &mut counters.own);
            TC_ACT_UNSPEC
        }
        Verdict::Drop { slot, reason } => {
            count_drop(slot, reason);
            TC_ACT_SHOT
        }
        Verdict::ToContainer { origin, owner } => {
            match origin {
                Origin::Outside => count(owner.slot, bytes, |counters| &mut counters.rx_outside),
                Origin::Host => count(owner.slot, bytes, |counters| &mut counters.rx_host),
                Origin::Container(sender) => {
                    count(sender, bytes, |counters| &mut counters.tx_container);
                    count(owner.slot, bytes, |counters| &mut counters.rx_container);
                }
            }
            // SAFETY: a helper that takes two integers; an interface that is gone makes the kernel drop.
            code(unsafe { bpf_redirect_peer(owner.ifindex, 0) })
        }
        Verdict::ToOutside { slot, next_hop } => {
            count(slot, bytes, |counters| &mut counters.tx_outside);
            let mut neighbour = Neighbour(bpf_redir_neigh {
                nh_family: AF_INET,
                __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 {
                    ipv6_nh: [u32::from_ne_bytes(next_hop), 0, 0, 0],
                },
            });
            let uplink = Maps.config().uplink_ifindex;
            // SAFETY: the pointer is to a local of the size that is passed with it.
            code(unsafe { bpf_redirect_neigh(uplink, &raw mut neighbour.0, NEIGHBOUR_SIZE, 0) })
        }
        Verdict::ToHost(slot) => {
            count(slot, bytes, |counters| &mut counters.tx_host);
            to_host(context)
        }
        // SAFETY: a helper that takes two integers; an interface that is gone makes the kernel drop.
        Verdict::ToEth0(ifindex) => code(unsafe { bpf_redirect(ifindex, 0) }),
    }
}

/// Puts a container's packet into the host's loopback device, as if the host itself had sent it there.
#[inline(always)]
fn to_host(context: &TcContext) -> i32 {
    // The device accepts frames for its own MAC address only.
    if context.store(0, &Maps.config().lo_mac, 0).is_err() {
        return TC_ACT_SHOT;
    }
    // SAFETY: a helper that takes two integers.
    code(unsafe { bpf_redirect(LO_IFINDEX, u64::from(BPF_F_INGRESS)) })
}

/// What a redirecting helper returns as what a program returns.
#[expect(clippy::cast_possible_truncation, reason = "the helpers return one of the few TC_ACT codes")]
#[inline(always)]
const fn code(returned: i64) -> i32 {
    returned as i32
}

#[inline(always)]
fn count(slot: u16, bytes: u32, path: impl FnOnce(&mut Counters) -> &mut Tally) {
    if let Some(counters) = maps::counters(slot) {
        // SAFETY: the entry belongs to this CPU, and a program at a tc hook is neither preempted nor
        // interrupted by another one, so nobody else refers to it.
        path(unsafe { &mut *counters }).count(bytes);
    }
}

#[inline(always)]
fn count_reason(counts: *mut ReasonCounts, reason: Reason) {
    // SAFETY: the pointer is to a map's entry.
    let count = unsafe { place(counts, reason) };
    // SAFETY: the entry belongs to this CPU, see `count`.
    unsafe { *count += 1 };
}

/// Where a reason is counted.
///
/// # Safety
///
/// `counts` must point to a whole [`ReasonCounts`].
#[inline(always)]
unsafe fn place(counts: *mut ReasonCounts, reason: Reason) -> *mut u64 {
    let place = reason as usize % REASON_PLACES;
    // SAFETY: ReasonCounts is REASON_PLACES counters in the order of the reasons' numbers, and `place` is less.
    unsafe { counts.cast::<u64>().add(place) }
}

#[inline(always)]
fn count_drop(slot: u16, reason: Reason) {
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
