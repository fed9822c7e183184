//! Validation of the offloads that a sender requests for a frame: the checksum and segmentation (GSO).
//!
//! Both are metadata, and take effect after the verdict. A container's root chooses the position of the
//! checksum (`csum_start` and `csum_offset`, through `PACKET_VNET_HDR`) and, through the payload, its value.
//! A checksum that overwrites bytes that the verdict depends on makes it a different packet. Segmentation
//! depends on `gso_type`, which a program cannot read.
//!
//! The position of the checksum is read from the kernel's `struct sk_buff`: no helper returns it, and which
//! helpers fail because of it has changed between stable releases. The daemon provides the offsets of the
//! fields from the kernel's BTF. For `gso_type`, a helper is called such that it always fails, and its error
//! depends on the type. Packet pointers are invalid afterwards.

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

/// Offsets of fields of `struct sk_buff`, packed by [`SkbLayout`]. The daemon sets it before it loads a
/// program.
#[unsafe(no_mangle)]
static SKB_LAYOUT: u64 = 0;

/// `EINVAL` as a helper's result.
const EINVAL: i64 = -22;
/// `ENOTSUPP`, an error that only the kernel uses.
const ENOTSUPP: i64 = -524;
/// `GSO_BY_FRAGS`: segment size of a frame that is a list of complete packets. Only SCTP uses it.
const GSO_BY_FRAGS: u32 = 0xffff;

/// Bytes at the start of a transport header that no checksum may overwrite: the ports are there. The checksum
/// of UDP is behind them, those of other transports are further behind.
const PROTECTED: usize = 6;
/// More bytes than any frame has.
const MAX_OFFSET: usize = 1 << 31;

/// Returns whether a frame requests only offloads that a container's kernel requests.
///
/// `gso_size` is the result of [`Frame::gso_size`](portmap_ebpf::Frame::gso_size). `transport` is the offset
/// of the header of an unfragmented transport; if it is 0, there is none, and the sender must have computed
/// all checksums itself.
#[inline(always)]
pub(super) fn is_valid(context: &TcContext, gso_size: u32, transport: usize, is_sctp: bool) -> bool {
    let (transport, is_sctp) = hide_from_verifier(context, transport, is_sctp);
    let is_gso = gso_size != 0;
    if is_gso && !has_allowed_gso_type(context, gso_size, is_sctp) {
        return false;
    }
    let Some(checksum) = Checksum::read(context) else { return false };
    match checksum {
        Checksum::Partial { start, offset } => {
            transport != 0
                && offset >= transport + PROTECTED
                && offset < MAX_OFFSET
                && (!is_gso || start == transport)
        }
        // Each segment needs its own checksum, so an honest sender leaves it to the kernel.
        Checksum::Complete => !is_gso,
    }
}

/// Returns both values, but hides from the verifier which ones they can be. Otherwise the verifier would
/// process the code from here on once for each possible value, and IPv6 extension headers cause many. The
/// values pass through a field of the context that is free for programs.
#[inline(always)]
fn hide_from_verifier(context: &TcContext, transport: usize, is_sctp: bool) -> (usize, bool) {
    #[expect(clippy::cast_possible_truncation, reason = "headers are not that long")]
    let word = (transport as u32) << 1 | u32::from(is_sctp);
    // SAFETY: the kernel passes a valid context, to which there is no other reference now.
    let scratch = unsafe { &raw mut (*context.as_ptr().cast::<__sk_buff>()).cb[0] };
    // SAFETY: the pointer is to a word of the context. Volatile, because the compiler would forward the
    // value.
    unsafe { scratch.write_volatile(word) };
    // SAFETY: the pointer is to a word of the context, as above.
    let word = unsafe { scratch.read_volatile() };
    ((word >> 1) as usize, word & 1 != 0)
}

/// Returns whether a GSO frame is TCP, UDP with datagrams of one size (`UDP_SEGMENT`) or SCTP, and not inside
/// a tunnel. The others are UDP that is cut into fragments (UFO), which no stack sends any more, and tunnels,
/// whose segments have headers that the MTU check does not include.
#[inline(always)]
fn has_allowed_gso_type(context: &TcContext, gso_size: u32, is_sctp: bool) -> bool {
    /// Bytes by which the frame would grow.
    const GROWTH: i32 = 28;
    /// Length of an inner MAC header, which is more than the growth and so an error.
    const INNER_MAC: u64 = 50;
    /// `BPF_ADJ_ROOM_ENCAP_L2_SHIFT`.
    const INNER_MAC_SHIFT: u32 = 56;
    const FLAGS: u64 = BPF_F_ADJ_ROOM_FIXED_GSO as u64
        | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 as u64
        | BPF_F_ADJ_ROOM_ENCAP_L4_UDP as u64
        | INNER_MAC << INNER_MAC_SHIFT;

    // `bpf_skb_net_grow` looks at the type first (ENOTSUPP if it is neither TCP nor UDP_L4), then for a
    // tunnel (EALREADY), and then at these lengths (EINVAL).
    // SAFETY: the context is valid. The helper always fails before it changes the frame, see above.
    let error = unsafe { bpf_skb_adjust_room(context.as_ptr().cast(), GROWTH, BPF_ADJ_ROOM_MAC, FLAGS) };
    if gso_size == GSO_BY_FRAGS { is_sctp && error == ENOTSUPP } else { error == EINVAL }
}

/// State of a frame's checksum.
enum Checksum {
    /// The kernel or the device will sum the bytes from `start` on and write the sum to `offset`. Both are in
    /// bytes from the start of the frame; a position before that is a very large number.
    Partial { start: usize, offset: usize },
    /// It will not be written.
    Complete,
}

impl Checksum {
    /// Reads the state; `None` if the kernel's memory cannot be read, which does not happen.
    #[inline(always)]
    fn read(context: &TcContext) -> Option<Self> {
        // SAFETY: it is a constant. Volatile, because the daemon replaces the value that the compiler sees.
        let layout = SkbLayout::unpack(unsafe { (&raw const SKB_LAYOUT).read_volatile() });
        let summed: u8 = field(context, layout.summed)?;
        if summed >> (layout.summed_shift & 7) & 3 != CHECKSUM_PARTIAL {
            return Some(Self::Complete);
        }
        let [start, offset]: [u16; 2] = field(context, layout.checksum)?;
        let [head, data]: [usize; 2] = field(context, layout.head)?;
        // `data` points to the Ethernet header while a classifier runs.
        let start = head.wrapping_add(usize::from(start)).wrapping_sub(data);
        Some(Self::Partial { start, offset: start.wrapping_add(usize::from(offset)) })
    }
}

/// Reads a field of the `struct sk_buff` behind a context.
#[inline(always)]
fn field<T>(context: &TcContext, at: u16) -> Option<T> {
    let skb = context.as_ptr().cast::<u8>();
    // SAFETY: the kernel passes the `struct sk_buff` itself to a classifier, and `at` is the offset of a
    // field in it; the helper fails if the memory cannot be read.
    unsafe { bpf_probe_read_kernel(skb.wrapping_add(usize::from(at)).cast::<T>()) }.ok()
}
