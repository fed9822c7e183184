//! The frame behind a `__sk_buff`.

use core::arch::asm;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, bpf_check_mtu_flags::BPF_MTU_CHK_SEGS},
    helpers::bpf_check_mtu,
    programs::TcContext,
};
use portmap_common::marks::{DRY_RUN_HWTSTAMP, DRY_RUN_MARK};
use portmap_ebpf::{Frame, frame::Head};

use super::offload;

/// Length in bytes of an Ethernet header.
const ETHERNET: u32 = 14;

/// The loopback device has interface index 1 in every network namespace.
pub(super) const LO_IFINDEX: u32 = 1;

/// `PACKET_HOST` of `linux/if_packet.h`.
pub(super) const PACKET_HOST: u32 = 0;

/// A frame.
pub(super) struct Skb<'a> {
    context: &'a TcContext,
}

impl<'a> Skb<'a> {
    /// Returns the frame behind `context`.
    #[inline(always)]
    pub(super) const fn new(context: &'a TcContext) -> Self {
        Self { context }
    }
}

#[inline(always)]
pub(super) fn skb(context: &TcContext) -> &__sk_buff {
    // SAFETY: the kernel passes a valid context that lives as long as the program runs.
    unsafe { &*context.as_ptr().cast::<__sk_buff>() }
}

/// Returns whether this is a dry run, see [`portmap_ebpf::verdict_codec`].
#[inline(always)]
pub(super) fn is_dry_run(context: &TcContext) -> bool {
    let skb = skb(context);
    // SAFETY: the reference is valid. Volatile, because the kernel allows loads of the whole field only.
    skb.mark == DRY_RUN_MARK && unsafe { (&raw const skb.hwtstamp).read_volatile() } == DRY_RUN_HWTSTAMP
}

/// Returns whether an interface's MTU allows a frame. With `BPF_MTU_CHK_SEGS` it checks each segment of a GSO
/// frame; without that flag a GSO frame is always allowed.
#[inline(always)]
pub(super) fn mtu_allows(context: &TcContext, ifindex: u32, flags: u64) -> bool {
    check_mtu(context, ifindex, flags).0 <= 0
}

/// Returns the kernel's result, and the MTU. The result is 0 if the MTU allows the frame, and negative if
/// there is no such interface, through which no frame can leave anyway.
#[inline(always)]
fn check_mtu(context: &TcContext, ifindex: u32, flags: u64) -> (i64, u32) {
    let mut mtu = 0;
    // SAFETY: the context is valid, and the pointer is to a local, into which the kernel writes the MTU.
    let result = unsafe { bpf_check_mtu(context.as_ptr(), ifindex, &raw mut mtu, 0, flags) };
    (result, mtu)
}

/// The start of bytes in the linear part of a packet.
#[derive(Clone, Copy)]
pub(super) struct Linear {
    pub(super) start: usize,
}

/// Returns the first `length` bytes if they are in the linear part.
#[inline(always)]
pub(super) fn linear(context: &TcContext, length: usize) -> Option<Linear> {
    let start = context.data();
    if start + length > context.data_end() { None } else { Some(Linear { start }) }
}

/// Loads a number from a packet. This is inline assembly, because the compiler assembles a number of unknown
/// alignment from single bytes, although the kernel's JIT compiler can load it misaligned.
macro_rules! load {
    ($size:literal, $type:ty, $start:expr, $at:expr) => {{
        let loaded: $type;
        // SAFETY: the instruction reads from the packet, whose bounds have been checked; the verifier rejects
        // a program that reads elsewhere, or after the packet has moved. It has no side effects.
        unsafe {
            asm!(
                concat!("{loaded} = *(", $size, " *)({start} + {at})"),
                loaded = out(reg) loaded,
                start = in(reg) $start,
                at = const $at,
                options(pure, readonly, nostack)
            );
        }
        <$type>::from_be(loaded)
    }};
}

