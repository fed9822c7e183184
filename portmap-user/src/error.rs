//! The error that clients see: a kind for exit codes and HTTP statuses, and one line for people.

use std::{error::Error as StdError, fmt};

use serde::{Deserialize, Serialize};

/// Category of an error, for people and scripts: each has its own exit code and HTTP status. Code of portmap
/// itself matches on typed errors instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// An operation failed.
    Failure,
    /// The request is not valid.
    Usage,
    /// There is no such container.
    NotFound,
    /// The request conflicts with existing state, or a resource is exhausted.
    Conflict,
    /// The daemon does not respond.
    Unreachable,
    /// The caller lacks permission.
    NotPermitted,
    /// `doctor` found a problem.
    Unhealthy,
}

impl Kind {
    /// The exit code of a command that ends with such an error.
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Failure => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Conflict => 4,
            Self::Unreachable => 5,
            Self::NotPermitted => 6,
            Self::Unhealthy => 7,
        }
    }

    /// The HTTP status of a response with such an error.
    pub const fn http_status(self) -> u16 {
        match self {
            Self::Failure => 500,
            Self::Usage => 400,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::Unreachable | Self::Unhealthy => 503,
            Self::NotPermitted => 403,
        }
    }
}

/// An error: its kind, and one line that names the value, the expectation and the remedy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    /// Its category.
    pub kind: Kind,
    /// One line for people.
    pub message: String,
}

/// A result with this error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of any kind.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// An operation failed.
    pub fn failure(message: impl Into<String>) -> Self {
        Self::new(Kind::Failure, message)
    }

    /// The request is not valid.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// The request conflicts with existing state, or a resource is exhausted.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(Kind::Conflict, message)
    }

    /// There is no container `name`.
    pub fn no_container(name: &str) -> Self {
        Self::new(
            Kind::NotFound,
            format!("no container is called {name:?}: `portmap list` shows those that exist"),
        )
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {}

/// Adds the failed operation to an error.
pub trait Context<T> {
    /// Turns the error into a failure whose message starts with the operation.
    fn context<D: fmt::Display>(self, operation: impl FnOnce() -> D) -> Result<T>;
}

impl<T, E: StdError + 'static> Context<T> for std::result::Result<T, E> {
    fn context<D: fmt::Display>(self, operation: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|error| Error::failure(with_causes(&operation().to_string(), Some(&error))))
    }
}

/// An operation and the causes of its failure in one line. Causes that the text contains already are left
/// out, because some libraries print their source, and others do not.
pub(crate) fn with_causes(operation: &str, mut cause: Option<&(dyn StdError + 'static)>) -> String {
    let mut message = operation.to_owned();
    let mut is_first = true;
    while let Some(error) = cause {
        let text = error.to_string();
        if is_first || !message.contains(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
        is_first = false;
        cause = error.source();
    }
    message
}

/// Collects the failures of several steps, all of which are tried.
#[derive(Debug, Default)]
pub struct Failures(Vec<Error>);

impl Failures {
    /// Records the error of a step that failed.
    pub fn note(&mut self, result: Result<(), impl Into<Error>>) {
        self.0.extend(result.err().map(Into::into));
    }

    /// Returns one error with all messages, if any step failed.
    pub fn into_result(self) -> Result<()> {
        let Some(kind) = self.0.first().map(|error| error.kind) else { return Ok(()) };
        let messages: Vec<_> = self.0.into_iter().map(|error| error.message).collect();
        Err(Error::new(kind, messages.join("; ")))
    }
}
