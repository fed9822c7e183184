//! The datapath's BPF object: the maps and the programs of all hooks.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
mod bpf;

portmap_ebpf::object!("portmap-ebpf is a BPF object; build it with `cargo xtask build`");
