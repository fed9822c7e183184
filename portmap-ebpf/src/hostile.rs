//! The BPF object of the tests: what the root of a container could attach to its own interfaces.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
#[expect(clippy::needless_pass_by_value, reason = "the macro hands the context over by value")]
mod programs {
    use aya_ebpf::{
        EbpfContext as _,
        bindings::{__sk_buff, TC_ACT_UNSPEC, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC},
        macros::classifier,
        programs::TcContext,
    };

    /// `ETH_P_IP` in network order, as the context has it.
    const IPV4: u32 = 0x0800_u16.to_be() as u32;

    /// Takes the IP header (without options) and the UDP header off a frame, so that the datagram's payload takes
    /// their place: a packet whose headers lie in memory that its sender can still write.
    #[classifier]
    fn hostile_strip(context: TcContext) -> i32 {
        let skb = context.as_ptr().cast::<__sk_buff>();
        // SAFETY: the kernel passes a valid context that lives as long as the program runs.
        let protocol = unsafe { (*skb).protocol };
        let headers = if protocol == IPV4 { 20 + 8 } else { 40 + 8 };
        // What is too short stays as it is.
        let _ = context.skb.adjust_room(-headers, BPF_ADJ_ROOM_MAC, 0);
        TC_ACT_UNSPEC
    }
}

portmap_ebpf::object!("portmap-hostile is a BPF object; run the tests with `cargo xtask test`");
