//! A packet at an interface without Ethernet headers, such as a tunnel, as a frame with one.
//!
//! The decision code reads frames, so the header is made up: it has the packet's Ethertype, and zero
//! addresses. [`add_header`] adds it to packets that go to a container.

use core::arch::asm;

use aya_ebpf::{EbpfContext as _, helpers::bpf_skb_change_head, programs::TcContext};
use portmap_ebpf::{Frame, frame::Head};

use super::{
    maps,
    skb::{KernelFrame, Linear, Skb, linear, load, skb},
};

/// Length in bytes of the missing header.
const MISSING: usize = 14;
const MISSING_LEN: u32 = 14;
/// Offset of the Ethertype in it.
const ETHER_TYPE: usize = 12;

/// A packet.
pub(super) struct L3Skb<'a> {
    context: &'a TcContext,
    skb: Skb<'a>,
}

impl<'a> L3Skb<'a> {
    /// Returns the packet behind `context`.
    #[inline(always)]
    pub(super) const fn new(context: &'a TcContext) -> Self {
        Self { context, skb: Skb::new(context) }
    }
}

/// The start of a packet behind the missing header.
#[derive(Clone, Copy)]
struct Behind {
    ether_type: u16,
    packet: Linear,
}

impl Head for Behind {
    #[inline(always)]
    fn byte<const AT: usize>(self) -> u8 {
        if AT < MISSING { 0 } else { load!("u8", u8, self.packet.start, AT.wrapping_sub(MISSING)) }
    }

    #[inline(always)]
    fn be16<const AT: usize>(self) -> u16 {
        if AT == ETHER_TYPE {
            self.ether_type
        } else if AT < MISSING {
            0
        } else {
            load!("u16", u16, self.packet.start, AT.wrapping_sub(MISSING))
        }
    }

    #[inline(always)]
    fn be32<const AT: usize>(self) -> u32 {
        if AT < MISSING { 0 } else { load!("u32", u32, self.packet.start, AT.wrapping_sub(MISSING)) }
    }

    #[inline(always)]
    fn be64<const AT: usize>(self) -> u64 {
        if AT < MISSING { 0 } else { load!("u64", u64, self.packet.start, AT.wrapping_sub(MISSING)) }
    }
}

#[inline(always)]
fn ether_type(context: &TcContext) -> u16 {
    #[expect(clippy::cast_possible_truncation, reason = "the kernel keeps sixteen bits in network order")]
    let ether_type = skb(context).protocol as u16;
    u16::from_be(ether_type)
}

impl KernelFrame for L3Skb<'_> {
    const LACKS_HEADER: bool = true;
}

impl Frame for L3Skb<'_> {
    #[inline(always)]
    fn head<const N: usize>(&self) -> Option<impl Head> {
        let bytes = N.saturating_sub(MISSING);
        let ether_type = ether_type(self.context);
        if let Some(packet) = linear(self.context, bytes) {
            return Some(Behind { ether_type, packet });
        }
        let length = u32::try_from(bytes).ok()?;
        if self.context.len() < length || self.context.skb.pull_data(length).is_err() {
            return None;
        }
        linear(self.context, bytes).map(|packet| Behind { ether_type, packet })
    }

    #[inline(always)]
    fn load_be32s<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        self.skb.load_be32s(offset.wrapping_sub(MISSING))
    }

    #[inline(always)]
    fn linearize(&self, max_bytes: u32) -> bool {
        self.skb.linearize(max_bytes)
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        self.skb.length() + MISSING_LEN
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        self.skb.ifindex()
    }

    #[inline(always)]
    fn ingress_ifindex(&self) -> u32 {
        self.skb.ingress_ifindex()
    }

    #[inline(always)]
    fn is_packet_host(&self) -> bool {
        self.skb.is_packet_host()
    }

    #[inline(always)]
    fn vlan_tag(&self) -> Option<u16> {
        None
    }

    #[inline(always)]
    fn mtu_allows(&self, ifindex: u32, max_frame_len: u32) -> bool {
        self.skb.mtu_allows(ifindex, max_frame_len)
    }

    #[inline(always)]
    fn has_valid_offloads(&self, _transport: usize, _is_sctp: bool) -> bool {
        // Only packets of containers are checked, and their interfaces have Ethernet headers.
        true
    }

    #[inline(always)]
    fn gso_size(&self) -> u32 {
        self.skb.gso_size()
    }

    #[inline(always)]
    fn priority(&self) -> u32 {
        self.skb.priority()
    }

    #[inline(always)]
    fn mark(&self) -> u32 {
        self.skb.mark()
    }

    #[inline(always)]
    fn forget(&self, number: u32) -> u32 {
        self.skb.forget(number)
    }
}

/// Adds the missing header, with the MAC address of the containers as destination. Returns false if the kernel
/// is out of memory.
#[inline(always)]
pub(super) fn add_header(context: &TcContext) -> bool {
    let ether_type = ether_type(context);
    // SAFETY: the context is valid. The helper adds zero bytes in front of the packet.
    let added = unsafe { bpf_skb_change_head(context.as_ptr().cast(), MISSING_LEN, 0) };
    added == 0
        && context.store(0, &maps::config().mac.octets(), 0).is_ok()
        && context.store(ETHER_TYPE, &ether_type.to_be_bytes(), 0).is_ok()
}
