//! What a sender has left to others to do with a frame: a checksum, and segments.
//!
//! Both are said beside the frame, and done when a verdict has long been given: where a checksum goes is a number of the
//! sender's own choice (`csum_start`, `csum_offset`; a container's root sets it with `PACKET_VNET_HDR`), and so is what it
//! comes to. Written over what a verdict has read, it makes another packet of this one. How a frame is cut depends on a
//! type (`gso_type`) that a program does not see.
//!
//! Where the checksum goes is read from the kernel's own `struct sk_buff`: no helper tells, and what helpers refuse because of
//! it has changed between releases of one line. The daemon says where the fields are, by the kernel's type information. For
//! the type, a helper is called so that it refuses in any case. Packet pointers from before are invalid afterwards.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        __sk_buff, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO,
        bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    },
    helpers::{bpf_probe_read_kernel, bpf_skb_adjust_room},
    programs::TcContext,
};
use portmap_common::skb::{CHECKSUM_PARTIAL, SkbLayout};

/// Where fields of `struct sk_buff` are, as [`SkbLayout`] packs it. The daemon sets it before it loads a program.
#[unsafe(no_mangle)]
static SKB_LAYOUT: u64 = 0;

/// `EINVAL`, as helpers return it.
const EINVAL: i64 = -22;
/// `ENOTSUPP`, which is the kernel's own.
const ENOTSUPP: i64 = -524;
/// `GSO_BY_FRAGS`: the size of segments that are cut already. Only SCTP has those.
const CUT_ALREADY: u32 = 0xffff;

/// Bytes at the front of a transport header that no checksum may be written to. It is where ports are; the checksum of UDP
/// follows, those of other transports are further behind.
const KEPT: usize = 6;
/// More bytes than any frame has.
const MOST: usize = 1 << 31;

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
    let Some(sum) = Sum::read(context) else { return false };
    match sum {
        Sum::Left { start, place } => {
            transport != 0 && place >= transport + KEPT && place < MOST && (!is_cut || start == transport)
        }
        // Every segment needs a sum of its own, so honest ones leave it.
        Sum::Done => !is_cut,
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
    unsafe { place.write_volatile(word) };
    // SAFETY: the same.
    let word = unsafe { place.read_volatile() };
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

/// What the kernel knows of a frame's checksum.
enum Sum {
    /// It is left to others: what is summed up begins at `start`, and the sum goes to `place`, in bytes from the frame's
    /// beginning. What is in front of that is a very large number.
    Left { start: usize, place: usize },
    /// Nobody has to write it.
    Done,
}

impl Sum {
    /// None if the kernel's memory cannot be read, which does not happen.
    #[inline(always)]
    fn read(context: &TcContext) -> Option<Self> {
        // SAFETY: it is a constant. Volatile, because its value is not the one that the compiler sees.
        let layout = SkbLayout::unpack(unsafe { (&raw const SKB_LAYOUT).read_volatile() });
        let summed: u8 = field(context, layout.summed)?;
        if summed >> (layout.summed_shift & 7) & 3 != CHECKSUM_PARTIAL {
            return Some(Self::Done);
        }
        let [start, offset]: [u16; 2] = field(context, layout.checksum)?;
        let [head, data]: [usize; 2] = field(context, layout.head)?;
        // Classifiers see the frame from its Ethernet header, at which `data` points while they run.
        let start = head.wrapping_add(usize::from(start)).wrapping_sub(data);
        Some(Self::Left { start, place: start.wrapping_add(usize::from(offset)) })
    }
}

/// Reads a field of the `struct sk_buff` behind a context.
#[inline(always)]
fn field<T>(context: &TcContext, at: u16) -> Option<T> {
    let skb = context.as_ptr().cast::<u8>();
    // SAFETY: to a classifier the kernel passes the `struct sk_buff` itself, of which `at` is the offset of a field; the
    // helper fails if there is nothing to be read.
    unsafe { bpf_probe_read_kernel(skb.wrapping_add(usize::from(at)).cast::<T>()) }.ok()
}
