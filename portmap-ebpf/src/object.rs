//! The parts that every BPF object has besides its programs: the licence and the panic handler.

/// Makes a binary a BPF object. For any other target it is a program that prints how to build the object.
#[macro_export]
macro_rules! object {
    ($what:literal) => {
        /// The licence: some helpers are for GPL-compatible programs only, and this object is available under
        /// the GPL as well as under the licences of its source.
        #[cfg(target_arch = "bpf")]
        #[unsafe(link_section = "license")]
        #[unsafe(no_mangle)]
        static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

        #[cfg(target_arch = "bpf")]
        #[panic_handler]
        fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
            // A reachable panic becomes an endless loop, which the verifier rejects.
            loop {}
        }

        #[cfg(not(target_arch = "bpf"))]
        fn main() {
            eprintln!($what);
        }
    };
}
