//! One error type: what kind of thing went wrong, for programs, and one line that says it, for people.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a caller can act on; each kind has its own exit code and HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Something failed that should have worked.
    Failure,
    /// The request makes no sense.
    Usage,
    /// There is no such container.
    NotFound,
    /// The request collides with something that exists, or a resource is used up.
    Conflict,
    /// The daemon does not answer.
    Unreachable,
    /// The caller may not do this.
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

/// An error: its kind and one line that names the value, what was expected, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    /// What a caller can act on.
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

    /// Something failed that should have worked.
    pub fn failure(message: impl Into<String>) -> Self {
        Self::new(Kind::Failure, message)
    }

    /// The request makes no sense.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// The request collides with something that exists, or a resource is used up.
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

impl std::error::Error for Error {}

/// Says what was being done when something failed.
pub trait Context<T> {
    /// Prefixes the error with what was being done.
    fn context(self, doing: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: std::error::Error> Context<T> for std::result::Result<T, E> {
    fn context(self, doing: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| {
            let mut message = format!("{}: {error}", doing());
            // Some libraries keep the system's answer in the source of their error.
            let mut source = error.source();
            while let Some(cause) = source {
                let cause_text = cause.to_string();
                if !message.contains(&cause_text) {
                    message.push_str(": ");
                    message.push_str(&cause_text);
                }
                source = cause.source();
            }
            Error::failure(message)
        })
    }
}

/// Failures of steps of which all are to be tried.
#[derive(Debug, Default)]
pub struct Failures(Vec<Error>);

impl Failures {
    /// Keeps the error of a step that failed.
    pub fn note(&mut self, result: Result<()>) {
        self.0.extend(result.err());
    }

    /// One error that names them all, or none.
    pub fn into_result(self) -> Result<()> {
        let Some(kind) = self.0.first().map(|error| error.kind) else { return Ok(()) };
        let messages: Vec<_> = self.0.into_iter().map(|error| error.message).collect();
        Err(Error::new(kind, messages.join("; ")))
    }
}
