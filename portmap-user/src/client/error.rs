//! Why a request fails.

use crate::error::{Error, Kind};

/// A result of a request.
pub(super) type Result<T, E = CallError> = std::result::Result<T, E>;

/// Why a request fails.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No daemon responds at the socket.
    #[error("{0}")]
    Unreachable(String),
    /// The daemon's error response, or a failure on the way to it.
    #[error(transparent)]
    Failed(#[from] Error),
}

impl From<CallError> for Error {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Unreachable(message) => Self::new(Kind::Unreachable, message),
            CallError::Failed(error) => error,
        }
    }
}
