//! The state of a container.

use serde::{Deserialize, Serialize};

/// State of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerState {
    /// The daemon is creating it.
    Adding,
    /// In service.
    Ready,
    /// The daemon is removing it.
    Deleting,
    /// Its veth pair is missing, and the daemon could not recreate it.
    Broken,
}

impl ContainerState {
    /// The name in JSON and in the output of commands.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Adding => "adding",
            Self::Ready => "ready",
            Self::Deleting => "deleting",
            Self::Broken => "broken",
        }
    }
}
