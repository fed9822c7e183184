//! Operations on one container: add, update, delete.
//!
//! The caller must hold the container's lock. A failed `add` or `update` is rolled back.

pub(super) mod add;
pub(super) mod attach;
mod block;
pub(super) mod deprovision;
mod drain;
pub(super) mod limits;
pub(super) mod lookup;
pub(super) mod netns;
pub(super) mod owner;
pub(super) mod provision;
mod published;
mod replace;
mod update;
mod view;

use std::sync::Arc;

use super::{env::Env, host::Host, registry::Registry};

/// The operations on single containers.
pub(super) struct Containers {
    env: Arc<Env>,
    registry: Arc<Registry>,
    host: Arc<Host>,
}

impl Containers {
    /// The operations on the containers of this registry.
    pub(super) const fn new(env: Arc<Env>, registry: Arc<Registry>, host: Arc<Host>) -> Self {
        Self { env, registry, host }
    }
}
