//! The BPF objects that are committed beside their sources, for machines that have no BPF toolchain: one description, for the
//! build script that takes them and for `cargo xtask` that makes and checks them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Environment variable that says where a build takes the objects from: `auto`, or [`SOURCE`].
pub(crate) const VARIABLE: &str = "PORTMAP_BPF";

/// Its value for objects that are built, whether or not that is needed.
pub(crate) const SOURCE: &str = "source";

/// Where they are, from the workspace's directory.
pub(crate) const DIRECTORY: &str = "portmap-ebpf/objects";

/// The objects that the daemon embeds.
pub(crate) const NAMES: [&str; 2] = ["portmap-ebpf", "portmap-guard"];

/// The kind of machine that they are for: registers of traced processes differ.
pub(crate) const ARCHITECTURE: &str = "x86_64";

/// The file that says what they were made from and by.
pub(crate) const RECORD: &str = "RECORD";

/// Files and directories that an object is made from.
const SOURCES: [&str; 4] =
    ["portmap-common/Cargo.toml", "portmap-common/src", "portmap-ebpf/Cargo.toml", "portmap-ebpf/src"];

/// What the committed objects were made from and by.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// [`digest`] of their sources.
    pub(crate) sources: String,
    /// Compiler and linker, with versions.
    pub(crate) compiler: String,
}

impl Record {
    /// Reads the record of a workspace; none if there is none that makes sense.
    pub(crate) fn read(workspace: &Path) -> Option<Self> {
        let text = fs::read_to_string(workspace.join(DIRECTORY).join(RECORD)).ok()?;
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            line.map(str::to_owned)
        };
        Some(Self { sources: value("sources")?, compiler: value("compiler")? })
    }
}

/// Where an object is.
pub(crate) fn file(workspace: &Path, object: &str) -> PathBuf {
    workspace.join(DIRECTORY).join(format!("{object}.o"))
}

/// A number that changes when a source does (FNV-1a, 64 bits). It tells objects that have been forgotten from others, and is
/// no signature.
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

/// All files that are or are below a path.
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
