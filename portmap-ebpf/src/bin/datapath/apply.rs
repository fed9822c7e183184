//! Applying a verdict: the only place that counts, redirects and returns a code to the kernel.

use core::ptr;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        __sk_buff, BPF_F_INGRESS, TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_redir_neigh, bpf_redir_neigh__bindgen_ty_1,
    },
    helpers::{bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer},
    programs::TcContext,
};
use portmap_common::{
    hook_point::HookPoint,
    marks::HANDLED_MARK,
    queue,
    slot::loopback_mac,
    tables::{PortEntry, QUEUE_LOCAL, QUEUE_OUTSIDE},
};
use portmap_ebpf::{
    hooks::VerdictSink,
    segments::WireSize,
    verdict::{IcmpIdRewrite, NextHop, Origin, Verdict},
    verdict_codec,
};

use super::{
    counters::{count_for, count_reason},
    drop, l3_skb, maps,
    metadata::{set_mark, set_packet_host, set_priority, set_tc_index},
    skb::{LO_IFINDEX, Skb, is_dry_run, mtu_allows},
};

/// Offsets of the checksum and the identifier in an echo message, for both versions of ICMP.
const ECHO_CHECKSUM: usize = 2;
const ECHO_ID: usize = 4;

/// The next hop in the kernel's form, aligned so that it is written in whole words.
#[repr(C, align(8))]
struct Neighbour(bpf_redir_neigh);

/// Size of a next hop, which the helper takes with it.
#[expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "it is a small structure")]
const NEIGHBOUR_SIZE: i32 = size_of::<bpf_redir_neigh>() as i32;

/// Applies verdicts to the packet of one run of a program.
pub(super) struct SkbSink<'a> {
    /// The packet.
    pub(super) context: &'a TcContext,
    /// Where the program runs. The slot of a host veth is not set.
    pub(super) point: HookPoint,
    /// Whether the packet has no Ethernet header.
    pub(super) lacks_header: bool,
}

impl VerdictSink for SkbSink<'_> {
    type Output = i32;

    #[inline(always)]
    fn apply(&self, verdict: Verdict) -> i32 {
        self.deliver(verdict, WireSize::one_packet(&Skb::new(self.context)))
    }

    #[inline(always)]
    fn deliver(&self, verdict: Verdict, size: WireSize) -> i32 {
        let is_dry_run = is_dry_run(self.context);
        // A container and a sample need the header; the host's stack must not see it.
        if self.lacks_header
            && matches!(verdict, Verdict::ToContainer { .. } | Verdict::Drop { .. })
            && !l3_skb::add_header(self.context)
        {
            return TC_ACT_SHOT;
        }
        if is_dry_run {
            report_dry_run(self.context, &verdict);
        } else if let Verdict::Drop { reason, .. } = verdict {
            #[cfg(feature = "datapath-log")]
            super::log::hand_over(self.context, self.point, &verdict);
            return drop::tail_call(self.context, reason);
        } else {
            self.count(&verdict, size);
            // A record needs the header.
            #[cfg(feature = "datapath-log")]
            if !self.lacks_header || matches!(verdict, Verdict::ToContainer { .. }) {
                super::log::hand_over(self.context, self.point, &verdict);
            }
        }
        if verdict == Verdict::AlreadyHandled && self.point.host_hook().is_some() {
            // The mark is between portmap's hooks only; the host's stack must not see it.
            set_mark(self.context, 0);
        }
        execute(self.context, &verdict, is_dry_run)
    }
}

