//! The datapath's BPF object: the maps and the programs of all hooks.
//!
//! The library decides; this object provides the frame and the maps, and applies the verdicts.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
mod apply;
#[cfg(target_arch = "bpf")]
mod atomic;
#[cfg(target_arch = "bpf")]
mod counters;
#[cfg(target_arch = "bpf")]
mod drop;
#[cfg(target_arch = "bpf")]
mod fib;
#[cfg(target_arch = "bpf")]
mod gcra;
#[cfg(target_arch = "bpf")]
mod l3_skb;
#[cfg(all(target_arch = "bpf", feature = "datapath-log"))]
mod log;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod metadata;
#[cfg(target_arch = "bpf")]
mod offload;
#[cfg(target_arch = "bpf")]
mod programs;
#[cfg(target_arch = "bpf")]
mod skb;

portmap_ebpf::object!("portmap-ebpf is a BPF object; build it with `cargo xtask build`");
