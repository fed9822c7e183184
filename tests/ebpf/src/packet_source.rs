//! BPF object of the benchmarks: a source of packets, and two minimal programs as baselines.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
#[expect(clippy::needless_pass_by_value, reason = "the macro hands the context over by value")]
mod programs {
    use aya_ebpf::{
        bindings::{TC_ACT_UNSPEC, xdp_action},
        btf_maps::Array,
        helpers::{bpf_ktime_get_ns, bpf_redirect_peer},
        macros::{btf_map, classifier, xdp},
        programs::{TcContext, XdpContext},
    };
    use portmap_common::slot::{HOST_SLOT, veth_ifindex};

    /// Length of the packet sequence; a power of two. Its entries have four bytes and are read sequentially,
    /// so they displace little of the measured code's data from the caches.
    const SEQUENCE: usize = 32_768;

    /// Number of frames that the kernel receives in one batch.
    const BATCH: u32 = 64;

    /// Number of batches whose times are kept; a power of two.
    const BATCHES: usize = 16_384;

    /// Offset of the destination port: behind an Ethernet header, an IPv4 header without options, and the
    /// source port.
    const DESTINATION_PORT: usize = 14 + 20 + 2;

    /// Offset of the owner's slot: the start of the UDP payload.
    const SLOT: usize = 14 + 20 + 8;

    /// The variable fields of a packet.
    #[repr(C)]
    struct Packet {
        /// Destination port, in network order.
        port: u16,
        /// The slot that owns it.
        slot: u16,
    }

    /// The packet sequence, which is repeated.
    #[btf_map(name = "bench_packets")]
    static BENCH_PACKETS: Array<[Packet; SEQUENCE], 1> = Array::new();

    /// Number of packets so far, which is the position of the next one in the sequence.
    #[btf_map(name = "bench_cursor")]
    static BENCH_CURSOR: Array<u32, 1> = Array::new();

    /// Start times of batches by number. All frames of a batch are created before the first one is received,
    /// so the time to the next start is the time of one whole batch.
    #[btf_map(name = "bench_times")]
    static BENCH_TIMES: Array<[u64; BATCHES], 1> = Array::new();

    /// Turns a frame into the next packet and passes it to the kernel.
    #[xdp]
    fn bench_source(context: XdpContext) -> u32 {
        // An unchanged frame is the wrong packet and must not reach a classifier.
        fill_in(&context).map_or(xdp_action::XDP_DROP, |()| xdp_action::XDP_PASS)
    }

    #[inline(always)]
    fn fill_in(context: &XdpContext) -> Option<()> {
        let frame = context.data();
        if frame + SLOT + size_of::<u16>() > context.data_end() {
            return None;
        }
        let cursor = BENCH_CURSOR.get_ptr_mut(0)?;
        // SAFETY: the pointer is to a map's entry, and only one CPU creates packets.
        let number = unsafe { *cursor };
        // SAFETY: as for the access above.
        unsafe { *cursor = number + 1 };
        if number % BATCH == 0 {
            let times = BENCH_TIMES.get_ptr_mut(0)?;
            // SAFETY: the helper has no arguments.
            let now = unsafe { bpf_ktime_get_ns() };
            // SAFETY: the pointer is to a map's entry, see above.
            unsafe { (*times)[(number / BATCH) as usize % BATCHES] = now };
        }
        let packet = &BENCH_PACKETS.get(0)?[number as usize % SEQUENCE];
        // SAFETY: the two bytes are in the frame, as just checked, and at an even distance from its aligned
        // start.
        unsafe { *((frame + DESTINATION_PORT) as *mut u16) = packet.port };
        // SAFETY: as for the access above.
        unsafe { *((frame + SLOT) as *mut u16) = packet.slot };
        Some(())
    }

    /// Baseline: a tc program that only passes the packet on.
    #[classifier]
    fn bench_empty(_context: TcContext) -> i32 {
        TC_ACT_UNSPEC
    }

    /// Baseline: delivers a packet to its container without verdict and counters. The packet contains its
    /// owner.
    #[classifier]
    fn bench_deliver(context: TcContext) -> i32 {
        let frame = context.data();
        if frame + SLOT + size_of::<u16>() > context.data_end() {
            return TC_ACT_UNSPEC;
        }
        // SAFETY: the two bytes are in the frame, as just checked, and at an even distance from its aligned
        // start.
        let slot = unsafe { *((frame + SLOT) as *const u16) };
        if slot == HOST_SLOT {
            return TC_ACT_UNSPEC;
        }
        // SAFETY: the helper takes two integers.
        let code = unsafe { bpf_redirect_peer(veth_ifindex(slot), 0) };
        #[expect(clippy::cast_possible_truncation, reason = "the helper returns one of the few TC_ACT codes")]
        let code = code as i32;
        code
    }
}

portmap_ebpf::object!("packet-source is a BPF object; run the benchmarks with `cargo xtask bench`");