impl SkbSink<'_> {
    /// Counts a frame: traffic as it is on the wire, for its sender and its receiver as far as they are
    /// containers; other frames once.
    #[inline(always)]
    fn count(&self, verdict: &Verdict, size: WireSize) {
        match *verdict {
            Verdict::Continue(reason) => {
                if let Some(counts) = self.point.host_hook().and_then(maps::host) {
                    count_reason(counts, reason as u32);
                }
            }
            Verdict::DeliverLocal(slot) => count_for(slot, size, |counters| &mut counters.own),
            Verdict::ToContainer { origin, owner, .. } => match origin {
                Origin::Outside => count_for(owner.slot, size, |counters| &mut counters.rx_outside),
                Origin::Host => count_for(owner.slot, size, |counters| &mut counters.rx_host),
                Origin::Container(sender) => {
                    count_for(sender, size, |counters| &mut counters.tx_container);
                    count_for(owner.slot, size, |counters| &mut counters.rx_container);
                }
            },
            Verdict::ToOutside { slot, .. } => count_for(slot, size, |counters| &mut counters.tx_outside),
            Verdict::ToHost(slot) => count_for(slot, size, |counters| &mut counters.tx_host),
            Verdict::Drop { .. }
            | Verdict::AlreadyHandled
            | Verdict::AssignFlow(_)
            | Verdict::ToEth0(_)
            | Verdict::ToLoopback => {}
        }
    }
}

/// Executes a verdict, apart from counting.
#[inline(always)]
pub(super) fn execute(context: &TcContext, verdict: &Verdict, is_dry_run: bool) -> i32 {
    // In a dry run the priority contains a part of the encoded verdict.
    let set_priority = |priority| {
        if !is_dry_run {
            set_priority(context, priority);
        }
    };
    // Mark, priority and index are the sender's, for its own namespace. A redirect keeps them, and they could
    // select a class, a route or a firewall rule elsewhere.
    let clear_metadata = || {
        if !is_dry_run {
            set_mark(context, 0);
            set_priority(0);
            set_tc_index(context, 0);
        }
    };
    match *verdict {
        Verdict::Continue(_) | Verdict::AlreadyHandled | Verdict::DeliverLocal(_) => TC_ACT_UNSPEC,
        Verdict::AssignFlow(flow) => {
            set_priority(queue::priority_of(flow));
            TC_ACT_UNSPEC
        }
        Verdict::Drop { .. } => TC_ACT_SHOT,
        Verdict::ToContainer { origin, owner, by_loopback, rewrite } => {
            if !rewrite_icmp_id(context, rewrite) {
                return TC_ACT_SHOT;
            }
            clear_metadata();
            let queued = if origin == Origin::Outside { QUEUE_OUTSIDE } else { QUEUE_LOCAL };
            // A datagram from a loopback device can exceed the MTU of the host veth.
            if owner.flags & queued != 0 && mtu_allows(context, owner.ifindex, 0) {
                // Overwrites the sender's priority, which could select a class without a limit.
                set_priority(queue::LIMITED);
                return to_qdisc(context, owner, by_loopback);
            }
            // The program at the container's `eth0` redirects it into the loopback device, which accepts
            // frames to its own MAC address only.
            if by_loopback && context.store(0, &loopback_mac(owner.slot), 0).is_err() {
                return TC_ACT_SHOT;
            }
            // SAFETY: the helper takes two integers; if the interface does not exist, the kernel drops the
            // packet.
            code(unsafe { bpf_redirect_peer(owner.ifindex, 0) })
        }
        Verdict::ToOutside { slot, ifindex, next_hop, rewrite } => {
            if !rewrite_icmp_id(context, rewrite) {
                return TC_ACT_SHOT;
            }
            clear_metadata();
            let config = maps::config();
            if config.has_flows(ifindex) {
                set_priority(queue::priority_of(queue::flow_of(slot)));
            }
            to_neighbour(context, ifindex, next_hop)
        }
        Verdict::ToHost(_) => {
            clear_metadata();
            set_mark(context, HANDLED_MARK);
            let mac = maps::config().lo_mac.octets();
            to_loopback(context, Some(mac))
        }
        Verdict::ToEth0(ifindex) => {
            set_priority(queue::LOCAL);
            // SAFETY: the helper takes two integers; if the interface does not exist, the kernel drops the
            // packet.
            code(unsafe { bpf_redirect(ifindex, 0) })
        }
        Verdict::ToLoopback => to_loopback(context, None),
    }
}

