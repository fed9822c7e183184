//! The BPF object that is part of this program.

use std::fmt;

use portmap_common::names;

use crate::error::{Context as _, Result};

/// Fails the build of anything that would embed a stub, at the moment when code is generated for it: checking and
/// linting generate none and work without a BPF toolchain.
struct Embedded<const STUB: bool>;

impl<const STUB: bool> Embedded<STUB> {
    const IS_REAL: () = assert!(
        !STUB,
        "no BPF toolchain found, so there is no object to embed: run `cargo xtask setup` first"
    );
}

/// What compiled the object, with versions.
pub const COMPILER: &str = env!("PORTMAP_BPF_COMPILER");

/// The object with all maps and programs.
pub fn bytes() -> &'static [u8] {
    let () = Embedded::<{ cfg!(bpf_stub) }>::IS_REAL;
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/portmap-ebpf"))
}

/// The object of the bind guard.
pub fn guard() -> &'static [u8] {
    let () = Embedded::<{ cfg!(bpf_stub) }>::IS_REAL;
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/portmap-guard"))
}

/// What two maps must have in common for one to stand in for the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapShape {
    /// Its name.
    pub name: String,
    /// The kernel's number of its type.
    pub map_type: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Number of entries.
    pub max_entries: u32,
    /// Flags at its creation.
    pub flags: u32,
}

impl fmt::Display for MapShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name: _, map_type, key_size, value_size, max_entries, flags } = self;
        write!(
            f,
            "of type {map_type} with {max_entries} entries of {key_size}+{value_size} bytes and flags {flags:#x}"
        )
    }
}

/// The maps of an object.
pub fn maps(object: &[u8]) -> Result<Vec<MapShape>> {
    let object =
        aya_obj::Object::parse(object).context(|| "cannot read the embedded BPF object".to_owned())?;
    let shape = |(name, map): (String, aya_obj::Map)| MapShape {
        name,
        map_type: map.map_type(),
        key_size: map.key_size(),
        value_size: map.value_size(),
        max_entries: map.max_entries(),
        flags: map.map_flags(),
    };
    let is_pinned = |name: &str| names::MAPS.contains(&name) || name == names::MAP_GUARDED;
    Ok(object.maps.into_iter().filter(|(name, _)| is_pinned(name)).map(shape).collect())
}
