//! The BPF object that is part of this program.

/// Fails the build of anything that would embed a stub, at the moment when code is generated for it: checking and
/// linting generate none and work without a BPF toolchain.
struct Embedded<const STUB: bool>;

impl<const STUB: bool> Embedded<STUB> {
    const IS_REAL: () =
        assert!(!STUB, "no BPF toolchain found, so there is no object to embed: run `cargo xtask setup` first");
}

/// The object with all maps and programs.
pub fn bytes() -> &'static [u8] {
    #[expect(clippy::let_unit_value, reason = "naming the constant is what evaluates it")]
    let () = Embedded::<{ cfg!(bpf_stub) }>::IS_REAL;
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/portmap-ebpf"))
}
