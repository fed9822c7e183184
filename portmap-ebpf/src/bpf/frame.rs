//! The frame behind a `__sk_buff`.

use aya_ebpf::{EbpfContext as _, bindings::__sk_buff, programs::TcContext};
use portmap_ebpf::{Frame, frame::HEAD};

/// `PACKET_HOST` of `linux/if_packet.h`.
const PACKET_HOST: u32 = 0;

/// [`HEAD`] as the kernel wants it.
#[expect(clippy::cast_possible_truncation, reason = "it is a small number")]
const HEAD_LENGTH: u32 = HEAD as u32;

/// A frame whose head is known to be readable, or known to be missing.
pub(super) struct Skb<'a> {
    context: &'a TcContext,
    head: Option<&'a [u8; HEAD]>,
}

impl<'a> Skb<'a> {
    /// Looks at the frame behind `context`.
    #[inline(always)]
    pub(super) fn new(context: &'a TcContext) -> Self {
        let mut head = head(context);
        if head.is_none() && context.len() >= HEAD_LENGTH {
            // The head lies in fragments of the buffer; have the kernel move it to the front.
            if context.skb.pull_data(HEAD_LENGTH).is_ok() {
                head = self::head(context);
            }
        }
        Self { context, head }
    }

    #[inline(always)]
    fn skb(&self) -> &__sk_buff {
        // SAFETY: the kernel passes a valid context that lives as long as the program runs.
        unsafe { &*self.context.as_ptr().cast::<__sk_buff>() }
    }
}

#[inline(always)]
fn head(context: &TcContext) -> Option<&[u8; HEAD]> {
    let start = context.data();
    if start + HEAD > context.data_end() {
        return None;
    }
    // SAFETY: the packet's linear part has at least HEAD bytes at `start`, as just checked, an array of bytes
    // has no alignment, and no helper that moves the packet runs while the reference is in use.
    Some(unsafe { &*(start as *const [u8; HEAD]) })
}

impl Frame for Skb<'_> {
    #[inline(always)]
    fn head(&self) -> Option<&[u8; HEAD]> {
        self.head
    }

    #[inline(always)]
    fn bytes<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.context.load::<[u8; N]>(offset).ok()
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        self.context.len()
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        self.skb().ifindex
    }

    #[inline(always)]
    fn is_for_this_station(&self) -> bool {
        self.skb().pkt_type == PACKET_HOST
    }

    #[inline(always)]
    fn has_vlan_tag(&self) -> bool {
        self.skb().vlan_present != 0
    }
}
