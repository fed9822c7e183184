//! The BPF objects that are committed beside their sources, for machines without a BPF toolchain. The build
//! script, which uses them, and `cargo xtask`, which makes and checks them, share this file.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Environment variable that selects the objects of a build: `auto` or [`SOURCE`].
pub(crate) const VARIABLE: &str = "PORTMAP_BPF";

/// Its value for objects that are always built from source.
pub(crate) const SOURCE: &str = "source";

/// Their directory, relative to the workspace's.
pub(crate) const DIRECTORY: &str = "portmap-ebpf/objects";

/// The objects that the daemon embeds.
pub(crate) const NAMES: [&str; 2] = ["portmap-ebpf", "portmap-guard"];

/// The architecture of the hosts that they run on: the layout of a traced process's registers differs between
/// hosts.
pub(crate) const ARCHITECTURE: &str = "x86_64";

/// The file with a [`Record`].
pub(crate) const RECORD: &str = "RECORD";

/// Source files and directories of the objects.
const SOURCES: [&str; 4] =
    ["portmap-common/Cargo.toml", "portmap-common/src", "portmap-ebpf/Cargo.toml", "portmap-ebpf/src"];

/// The sources and the compiler of the committed objects.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// [`digest`] of their sources.
    pub(crate) sources: String,
    /// Compiler and linker, with versions.
    pub(crate) compiler: String,
}

impl Record {
    /// Reads the record of a workspace. Returns `None` if it is missing or incomplete.
    pub(crate) fn read(workspace: &Path) -> Option<Self> {
        let text = fs::read_to_string(workspace.join(DIRECTORY).join(RECORD)).ok()?;
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            line.map(str::to_owned)
        };
        Some(Self { sources: value("sources")?, compiler: value("compiler")? })
    }
}

/// Returns the path of a committed object.
pub(crate) fn file(workspace: &Path, object: &str) -> PathBuf {
    workspace.join(DIRECTORY).join(format!("{object}.o"))
}

/// Returns a hash of the sources (FNV-1a, 64 bits). It detects objects that are out of date; it is not a
/// signature.
pub(crate) fn digest(workspace: &Path) -> io::Result<String> {
    let mut files = Vec::new();
    for source in SOURCES {
        list(&workspace.join(source), &mut files)?;
    }
    files.sort();
    let mut state = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |bytes: &[u8]| {
        for byte in bytes {
            state = (state ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    for file in files {
        let name = file.strip_prefix(workspace).unwrap_or(&file);
        add(name.as_os_str().as_encoded_bytes());
        add(&[0]);
        add(&fs::read(&file)?);
        add(&[0]);
    }
    Ok(format!("{state:016x}"))
}

/// Adds a file, or all files below a directory, to the list.
fn list(path: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    if !path.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(path)? {
        list(&entry?.path(), files)?;
    }
    Ok(())
}
