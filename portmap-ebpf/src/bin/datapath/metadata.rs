//! Writes a packet's metadata in its `__sk_buff`.

use aya_ebpf::{EbpfContext as _, bindings::__sk_buff, helpers::bpf_skb_change_type, programs::TcContext};

use super::skb::PACKET_HOST;

/// Sets `skb->mark`.
#[inline(always)]
pub(super) fn set_mark(context: &TcContext, mark: u32) {
    // SAFETY: the kernel passes a valid context, to which there is no other reference now.
    unsafe { (*context.as_ptr().cast::<__sk_buff>()).mark = mark };
}

/// Sets `skb->tc_index`.
#[inline(always)]
pub(super) fn set_tc_index(context: &TcContext, index: u32) {
    // SAFETY: the kernel passes a valid context, to which there is no other reference now.
    unsafe { (*context.as_ptr().cast::<__sk_buff>()).tc_index = index };
}

/// Sets `skb->priority`.
#[inline(always)]
pub(super) fn set_priority(context: &TcContext, priority: u32) {
    // SAFETY: the kernel passes a valid context, to which there is no other reference now.
    unsafe { (*context.as_ptr().cast::<__sk_buff>()).priority = priority };
}

/// Sets `skb->pkt_type` to `PACKET_HOST`.
#[inline(always)]
pub(super) fn set_packet_host(context: &TcContext) {
    // SAFETY: the context is valid. The helper fails only for values that are no types of received packets.
    unsafe { bpf_skb_change_type(context.as_ptr().cast(), PACKET_HOST) };
}
