//! What a sender has left to others to do with a frame: a checksum, and segments.
//!
//! Both are said beside the frame, and done when a verdict has long been given: where a checksum goes is a number of the
//! sender's own choice (`csum_start`, `csum_offset`; a container's root sets it with `PACKET_VNET_HDR`), and so is what it
//! comes to. Written over what a verdict has read, it makes another packet of this one. How a frame is cut depends on a
//! type (`gso_type`) that a program does not see.
//!
//! So the kernel is asked, by helpers that refuse what must not be, and are called so that they refuse in any case: then
//! they change nothing. Packet pointers from before are invalid afterwards.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        __sk_buff, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO,
        bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    },
    helpers::{bpf_skb_adjust_room, bpf_skb_change_tail},
    programs::TcContext,
};

/// `EINVAL`, as helpers return it.
const EINVAL: i64 = -22;
/// `ENOTSUPP`, which is the kernel's own.
const ENOTSUPP: i64 = -524;
/// `GSO_BY_FRAGS`: the size of segments that are cut already. Only SCTP has those.
const CUT_ALREADY: u32 = 0xffff;

/// Bytes at the front of a transport header that no checksum may be written to. It is where ports are; the checksum of UDP
/// follows, those of other transports are further behind.
const KEPT: usize = 6;

/// Whether only such things are left to do as a container's own kernel leaves.
///
/// `segment` is what [`Frame::segment`](portmap_ebpf::Frame::segment) says. `transport` is where the header of a transport
/// starts that is all in this packet; 0 if there is none, and then the sender has to sum up for itself.
#[inline(always)]
pub(super) fn is_sound(context: &TcContext, segment: u32, transport: usize, is_sctp: bool) -> bool {
    let (transport, is_sctp) = forgotten(context, transport, is_sctp);
    let is_cut = segment != 0;
    if is_cut && !is_cut_as_usual(context, segment, is_sctp) {
        return false;
    }
    match is_partial(context) {
        Some(true) => transport != 0 && is_summed_behind(context, transport + KEPT),
        // Every segment needs a sum of its own, so honest ones leave it. Of others a program has moved the headers, and what
        // the kernel knows of where they are is no longer true.
        Some(false) => !is_cut,
        None => false,
    }
}

/// The same values, of which the verifier no longer knows which ones they may be: else it takes the ways from here once
/// more for each of them, and with IPv6's extensions they are many. They pass through a place in the context that belongs
/// to programs.
#[inline(always)]
fn forgotten(context: &TcContext, transport: usize, is_sctp: bool) -> (usize, bool) {
    #[expect(clippy::cast_possible_truncation, reason = "headers are not that long")]
    let word = (transport as u32) << 1 | u32::from(is_sctp);
    // SAFETY: the kernel passes a valid context, which nothing else refers to now.
    let place = unsafe { &raw mut (*context.as_ptr().cast::<__sk_buff>()).cb[0] };
    // SAFETY: the pointer is to a word of the context. Volatile, because the compiler knows what was written.
    let word = unsafe {
        place.write_volatile(word);
        place.read_volatile()
    };
    ((word >> 1) as usize, word & 1 != 0)
}

/// Whether a frame that is to be cut is one of TCP, of UDP with datagrams of one size (`UDP_SEGMENT`) or of SCTP, and not
/// inside a tunnel. Others are UDP that is cut into fragments of any length (UFO), which no stack sends any more; and inside
/// a tunnel, more headers are on each segment than anybody has counted.
#[inline(always)]
fn is_cut_as_usual(context: &TcContext, segment: u32, is_sctp: bool) -> bool {
    /// Bytes that the frame would grow by.
    const MORE: i32 = 28;
    /// Bytes of an inner MAC header, of which the former are said to have room. They have not.
    const INNER_MAC: u64 = 50;
    /// `BPF_ADJ_ROOM_ENCAP_L2_SHIFT`.
    const INNER_MAC_SHIFT: u32 = 56;
    const FLAGS: u64 = BPF_F_ADJ_ROOM_FIXED_GSO as u64
        | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 as u64
        | BPF_F_ADJ_ROOM_ENCAP_L4_UDP as u64
        | INNER_MAC << INNER_MAC_SHIFT;

    // `bpf_skb_net_grow` looks at the type first (ENOTSUPP if it is neither TCP nor UDP_L4), then for a tunnel (EALREADY),
    // and then at these lengths (EINVAL).
    // SAFETY: the context is valid. The helper always fails before it changes the frame, see above.
    let refused = unsafe { bpf_skb_adjust_room(context.as_ptr().cast(), MORE, BPF_ADJ_ROOM_MAC, FLAGS) };
    if segment == CUT_ALREADY { is_sctp && refused == ENOTSUPP } else { refused == EINVAL }
}

/// Whether the frame's checksum is left to others (`CHECKSUM_PARTIAL`); none if there is no memory to find out.
///
/// The helper for changing a checksum leaves that alone which has yet to be computed
/// (`inet_proto_csum_replace4`). The destination MAC address stands in for a checksum: it gets another value if anything
/// else does, and whoever sends the frame on writes the neighbour's over it.
#[inline(always)]
fn is_partial(context: &TcContext) -> Option<bool> {
    let before = context.load::<u16>(0).ok()?;
    context.l4_csum_replace(0, 0, 1, size_of::<u16>() as u64).ok()?;
    let after = context.load::<u16>(0).ok()?;
    if before == after {
        return Some(true);
    }
    context.store(0, &before, 0).ok()?;
    Some(false)
}

/// Whether the checksum that is left to others will be written at `offset` or behind.
///
/// No frame can be made so short that its checksum has no place (`__bpf_skb_min_len`): to end one byte behind `offset` is
/// refused if the second byte of the checksum is further behind. Else the frame is cut off, and must be dropped.
#[inline(always)]
fn is_summed_behind(context: &TcContext, offset: usize) -> bool {
    #[expect(clippy::cast_possible_truncation, reason = "headers are not that long")]
    let end = offset as u32 + 1;
    // SAFETY: the context is valid, and nobody has pointers into the packet any more: the verifier sees to that. No header
    // that is followed is long enough for the helper to refuse because of its own limit (16 KiB).
    unsafe { bpf_skb_change_tail(context.as_ptr().cast(), end, 0) == EINVAL }
}