/// Sends a packet to a container through the qdisc of its host veth. The interface at the other end accepts
/// frames to its own MAC address only.
#[inline(always)]
fn to_qdisc(context: &TcContext, owner: PortEntry, by_loopback: bool) -> i32 {
    let mac = if by_loopback { loopback_mac(owner.slot) } else { maps::config().mac.octets() };
    if context.store(0, &mac, 0).is_err() {
        return TC_ACT_SHOT;
    }
    // SAFETY: the helper takes two integers; if the interface does not exist, the kernel drops the packet.
    code(unsafe { bpf_redirect(owner.ifindex, 0) })
}

/// Sends a packet out of an interface to a neighbour, which the kernel resolves.
#[inline(always)]
fn to_neighbour(context: &TcContext, ifindex: u32, next_hop: NextHop) -> i32 {
    if next_hop.family == 0 {
        // The kernel sends errors to the source of packets that were received for this host only.
        set_packet_host(context);
        // SAFETY: without a next hop the pointer is null, as the helper expects.
        return code(unsafe { bpf_redirect_neigh(ifindex, ptr::null_mut(), 0, 0) });
    }
    let mut neighbour = Neighbour(bpf_redir_neigh {
        nh_family: next_hop.family,
        __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 { ipv6_nh: next_hop.address },
    });
    // SAFETY: the pointer is to a local of the size that is passed with it.
    code(unsafe { bpf_redirect_neigh(ifindex, &raw mut neighbour.0, NEIGHBOUR_SIZE, 0) })
}

/// Redirects a packet into the ingress of the namespace's loopback device, which accepts frames to its own
/// MAC address only. `mac` is written as destination, unless the frame already has it.
#[inline(always)]
fn to_loopback(context: &TcContext, mac: Option<[u8; 6]>) -> i32 {
    if let Some(mac) = mac
        && context.store(0, &mac, 0).is_err()
    {
        return TC_ACT_SHOT;
    }
    // SAFETY: the helper takes two integers.
    code(unsafe { bpf_redirect(LO_IFINDEX, u64::from(BPF_F_INGRESS)) })
}

/// Rewrites the identifier of an echo message, if there is a rewrite. Returns false if the kernel fails.
#[inline(always)]
fn rewrite_icmp_id(context: &TcContext, rewrite: IcmpIdRewrite) -> bool {
    if rewrite.is_none() {
        return true;
    }
    let IcmpIdRewrite { message, from, to } = rewrite;
    // Checksum and identifier change together, so a sum over the packet (the hardware's, or that of an ICMP
    // error around the message) stays the same.
    let sum = context.l4_csum_replace(
        message + ECHO_CHECKSUM,
        u64::from(from.to_be()),
        u64::from(to.to_be()),
        size_of::<u16>() as u64,
    );
    sum.is_ok() && context.store(message + ECHO_ID, &to.to_be_bytes(), 0).is_ok()
}

/// Reports the verdict of a dry run.
#[inline(always)]
fn report_dry_run(context: &TcContext, verdict: &Verdict) {
    let [first, a, b, c, d, priority, mark] = verdict_codec::encode(verdict);
    let skb = context.as_ptr().cast::<__sk_buff>();
    // SAFETY: the kernel passes a valid context, to which there is no other reference now.
    let skb = unsafe { &mut *skb };
    for (word, value) in [
        (&raw mut skb.cb[0], first),
        (&raw mut skb.cb[1], a),
        (&raw mut skb.cb[2], b),
        (&raw mut skb.cb[3], c),
        (&raw mut skb.cb[4], d),
        (&raw mut skb.priority, priority),
        (&raw mut skb.mark, mark),
    ] {
        // SAFETY: the pointer is to a word of the context. Volatile, because the kernel allows stores of
        // single fields only, so the compiler must not merge them.
        unsafe { word.write_volatile(value) };
    }
}

/// Converts the result of a redirect helper to the program's return code.
#[expect(clippy::cast_possible_truncation, reason = "the helpers return one of the few TC_ACT codes")]
#[inline(always)]
const fn code(returned: i64) -> i32 {
    returned as i32
}
