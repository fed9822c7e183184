//! See [`portmap_fuzz::targets::verdict`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portmap_fuzz::targets::verdict(data));
