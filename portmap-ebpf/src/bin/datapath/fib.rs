//! Questions to the kernel's routing tables (FIB).

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup as KernelParameters},
    helpers::bpf_fib_lookup,
    programs::TcContext,
};
use portmap_ebpf::{
    fib::{FibAnswer, FibQuestion},
    verdict::{AF_INET, AF_INET6, NextHop},
};

use super::skb::LO_IFINDEX;

/// `struct bpf_fib_lookup` as words, so that each part is written and read whole.
#[repr(C, align(8))]
struct Parameters {
    /// Address family, protocol, source port.
    family_to_source_port: u32,
    /// Destination port, and the length of the packet, which is 0: it is not compared with an MTU.
    destination_port: u32,
    ifindex: u32,
    flow_info: u32,
    source: [u32; 4],
    /// The destination; in the answer the neighbour.
    destination: [u32; 4],
    vlan: u32,
    macs: [u32; 3],
}

const _: () = assert!(size_of::<Parameters>() == size_of::<KernelParameters>());

/// Asks how the host itself would send a packet: an output lookup, which is one that comes from the loopback
/// device. The kernel answers it only if forwarding is on for that device, which the daemon ensures; it
/// forwards nothing by that, because no packet for another host arrives there.
#[inline(always)]
pub(super) fn ask(context: &TcContext, question: &FibQuestion) -> FibAnswer {
    let is_v4 = question.version == 4;
    let address = |bytes: [u8; 16]| {
        let bits = u128::from_be_bytes(bytes);
        #[expect(clippy::cast_possible_truncation, reason = "it is a quarter of the address")]
        let word = |shift: u32| ((bits >> shift) as u32).to_be();
        if is_v4 { [word(0), 0, 0, 0] } else { [word(96), word(64), word(32), word(0)] }
    };
    let family = if is_v4 { AF_INET } else { AF_INET6 };
    let mut parameters = Parameters {
        family_to_source_port: family
            | (question.protocol & 0xff) << 8
            | u32::from(question.source_port.to_be()) << 16,
        destination_port: u32::from(question.destination_port.to_be()),
        ifindex: LO_IFINDEX,
        flow_info: 0,
        source: address(question.source.bytes),
        destination: address(question.destination.bytes),
        vlan: 0,
        macs: [0; 3],
    };
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        reason = "it is a small structure"
    )]
    let size = size_of::<Parameters>() as i32;
    // SAFETY: the context is valid, and the pointer is to a local of the size and the form that the helper
    // expects.
    let result = unsafe {
        bpf_fib_lookup(context.as_ptr(), (&raw mut parameters).cast::<KernelParameters>(), size, 0)
    };
    let is_resolved = result == i64::from(BPF_FIB_LKUP_RET_SUCCESS);
    if !is_resolved && result != i64::from(BPF_FIB_LKUP_RET_NO_NEIGH) {
        return FibAnswer::NONE;
    }
    // The neighbour of an IPv4 packet can have an IPv6 address.
    let family = parameters.family_to_source_port & 0xff;
    let [a, b, c, d] = parameters.destination;
    let address = if family == AF_INET { [a, 0, 0, 0] } else { [a, b, c, d] };
    FibAnswer {
        outcome: if is_resolved { FibAnswer::RESOLVED } else { FibAnswer::UNRESOLVED },
        ifindex: parameters.ifindex,
        next_hop: NextHop { family, address },
    }
}
