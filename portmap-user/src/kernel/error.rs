//! Errors of this layer: what failed, on what, and why. [`crate::error::Error`] is their one-line form, for
//! people and exit codes; code that has to distinguish causes matches on these.

use std::{error::Error as StdError, fmt, path::PathBuf};

use crate::error::{self, Kind};

/// A result of this layer.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why something could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An operation failed that should have worked.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// A network namespace could not be opened, named or entered.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// A directory is not a cgroup of the right kind.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// An existing interface has the name or the index of a new one.
    #[error(
        "cannot create {host} with {container} in {}: an interface with one of these names or indices exists already",
        netns.display()
    )]
    InterfaceExists {
        /// Name of the host's end of the pair.
        host: String,
        /// Name of the container's end.
        container: String,
        /// The container's namespace.
        netns: PathBuf,
    },
    /// The namespace has a default route of another program.
    #[error(
        "the network namespace already has {} default route{existing}, but a container's must leave by its eth0: \
         remove it, or pass another namespace",
        if *is_v6 { "an IPv6" } else { "a" }
    )]
    DefaultRouteExists {
        /// Whether it is one for IPv6.
        is_v6: bool,
        /// Its interface and gateway, as far as they could be read.
        existing: String,
    },
    /// An interface has an ingress qdisc of another tool, in the place of a clsact qdisc.
    #[error(
        "{interface} has an ingress qdisc, where portmap needs a clsact qdisc on this kernel: remove it with `tc qdisc \
         del dev {interface} ingress`, start portmapd, and add the tool's filters again; a clsact qdisc takes them, too"
    )]
    IngressQdisc {
        /// The interface's name.
        interface: String,
    },
    /// A pinned map is not what the BPF object expects.
    #[error(
        "the pinned map {} is {found}, expected {expected}: another program made it; run `portmap teardown`, or name \
         another directory with --bpffs-dir",
        pin.display()
    )]
    MapMismatch {
        /// The map's pin.
        pin: PathBuf,
        /// What the map is.
        found: String,
        /// What it must be.
        expected: String,
    },
    /// The pins are of a later version of portmap.
    #[error(
        "{} was made by a later version of portmap, this one has layout v{supported}: start that version, or run its \
         `portmap teardown` first",
        root.display()
    )]
    LaterLayout {
        /// The directory of that version's pins.
        root: PathBuf,
        /// The latest layout that this version supports.
        supported: u32,
    },
}

/// Why a network namespace cannot be opened, named or entered.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// There is no such file.
    #[error("{} does not exist: expected a network namespace", .0.display())]
    Missing(PathBuf),
    /// It is the file of a process that has ended.
    #[error("the process of {} has ended", .0.display())]
    ProcessEnded(PathBuf),
    /// The file is not a network namespace.
    #[error(
        "{} is not a network namespace: expected a file such as /run/netns/NAME or /proc/PID/ns/net",
        .0.display()
    )]
    NotANetns(PathBuf),
    /// Another namespace has the name.
    #[error(
        "the network namespace {} exists already: choose another name, or pass it as --netns",
        .0.display()
    )]
    NameTaken(PathBuf),
    /// Only root may enter it.
    #[error("entering the network namespace {} requires root", .0.display())]
    NotPermitted(PathBuf),
    /// An operation on it failed.
    #[error(transparent)]
    Io(#[from] Failure),
}

/// Why there is no cgroup for the bind guard.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// No cgroup v2 hierarchy is mounted.
    #[error(
        "--bind-guard: cgroup v2 is not mounted: run `mount -t cgroup2 none DIR`, and pass --bind-guard=DIR"
    )]
    NotMounted,
    /// The directory is not one of a cgroup v2 hierarchy.
    #[error("--bind-guard={}: expected a directory of a cgroup v2 hierarchy, such as /sys/fs/cgroup", .0.display())]
    NotACgroup(PathBuf),
}

/// An operation that failed, with its object and the cause.
#[derive(Debug)]
pub struct Failure {
    /// The operation and its object: `cannot pin /sys/fs/bpf/portmap/v9/maps/pm_ports`, for example.
    pub operation: String,
    /// The cause; `None` if the operation says it all.
    pub source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Failure {
    /// A failure with its cause.
    pub fn caused_by(operation: impl Into<String>, source: impl StdError + Send + Sync + 'static) -> Self {
        Self { operation: operation.into(), source: Some(Box::new(source)) }
    }

    /// A failure without a deeper cause.
    pub fn new(operation: impl Into<String>) -> Self {
        Self { operation: operation.into(), source: None }
    }
}

/// The operation and all causes, because some libraries keep the system's answer in the source of their
/// error.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&error::with_causes(
            &self.operation,
            self.source.as_deref().map(|source| -> &(dyn StdError + 'static) { source }),
        ))
    }
}

impl StdError for Failure {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| -> &(dyn StdError + 'static) { source })
    }
}

impl Error {
    /// An operation failed without a deeper cause.
    pub fn failure(operation: impl Into<String>) -> Self {
        Failure::new(operation).into()
    }
}

/// Adds the failed operation to an error of a library or a system call.
pub trait Context<T> {
    /// Wraps the error in a [`Failure`] of this operation.
    fn context<D: fmt::Display>(self, operation: impl FnOnce() -> D) -> Result<T>;
}

impl<T, E: StdError + Send + Sync + 'static> Context<T> for std::result::Result<T, E> {
    fn context<D: fmt::Display>(self, operation: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|error| Failure::caused_by(operation().to_string(), error).into())
    }
}

/// At the edge of this layer, an error becomes a category and one line.
impl From<Error> for error::Error {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Failed(_) | Error::Namespace(NamespaceError::Io(_)) => Kind::Failure,
            Error::Cgroup(_)
            | Error::Namespace(
                NamespaceError::Missing(_) | NamespaceError::ProcessEnded(_) | NamespaceError::NotANetns(_),
            ) => Kind::Usage,
            Error::Namespace(NamespaceError::NameTaken(_))
            | Error::InterfaceExists { .. }
            | Error::DefaultRouteExists { .. }
            | Error::IngressQdisc { .. }
            | Error::MapMismatch { .. }
            | Error::LaterLayout { .. } => Kind::Conflict,
            Error::Namespace(NamespaceError::NotPermitted(_)) => Kind::NotPermitted,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<NamespaceError> for error::Error {
    fn from(error: NamespaceError) -> Self {
        Error::from(error).into()
    }
}

impl From<Failure> for error::Error {
    fn from(failure: Failure) -> Self {
        Error::from(failure).into()
    }
}
