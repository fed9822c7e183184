//! Why the registry refuses a request.

use crate::{error::Error, kernel};

/// The reason for which the registry refuses a request.
#[derive(Debug, thiserror::Error)]
pub(in crate::daemon) enum Refusal {
    /// Other containers own a requested resource. Some of them may have ended without the daemon noticing.
    #[error("{0}")]
    Taken(Error),
    /// Anything else.
    #[error(transparent)]
    Failed(#[from] Error),
}

impl Refusal {
    pub(super) fn taken(message: impl Into<String>) -> Self {
        Self::Taken(Error::conflict(message))
    }

    /// Appends a sentence to the message.
    pub(in crate::daemon) fn and(self, more: &str) -> Self {
        let add = |error: Error| Error::new(error.kind, format!("{error}; {more}"));
        match self {
            Self::Taken(error) => Self::Taken(add(error)),
            Self::Failed(error) => Self::Failed(add(error)),
        }
    }
}

impl From<kernel::Error> for Refusal {
    fn from(error: kernel::Error) -> Self {
        Self::Failed(error.into())
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Taken(error) | Refusal::Failed(error) => error,
        }
    }
}
