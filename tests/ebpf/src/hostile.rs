//! BPF object of the tests: programs that the root of a container could attach to its own interfaces.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod orders;

#[cfg(target_arch = "bpf")]
#[expect(clippy::needless_pass_by_value, reason = "the macro hands the context over by value")]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "small numbers, and codes that helpers return"
)]
mod programs {
    use aya_ebpf::{
        EbpfContext as _,
        bindings::{
            __sk_buff, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO,
            BPF_F_INGRESS, TC_ACT_UNSPEC, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
        },
        helpers::{bpf_redirect, bpf_redirect_peer, bpf_skb_change_head, bpf_skb_vlan_push},
        macros::{classifier, map},
        maps::Array,
        programs::TcContext,
    };

    use crate::orders::{
        CLONE_TO_ETH0, DECOY, FIXED, HEAD, MARKED, ORDER, POP, PUSH, TAG, TO_ETH0, TO_PEER, TUNNEL, WRAP,
    };

    /// `ETH_P_IP` in network order, as the context has it.
    const IPV4: u32 = 0x0800_u16.to_be() as u32;

    /// Removes the IP header (without options) and the UDP header of a frame, so that the datagram's payload
    /// becomes the packet: its headers are then in memory that its sender can still write.
    #[classifier]
    fn hostile_strip(context: TcContext) -> i32 {
        let skb = context.as_ptr().cast::<__sk_buff>();
        // SAFETY: the kernel passes a valid context that lives as long as the program runs.
        let protocol = unsafe { (*skb).protocol };
        let headers = if protocol == IPV4 { 20 + 8 } else { 40 + 8 };
        // A frame that is too short stays unchanged.
        let _ = context.skb.adjust_room(-headers, BPF_ADJ_ROOM_MAC, 0);
        TC_ACT_UNSPEC
    }

    /// Bits of an order with the frame's target.
    const TARGET: u8 = 3;
    /// Length in bytes of an Ethernet header.
    const ETHERNET: usize = 14;
    /// Interface indices in a container.
    const LO: u32 = 1;
    const ETH0: u32 = 2;
    /// `PACKET_HOST` of `linux/if_packet.h`.
    const PACKET_HOST: u32 = 0;
    /// Number of words of a tunnel's headers: IPv4 and UDP.
    const TUNNEL_WORDS: u32 = 7;

    /// Marks and priorities, and a tunnel's headers.
    #[map(name = "hostile_words")]
    static WORDS: Array<u32> = Array::with_max_entries(256, 0);

    /// Number of marks. The first one means no mark.
    const MARKS: u32 = 4;

    fn word(index: u32) -> u32 {
        WORDS.get(index).copied().unwrap_or_default()
    }

    fn redirect(to: u32, flags: u32) -> i32 {
        // SAFETY: the helper takes two integers.
        let code = unsafe { bpf_redirect(to, u64::from(flags)) };
        code as i32
    }

    /// At the egress of an interface: redirects frames with orders to its ingress, before segmentation.
    #[classifier]
    fn hostile_out(context: TcContext) -> i32 {
        match context.load::<u8>(0) {
            Ok(ORDER) => {
                let skb = context.as_ptr().cast::<__sk_buff>();
                // SAFETY: the kernel passes a valid context that lives as long as the program runs.
                let own = unsafe { (*skb).ifindex };
                redirect(own, BPF_F_INGRESS)
            }
            _ => TC_ACT_UNSPEC,
        }
    }

    /// At the ingress of that interface: executes a frame's orders and redirects it. The orders are in the
    /// six bytes of the destination MAC address: `ORDER`, the actions, an amount, an unused byte, and the
    /// indices in [`WORDS`] of mark and priority.
    #[classifier]
    fn hostile_in(context: TcContext) -> i32 {
        let Ok([ORDER, what, amount, _, mark, priority]) = context.load::<[u8; 6]>(0) else {
            return TC_ACT_UNSPEC;
        };
        let skb = context.as_ptr().cast::<__sk_buff>();
        // A failed action leaves the frame unchanged, which is a useful case, too.
        let fixed = if what & FIXED != 0 { BPF_F_ADJ_ROOM_FIXED_GSO } else { 0 };
        if what & POP != 0 {
            let _ = context.skb.adjust_room(-8 * i32::from(amount), BPF_ADJ_ROOM_MAC, fixed.into());
        }
        if what & WRAP != 0 {
            let flags = BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP | fixed;
            if context.skb.adjust_room(4 * TUNNEL_WORDS as i32, BPF_ADJ_ROOM_MAC, flags.into()).is_ok() {
                for index in 0..TUNNEL_WORDS {
                    let _ = context.store(ETHERNET + 4 * index as usize, &word(TUNNEL + index), 0);
                }
            }
        }
        if what & PUSH != 0 {
            let room = 8 * u32::from(amount);
            // SAFETY: the helper gets the kernel's context and two integers.
            let made = unsafe { bpf_skb_change_head(skb, room, 0) };
            if made == 0
                && let Ok(head) = context.load::<[u8; HEAD]>(room as usize + ETHERNET + DECOY)
            {
                let _ = context.store(0, &head, 0);
            }
        }
        if what & TAG != 0 {
            // SAFETY: the helper gets the kernel's context and two integers.
            let _ = unsafe { bpf_skb_vlan_push(skb, 0x8100_u16.to_be(), u16::from(amount)) };
        }
        let _ = context.skb.change_type(PACKET_HOST);
        let (mark, priority) = (word(mark.into()), word(priority.into()));
        // SAFETY: the kernel passes a valid context, to which there is no other reference now.
        unsafe { (*skb).mark = mark };
        // SAFETY: the context is valid, as above.
        unsafe { (*skb).priority = priority };
        match what & TARGET {
            TO_PEER => {}
            TO_ETH0 => return redirect(ETH0, 0),
            CLONE_TO_ETH0 => {
                let _ = context.skb.clone_redirect(ETH0, 0);
            }
            _ => return redirect(LO, 0),
        }
        // SAFETY: the helper takes two integers.
        let code = unsafe { bpf_redirect_peer(ETH0, 0) };
        code as i32
    }

    /// Not an attacker's program, but an operator's at the uplink: counts the packets that leave with one of
    /// the attacker's marks.
    #[classifier]
    fn operators_witness(context: TcContext) -> i32 {
        let skb = context.as_ptr().cast::<__sk_buff>();
        // SAFETY: the kernel passes a valid context that lives as long as the program runs.
        let mark = unsafe { (*skb).mark };
        // The kernel's own multicast reports have other values in this field.
        let is_theirs = mark != 0 && (1..MARKS).any(|index| word(index) == mark);
        if is_theirs && let Some(marked) = WORDS.get_ptr_mut(MARKED) {
            // SAFETY: the pointer is to an entry of the map; a lost update is harmless.
            unsafe { *marked += 1 };
        }
        TC_ACT_UNSPEC
    }
}

portmap_ebpf::object!("hostile is a BPF object; run the tests with `cargo xtask test`");
