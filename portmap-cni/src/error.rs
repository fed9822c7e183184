//! The plugin's errors, in the form that CNI prescribes.

use std::fmt;

use portmap::error::{Error, Kind};
use serde_json::{Value, json};

use crate::version::Version;

/// A result with this error.
pub(crate) type Result<T, E = CniError> = std::result::Result<T, E>;

/// Codes of the specification, below 100, and of this plugin: 100 and the exit code of `portmap`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    /// The runtime speaks a version of CNI that the plugin or the command does not have.
    IncompatibleVersion,
    /// An environment variable is missing or not valid.
    InvalidEnvironment,
    /// Standard input cannot be read.
    Io,
    /// Standard input is not the JSON of a configuration.
    Decoding,
    /// The configuration asks for something that is not valid or not supported.
    InvalidConfig,
    /// The daemon does not respond; a later attempt can succeed.
    TryAgain,
    /// The answer to STATUS: containers cannot be added now.
    NotAvailable,
    /// The daemon refuses or fails for another reason.
    Daemon(Kind),
}

impl Code {
    const fn number(self) -> u32 {
        match self {
            Self::IncompatibleVersion => 1,
            Self::InvalidEnvironment => 4,
            Self::Io => 5,
            Self::Decoding => 6,
            Self::InvalidConfig => 7,
            Self::TryAgain => 11,
            Self::NotAvailable => 50,
            Self::Daemon(kind) => 100 + kind.exit_code() as u32,
        }
    }
}

/// An error: its code, and one line that names the value, the expectation and the remedy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CniError {
    pub(crate) code: Code,
    pub(crate) message: String,
}

impl CniError {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The configuration is not valid.
    pub(crate) fn config(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidConfig, message)
    }

    /// An environment variable is not valid.
    pub(crate) fn environment(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidEnvironment, message)
    }

    /// The JSON for the runtime. Runtimes print the message and then the details, which are always empty here, because
    /// the message is complete.
    pub(crate) fn to_json(&self, version: Version) -> Value {
        json!({
            "cniVersion": version.text(),
            "code": self.code.number(),
            "msg": self.message,
            "details": "",
        })
    }
}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<Error> for CniError {
    /// An error of the daemon, or of a value that the daemon would refuse.
    fn from(error: Error) -> Self {
        let code = match error.kind {
            Kind::Usage => Code::InvalidConfig,
            Kind::Unreachable => Code::TryAgain,
            kind => Code::Daemon(kind),
        };
        Self::new(code, error.message)
    }
}
