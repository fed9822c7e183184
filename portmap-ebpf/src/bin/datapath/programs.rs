//! The programs: each one classifies the frame, decides, and applies the verdict.
#![expect(clippy::needless_pass_by_value, reason = "the macro hands the context over by value")]

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    macros::classifier,
    programs::TcContext,
};
use portmap_common::{hook_point::HookPoint, names::tail_call_index, slot::HOST_SLOT};
use portmap_ebpf::{
    Frame,
    hooks::{ContainerEth0, ContainerLo, Hook, HostLo, Uplink, UplinkEgress, VerdictSink as _, Veth},
    packet::{FastPath, IpVersion as _, ParsePath, SlowPath, V4, V6, ethernet::L3},
    route::Route,
};

#[cfg(feature = "datapath-log")]
use portmap_ebpf::Verdict;

use super::{
    apply::SkbSink,
    drop,
    l3_skb::L3Skb,
    maps::{self, Maps},
    skb::{KernelFrame, Skb},
};

/// Defines the programs of a hook, for frames with or without an Ethernet header.
///
/// The first program contains the fast path, which nearly all packets take. For other packets it makes a tail
/// call to the slow path, which has one program per IP version: the state of both does not fit on one stack
/// of 512 bytes, and with BPF-to-BPF calls the verifier of Linux 6.1 stops pruning equivalent states.
macro_rules! programs {
    ($frame:ident, $name:ident, $name4:ident, $name6:ident, $hook:ident, $point:expr, $fallback:expr) => {
        #[classifier]
        fn $name(context: TcContext) -> i32 {
            let frame = $frame::new(&context);
            match $hook::classify_frame(&frame, &Maps::new(&context)) {
                Ok(L3::V4) if V4::is_fast_path(&frame) => {
                    decide_ip::<$hook, V4, FastPath>(&frame, sink(&frame, &context, $point))
                }
                Ok(L3::V6) if V6::is_fast_path(&frame) => {
                    decide_ip::<$hook, V6, FastPath>(&frame, sink(&frame, &context, $point))
                }
                Ok(L3::V4) => tail_call(&context, const { tail_call_index(stringify!($name4)) }, $fallback),
                Ok(L3::V6) => tail_call(&context, const { tail_call_index(stringify!($name6)) }, $fallback),
                Err(verdict) => sink(&frame, &context, $point).apply(verdict),
            }
        }

        #[classifier]
        fn $name4(context: TcContext) -> i32 {
            let frame = $frame::new(&context);
            decide_ip::<$hook, V4, SlowPath>(&frame, sink(&frame, &context, $point))
        }

        #[classifier]
        fn $name6(context: TcContext) -> i32 {
            let frame = $frame::new(&context);
            decide_ip::<$hook, V6, SlowPath>(&frame, sink(&frame, &context, $point))
        }
    };
}

#[inline(always)]
const fn sink<'a, F: KernelFrame>(_frame: &F, context: &'a TcContext, point: HookPoint) -> SkbSink<'a> {
    SkbSink { context, point, lacks_header: F::LACKS_HEADER }
}

#[inline(always)]
fn decide_ip<H: Hook, V: Route, P: ParsePath>(frame: &impl Frame, sink: SkbSink<'_>) -> i32 {
    H::apply_ip::<V, P, _>(frame, &Maps::new(sink.context), &sink)
}

/// Continues in another program. Returns `fallback` if that is missing.
#[inline(always)]
fn tail_call(context: &TcContext, program: u32, fallback: i32) -> i32 {
    maps::tail_call(context, program);
    // Reached only if the program is missing. The daemon installs it before it attaches any program.
    fallback
}

programs!(Skb, pm_uplink_in, pm_uplink_in4, pm_uplink_in6, Uplink, HookPoint::UplinkIngress, TC_ACT_UNSPEC);
programs!(L3Skb, pm_l3_in, pm_l3_in4, pm_l3_in6, Uplink, HookPoint::UplinkIngress, TC_ACT_UNSPEC);
programs!(L3Skb, pm_l3_out, pm_l3_out4, pm_l3_out6, UplinkEgress, HookPoint::UplinkEgress, TC_ACT_UNSPEC);
programs!(Skb, pm_lo_in, pm_lo_in4, pm_lo_in6, HostLo, HookPoint::HostLoIngress, TC_ACT_UNSPEC);
programs!(Skb, pm_veth_in, pm_veth_in4, pm_veth_in6, Veth, HookPoint::VethIngress(HOST_SLOT), TC_ACT_SHOT);
programs!(
    Skb,
    pm_ctr_lo_out,
    pm_ctr_lo_out4,
    pm_ctr_lo_out6,
    ContainerLo,
    HookPoint::ContainerLoEgress,
    TC_ACT_UNSPEC
);
programs!(
    Skb,
    pm_uplink_out,
    pm_uplink_out4,
    pm_uplink_out6,
    UplinkEgress,
    HookPoint::UplinkEgress,
    TC_ACT_UNSPEC
);

#[classifier]
fn pm_ctr_eth0_in(context: TcContext) -> i32 {
    let frame = Skb::new(&context);
    let sink = sink(&frame, &context, HookPoint::ContainerEth0Ingress);
    match ContainerEth0::classify_frame(&frame, &Maps::new(&context)) {
        Ok(_) => decide_ip::<ContainerEth0, V6, SlowPath>(&frame, sink),
        Err(verdict) => sink.apply(verdict),
    }
}

/// Counts, samples and drops a packet for another program.
#[classifier]
fn pm_dropped(context: TcContext) -> i32 {
    drop::record(&context);
    TC_ACT_SHOT
}

/// Logs a verdict for another program, and executes it.
#[cfg(feature = "datapath-log")]
#[classifier]
fn pm_log(context: TcContext) -> i32 {
    match super::log::pending(&context) {
        Some(Verdict::Drop { reason, .. }) => drop::tail_call(&context, *reason),
        Some(verdict) => super::apply::execute(&context, verdict, false),
        None => TC_ACT_SHOT,
    }
}
