//! The BPF object: maps, and one program for each hook.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
mod bpf;

/// The license that the kernel asks for before it lends its helpers. They are for GPL-compatible programs only;
/// this object is offered under the GPL as well as under the licences of its source.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // A reachable panic becomes an endless loop, which the verifier refuses.
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("portmap-ebpf is a BPF object; build it with `cargo xtask build`");
}
