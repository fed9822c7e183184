//! Reconciliation: brings the kernel's state into agreement with the records, at start, after events, and
//! every ten seconds.

mod container;
pub(super) mod doctor;
pub(super) mod drains;
pub(super) mod events;
mod first_start;
mod host;
mod orphans;
mod pass;
mod progress;
mod reconciler;
pub(super) mod startup;
mod state_files;
pub(super) mod takeover;

pub(super) use self::reconciler::Reconciler;