impl Head for Linear {
    #[inline(always)]
    fn byte<const AT: usize>(self) -> u8 {
        load!("u8", u8, self.start, AT)
    }

    #[inline(always)]
    fn be16<const AT: usize>(self) -> u16 {
        load!("u16", u16, self.start, AT)
    }

    #[inline(always)]
    fn be32<const AT: usize>(self) -> u32 {
        load!("u32", u32, self.start, AT)
    }

    #[inline(always)]
    fn be64<const AT: usize>(self) -> u64 {
        load!("u64", u64, self.start, AT)
    }
}

/// A frame of the kernel's.
pub(super) trait KernelFrame: Frame {
    /// Whether it has no Ethernet header.
    const LACKS_HEADER: bool;
}

impl KernelFrame for Skb<'_> {
    const LACKS_HEADER: bool = false;
}

impl Frame for Skb<'_> {
    #[inline(always)]
    fn head<const N: usize>(&self) -> Option<impl Head> {
        let head = linear(self.context, N);
        if head.is_some() {
            return head;
        }
        // The bytes lie in fragments of the buffer: the kernel must pull them into the linear part.
        let bytes = u32::try_from(N).ok()?;
        if self.context.len() < bytes || self.context.skb.pull_data(bytes).is_err() {
            return None;
        }
        linear(self.context, N)
    }

    #[inline(always)]
    fn load_be32s<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        let words = self.context.load::<[u32; N]>(offset).ok()?;
        Some(words.map(u32::from_be))
    }

    #[inline(always)]
    fn linearize(&self, max_bytes: u32) -> bool {
        // Fragments of the buffer can be a sender's own pages; the linear part is always the kernel's.
        let length = self.context.len();
        self.context.skb.pull_data(if length < max_bytes { length } else { max_bytes }).is_ok()
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        self.context.len()
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        skb(self.context).ifindex
    }

    #[inline(always)]
    fn ingress_ifindex(&self) -> u32 {
        skb(self.context).ingress_ifindex
    }

    #[inline(always)]
    fn is_packet_host(&self) -> bool {
        skb(self.context).pkt_type == PACKET_HOST
    }

    #[inline(always)]
    fn vlan_tag(&self) -> Option<u16> {
        let skb = skb(self.context);
        if skb.vlan_present == 0 { None } else { u16::try_from(skb.vlan_tci & 0xffff).ok() }
    }

    #[inline(always)]
    fn mtu_allows(&self, ifindex: u32, max_frame_len: u32) -> bool {
        let (result, mtu) = check_mtu(self.context, ifindex, u64::from(BPF_MTU_CHK_SEGS));
        result < 0 || (result == 0 && max_frame_len <= mtu + ETHERNET)
    }

    #[inline(always)]
    fn has_valid_offloads(&self, transport: usize, is_sctp: bool) -> bool {
        // A test run has no offloads.
        is_dry_run(self.context) || offload::is_valid(self.context, self.gso_size(), transport, is_sctp)
    }

    #[inline(always)]
    fn gso_size(&self) -> u32 {
        skb(self.context).gso_size
    }

    #[inline(always)]
    fn priority(&self) -> u32 {
        skb(self.context).priority
    }

    #[inline(always)]
    fn mark(&self) -> u32 {
        skb(self.context).mark
    }

    #[inline(always)]
    fn forget(&self, number: u32) -> u32 {
        let (mut number, any) = (u64::from(number), u64::from(self.context.len()));
        // SAFETY: the instructions change no memory. The verifier does not see that they change nothing at all.
        unsafe {
            asm!(
                "{number} ^= {any}",
                "{number} ^= {any}",
                number = inout(reg) number,
                any = in(reg) any,
                options(pure, nomem, nostack)
            );
        }
        #[expect(clippy::cast_possible_truncation, reason = "it had 32 bits")]
        let number = number as u32;
        number
    }
}

pub(super) use load;
