//! The embedded BPF objects.

use std::fmt;

use portmap_common::names;

/// Fails the build of a program that would embed a stub, when code is generated for it. Checking and linting
/// generate no code, so they work without a BPF toolchain.
struct Embedded<const STUB: bool>;

impl<const STUB: bool> Embedded<STUB> {
    const IS_REAL: () = assert!(
        !STUB,
        "no BPF toolchain found, so there is no object to embed: run `cargo xtask setup` first"
    );
}

/// Compiler and linker of the objects, with their versions.
pub const COMPILER: &str = env!("PORTMAP_BPF_COMPILER");

/// The object with the classifier's maps and programs.
pub fn bytes() -> &'static [u8] {
    let () = Embedded::<{ cfg!(bpf_stub) }>::IS_REAL;
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/portmap-ebpf"))
}

/// The object of the bind guard.
pub fn guard() -> &'static [u8] {
    let () = Embedded::<{ cfg!(bpf_stub) }>::IS_REAL;
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/portmap-guard"))
}

/// Properties of a map. A pinned map can be reused if they are those of the object's map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapSpec {
    /// Its name.
    pub name: String,
    /// `enum bpf_map_type`.
    pub map_type: u32,
    /// Size of a key in bytes.
    pub key_size: u32,
    /// Size of a value in bytes.
    pub value_size: u32,
    /// Maximum number of entries.
    pub max_entries: u32,
    /// Creation flags.
    pub flags: u32,
}

impl fmt::Display for MapSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name: _, map_type, key_size, value_size, max_entries, flags } = self;
        write!(
            f,
            "of type {map_type} with {max_entries} entries of {key_size}+{value_size} bytes and flags {flags:#x}"
        )
    }
}

/// The pinned maps of an object.
pub fn maps(object: &[u8]) -> Result<Vec<MapSpec>, aya_obj::ParseError> {
    let object = aya_obj::Object::parse(object)?;
    let spec = |(name, map): (String, aya_obj::Map)| MapSpec {
        name,
        map_type: map.map_type(),
        key_size: map.key_size(),
        value_size: map.value_size(),
        max_entries: map.max_entries(),
        flags: map.map_flags(),
    };
    let is_pinned = |name: &str| names::MAPS.contains(&name) || name == names::MAP_GUARDED;
    Ok(object.maps.into_iter().filter(|(name, _)| is_pinned(name)).map(spec).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn object_logs_verdicts_with_the_feature_only() {
        let is_feature = cfg!(feature = "datapath-log");
        for name in ["AYA_LOGS", names::PROG_LOG, "aya_log"] {
            let is_there = bytes().windows(name.len()).any(|window| window == name.as_bytes());
            assert_eq!(is_there, is_feature, "{name}");
        }
    }
}
