//! The BPF object of the benchmarks: a source of packets, and a classifier that does nothing.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
#[expect(clippy::needless_pass_by_value, reason = "the macro hands the context over by value")]
mod programs {
    use aya_ebpf::{
        bindings::{TC_ACT_UNSPEC, xdp_action},
        btf_maps::Array,
        macros::{btf_map, classifier, xdp},
        programs::{TcContext, XdpContext},
    };

    /// Length of the sequence of ports; a power of two. Two bytes each, read one after the other, are the least that a
    /// random sequence takes away from the caches of what is measured.
    const SEQUENCE: usize = 32_768;

    /// Where the destination port is: behind an Ethernet header, an IPv4 header without options, and the source port.
    const DESTINATION_PORT: usize = 14 + 20 + 2;

    /// Destination ports of the packets, in network order.
    #[btf_map(name = "bench_ports")]
    static BENCH_PORTS: Array<[u16; SEQUENCE], 1> = Array::new();

    /// Number of packets made so far, which is the place of the next one in the sequence.
    #[btf_map(name = "bench_cursor")]
    static BENCH_CURSOR: Array<u64, 1> = Array::new();

    /// Gives the next destination port to a frame and lets the kernel receive it.
    #[xdp]
    fn bench_source(context: XdpContext) -> u32 {
        // A frame without a port would not be the packet that is asked for; it must not reach a classifier.
        address(&context).map_or(xdp_action::XDP_DROP, |()| xdp_action::XDP_PASS)
    }

    #[inline(always)]
    fn address(context: &XdpContext) -> Option<()> {
        let place = context.data() + DESTINATION_PORT;
        if place + size_of::<u16>() > context.data_end() {
            return None;
        }
        let cursor = BENCH_CURSOR.get_ptr_mut(0)?;
        // SAFETY: the pointer is to a map's entry, and packets are made on one CPU only.
        let number = unsafe { *cursor };
        // SAFETY: the same.
        unsafe { *cursor = number + 1 };
        let port = BENCH_PORTS.get(0)?[number as usize % SEQUENCE];
        // SAFETY: the two bytes are in the frame, as just checked, and at an even distance from its aligned start.
        unsafe { *(place as *mut u16) = port };
        Some(())
    }

    /// The least that a program at a tc hook can do: nothing, and let others look.
    #[classifier]
    fn bench_empty(_context: TcContext) -> i32 {
        TC_ACT_UNSPEC
    }

    /// The license that the kernel shows for the programs.
    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("portmap-bench is a BPF object; run the benchmarks with `cargo xtask bench`");
}
