//! The host: its state, and the daemon's changes to it.

pub(super) mod attach;
mod description;
mod direct;
mod interfaces;
pub(super) mod ipsec;
pub(super) mod nat;
mod ownership;
mod policy;
mod primary;
mod projection;
mod published;
pub(super) mod setup;
pub(super) mod sockets;
mod state;
pub(super) mod tracked;
mod uplink;
pub(super) mod uplink_qdisc;

use std::sync::{Arc, MutexGuard};

pub(super) use self::{
    ownership::Ownership,
    state::{HostState, MAC_WITHOUT_ETHERNET},
};
use crate::{
    kernel::sysctl::Sysctls,
    locks::{Held, Rank, Ranked, RankedRw},
};

/// The host, as this daemon has read and claimed it.
pub(super) struct Host {
    /// The host's own settings.
    pub(super) sysctls: Sysctls,
    /// The state of the host. A change replaces the whole value.
    state: RankedRw<Arc<HostState>>,
    /// Held by the thread that compares the state with the kernel and updates the containers.
    refresh: Ranked<()>,
    /// The claim on the network namespace and on the pins.
    ownership: Ranked<Ownership>,
}

impl Host {
    /// A host in this state, which this daemon has claimed.
    pub(super) fn new(sysctls: Sysctls, state: HostState, ownership: Ownership) -> Self {
        Self {
            sysctls,
            state: RankedRw::new(Rank::HostState, Arc::new(state)),
            refresh: Ranked::new(Rank::HostRefresh, ()),
            ownership: Ranked::new(Rank::Ownership, ownership),
        }
    }

    /// The state of the host, as last read.
    pub(super) fn state(&self) -> Arc<HostState> {
        self.state.read().clone()
    }

    /// Replaces the state.
    pub(super) fn replace_state(&self, state: HostState) {
        *self.state.write() = Arc::new(state);
    }

    /// Waits until no other thread refreshes the state, and keeps others from it until the guard is dropped.
    pub(super) fn begin_refresh(&self) -> Held<MutexGuard<'_, ()>> {
        self.refresh.lock()
    }

    /// The claim on the network namespace and on the pins.
    pub(super) fn ownership(&self) -> Held<MutexGuard<'_, Ownership>> {
        self.ownership.lock()
    }
}
