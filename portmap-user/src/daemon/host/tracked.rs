//! Connections through the host's NAT that are older than a container with their ports.

use std::time::Duration;

use portmap_common::flow_state::HostConnectionKey;

use super::{HostState, sockets::key};
use crate::{
    error::Result,
    kernel::nat::{self, TrackedConnection},
    model::PortSet,
};

/// Returns the connections of other machines to some ports of the host that the host's connection tracking knows, with
/// the time for which it keeps each.
///
/// # Errors
///
/// If the kernel cannot list them.
pub(in crate::daemon) fn connections(
    state: &HostState,
    ports: &PortSet,
) -> Result<Vec<(HostConnectionKey, Duration)>> {
    let is_from_outside = |connection: &TrackedConnection| {
        ports.contains(connection.local.port())
            && state.shares(connection.local.ip())
            && !state.shares(connection.peer.ip())
    };
    let found = nat::connections(is_from_outside)?;
    Ok(found.into_iter().map(|found| (key(found.local, found.peer), found.timeout)).collect())
}
