//! See [`portmap_fuzz::targets::sequence`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portmap_fuzz::targets::sequence(data));
