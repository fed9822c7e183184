//! The programs: each one looks at the frame, decides and finishes.
#![expect(clippy::needless_pass_by_value, reason = "the macro hands the context over by value")]

use aya_ebpf::{macros::classifier, programs::TcContext};
use portmap_common::reason::HostHook;
use portmap_ebpf::hooks::{container_lo, host_lo, uplink, veth};

use super::{
    finish::{finish, host_hook},
    frame::Skb,
    maps::Maps,
};

#[classifier]
fn pm_uplink_in(context: TcContext) -> i32 {
    let verdict = uplink::decide(&Skb::new(&context), &Maps);
    host_hook(&context, HostHook::Uplink, verdict)
}

#[classifier]
fn pm_lo_in(context: TcContext) -> i32 {
    let verdict = host_lo::decide(&Skb::new(&context), &Maps);
    host_hook(&context, HostHook::Loopback, verdict)
}

#[classifier]
fn pm_veth_in(context: TcContext) -> i32 {
    let verdict = veth::decide(&Skb::new(&context), &Maps);
    finish(&context, verdict)
}

#[classifier]
fn pm_ctr_lo_out(context: TcContext) -> i32 {
    let verdict = container_lo::decide(&Skb::new(&context), &Maps);
    finish(&context, verdict)
}
