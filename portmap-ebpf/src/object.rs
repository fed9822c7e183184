//! What every BPF object has besides its programs.

/// Makes a binary a BPF object, and for any other target a program that says what it is for.
#[macro_export]
macro_rules! object {
    ($what:literal) => {
        /// The licence that the kernel asks for before it lends its helpers. They are for GPL-compatible programs only;
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
            eprintln!($what);
        }
    };
}
