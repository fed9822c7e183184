//! Paths in the state directory and of the pins in bpffs.

use std::path::{Path, PathBuf};

use portmap_common::{LAYOUT_VERSION, names};

/// Default of `--state-dir`.
pub const DEFAULT_STATE_DIR: &str = "/run/portmap";
/// Environment variable for `--state-dir`.
pub const STATE_DIR_VARIABLE: &str = "PORTMAP_STATE_DIR";
/// Default of `--bpffs-dir`.
pub const DEFAULT_BPFFS_DIR: &str = "/sys/fs/bpf/portmap";

/// The state directory of one daemon.
#[derive(Clone, Debug)]
pub struct StateDir(PathBuf);

impl StateDir {
    /// The directory at `path`, which need not exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The daemon's socket.
    pub fn socket(&self) -> PathBuf {
        self.0.join("portmapd.sock")
    }

    /// The socket for users without privileges, which only answers questions.
    pub fn readonly_socket(&self) -> PathBuf {
        self.0.join("readonly.sock")
    }

    /// The lock file of a running daemon or teardown.
    pub fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }

    /// The record of the daemon's changes to the host.
    pub fn host(&self) -> PathBuf {
        self.0.join("host.json")
    }

    /// The record of ephemeral ports in quarantine.
    pub fn quarantine(&self) -> PathBuf {
        self.0.join("resting.json")
    }

    /// The directory of the containers' records.
    pub fn containers(&self) -> PathBuf {
        self.0.join("containers")
    }

    /// The record of one container.
    pub fn container(&self, name: &str) -> PathBuf {
        self.containers().join(format!("{name}.json"))
    }
}

/// The pins of one daemon, below a directory named after the layout version.
#[derive(Clone, Debug)]
pub struct Pins {
    bpffs: PathBuf,
    version: u32,
}

impl Pins {
    /// Pins below `bpffs`, the value of `--bpffs-dir`.
    pub fn new(bpffs: impl Into<PathBuf>) -> Self {
        Self::of_layout(bpffs, LAYOUT_VERSION)
    }

    /// Pins of any layout version.
    pub fn of_layout(bpffs: impl Into<PathBuf>, version: u32) -> Self {
        Self { bpffs: bpffs.into(), version }
    }

    /// The value of `--bpffs-dir`.
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// The directory of this layout.
    pub fn root(&self) -> PathBuf {
        self.bpffs.join(format!("v{}", self.version))
    }

    /// The directories of maps, programs and links.
    pub fn directories(&self) -> [PathBuf; 3] {
        ["maps", "progs", "links"].map(|kind| self.root().join(kind))
    }

    /// The pin of a map.
    pub fn map(&self, name: &str) -> PathBuf {
        self.root().join("maps").join(name)
    }

    /// The pin of a program.
    pub fn program(&self, name: &str) -> PathBuf {
        self.root().join("progs").join(name)
    }

    /// The pin of a program that is about to become [`Pins::program`]. A bpffs allows no dots in names.
    pub fn new_program(&self, name: &str) -> PathBuf {
        self.program(&format!("{name}_new"))
    }

    /// Where links are.
    pub fn links(&self) -> PathBuf {
        self.root().join("links")
    }

    /// The pin of the link of an attach point.
    pub fn link(&self, attach_point: &str) -> PathBuf {
        self.links().join(attach_point)
    }

    /// The maps and programs that stay pinned while a daemon runs.
    pub fn lasting(&self) -> Vec<PathBuf> {
        let maps = names::MAPS.iter().chain([&names::MAP_GUARDED]).map(|name| self.map(name));
        let programs = names::PROGRAMS.iter().chain(&names::GUARDS).map(|name| self.program(name));
        maps.chain(programs).collect()
    }

    /// All pins of this layout except links.
    pub fn fixed(&self) -> Vec<PathBuf> {
        let maps = names::MAPS.iter().chain([&names::MAP_GUARDED]).map(|name| self.map(name));
        let programs = names::PROGRAMS.iter().chain(&names::GUARDS);
        let programs = programs.flat_map(|name| [self.program(name), self.new_program(name)]);
        maps.chain(programs).collect()
    }
}
