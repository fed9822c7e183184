//! Logging of verdicts, for debugging (feature `datapath-log`).
//!
//! A log record needs more of the stack than the programs of the hooks have left, and more instructions than the
//! verifier should see once per verdict. So a program hands its verdict over to `pm_log`, which logs it and then
//! executes it. The daemon fills the program array of that tail call only while it logs.

use aya_ebpf::{
    btf_maps::{Array, PerCpuArray, ProgramArray},
    macros::btf_map,
    programs::TcContext,
};
use portmap_common::{
    event::DropEvent,
    hook_point::HookPoint,
    verdict_log::{LOG_WINDOW, LogFilter, LogLimiter, MAX_RECORDS_PER_WINDOW, VerdictRecord},
};
use portmap_ebpf::{
    Tables as _, sample,
    verdict::{Origin, Verdict},
    verdict_codec,
};

use super::{
    counters::add_one,
    maps::{self, Maps},
    skb::Skb,
};

/// A verdict between the program that found it and the one that logs and executes it.
struct Pending {
    verdict: Verdict,
    program: u32,
}

#[btf_map(name = "pm_log_filter")]
static PM_LOG_FILTER: Array<LogFilter, 1> = Array::new();
#[btf_map(name = "pm_log_limiter")]
static PM_LOG_LIMITER: Array<LogLimiter, 1> = Array::new();
#[btf_map(name = "pm_log_program")]
static PM_LOG_PROGRAM: ProgramArray<1> = ProgramArray::new();
/// Room for a [`Pending`], whose type BTF cannot describe.
#[btf_map(name = "pm_log_pending")]
static PM_LOG_PENDING: PerCpuArray<[u64; PENDING_WORDS], 1> = PerCpuArray::new();

const PENDING_WORDS: usize = size_of::<Pending>().div_ceil(size_of::<u64>());
const _: () = assert!(align_of::<Pending>() <= align_of::<u64>());

/// Continues in `pm_log` if this verdict may have to be logged. Returns if not.
#[inline(always)]
pub(super) fn hand_over(context: &TcContext, point: HookPoint, verdict: &Verdict) {
    if matches!(
        verdict,
        Verdict::AlreadyHandled | Verdict::AssignFlow(_) | Verdict::ToEth0(_) | Verdict::ToLoopback
    ) {
        return;
    }
    let Some(filter) = PM_LOG_FILTER.get(0) else { return };
    // A packet to the container that is dropped has another's slot; `pm_log` looks up its port.
    let may_be_slot =
        filter.slot == 0 || matches!(verdict, Verdict::Drop { .. }) || concerns(verdict, filter.slot);
    if filter.is_off() || !may_be_slot {
        return;
    }
    let Some(pending) = PM_LOG_PENDING.get_ptr_mut(0) else { return };
    // SAFETY: the entry has the size and the alignment of the type. It belongs to this CPU, and a tc program is
    // neither preempted nor interrupted by another one.
    unsafe { pending.cast::<Pending>().write(Pending { verdict: *verdict, program: point.number() }) };
    // SAFETY: the program in the map is of this type and takes this context.
    unsafe { PM_LOG_PROGRAM.tail_call(context, 0) };
}

/// Returns whether a slot is that of a verdict's sender or receiver.
#[inline(always)]
fn concerns(verdict: &Verdict, slot: u32) -> bool {
    let is = |other: u16| u32::from(other) == slot;
    match *verdict {
        Verdict::Drop { slot, .. }
        | Verdict::DeliverLocal(slot)
        | Verdict::ToOutside { slot, .. }
        | Verdict::ToHost(slot) => is(slot),
        Verdict::ToContainer { origin: Origin::Container(sender), owner, .. } => is(sender) || is(owner.slot),
        Verdict::ToContainer { owner, .. } => is(owner.slot),
        _ => false,
    }
}

/// Logs the pending verdict if the filter selects it, and returns it. Its fields are in a map, so the verifier
/// accepts reads of those that a verdict does not have.
#[inline(always)]
pub(super) fn pending(context: &TcContext) -> Option<&'static Verdict> {
    let pending = PM_LOG_PENDING.get_ptr(0)?;
    // SAFETY: `hand_over` has just written it on this CPU.
    let pending = unsafe { &*pending.cast::<Pending>() };
    log(context, pending);
    Some(&pending.verdict)
}

#[inline(always)]
fn log(context: &TcContext, pending: &Pending) {
    let (Some(filter), Some(limiter)) = (PM_LOG_FILTER.get(0), PM_LOG_LIMITER.get_ptr_mut(0)) else { return };
    let mut record = VerdictRecord { program: pending.program, ..VerdictRecord::default() };
    sample::describe(&Skb::new(context), &mut record.packet);
    if !is_selected(context, *filter, &pending.verdict, &record.packet) {
        return;
    }
    if may_log(limiter, maps::now()) {
        record.verdict = verdict_codec::encode(&pending.verdict);
        // SAFETY: the record consists of integers without padding, and outlives the slice.
        let bytes = unsafe {
            core::slice::from_raw_parts((&raw const record).cast::<u8>(), size_of::<VerdictRecord>())
        };
        aya_log_ebpf::info!(context, target: "", "{:x}", bytes);
    }
    // SAFETY: the pointer is to a map's entry.
    let selected = unsafe { &raw mut (*limiter).selected };
    // After the record, so that the daemon does not miss one that is on its way.
    // SAFETY: the counter is in a map's entry and aligned as all of it.
    unsafe { add_one(selected) };
}

#[inline(always)]
fn is_selected(context: &TcContext, filter: LogFilter, verdict: &Verdict, packet: &DropEvent) -> bool {
    let LogFilter { slot, port } = filter;
    let is = |other: u16| u32::from(other) == port;
    if port != 0 && !is(packet.source_port) && !is(packet.destination_port) {
        return false;
    }
    let owner = || Maps::new(context).port(packet.destination_port).slot;
    slot == 0 || concerns(verdict, slot) || u32::from(owner()) == slot
}

/// Returns whether the limit allows a record now, and charges it if so.
#[inline(always)]
fn may_log(limiter: *mut LogLimiter, now: u64) -> bool {
    // SAFETY: the pointer is to a map's entry. Concurrent changes by other CPUs can cause an extra record.
    let LogLimiter { start, taken, .. } = unsafe { &mut *limiter };
    if now.wrapping_sub(*start) > LOG_WINDOW {
        *start = now;
        *taken = 0;
    }
    if *taken >= MAX_RECORDS_PER_WINDOW {
        return false;
    }
    *taken += 1;
    true
}
