//! The reconciler: its parts. Each other file of this directory adds one of its jobs.

use std::sync::Arc;

use super::progress::Progress;
use crate::daemon::{
    container::Containers, env::Env, host::Host, operations::Operations, registry::Registry,
};

/// Reconciles the host and the containers.
pub(in crate::daemon) struct Reconciler {
    pub(super) env: Arc<Env>,
    pub(super) registry: Arc<Registry>,
    pub(super) host: Arc<Host>,
    pub(super) containers: Arc<Containers>,
    pub(super) operations: Arc<Operations>,
    /// The progress of the takeover of an earlier daemon's containers.
    pub(super) progress: Progress,
}
