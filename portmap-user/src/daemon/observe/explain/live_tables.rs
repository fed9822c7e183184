//! The live maps as [`Tables`]. Writes are ignored, as in a dry run.

use std::cell::RefCell;

use portmap_common::{
    flow_state::{
        Echo, EchoKey, FragCacheEntry, FragmentKey4, FragmentKey6, HostConnection, HostConnectionKey,
        HostFlow, HostFlowKey, Neighbour, NeighbourKey,
    },
    gcra::GcraState,
    reason::Reason,
    tables::{Address4, Address6, Config, Endpoint, PortEntry},
};
use portmap_ebpf::{
    Tables, Verdict,
    fib::{FibAnswer, FibQuestion},
    verdict::NextHop,
};

use crate::{
    daemon::registry::Registry,
    error::{Error, Result},
    kernel::{self, clock, maps::Maps},
};

/// The maps at one point in time.
pub(super) struct Live<'a> {
    maps: &'a Maps,
    registry: &'a Registry,
    config: &'a Config,
    now: u64,
    /// The kernel's answer to a question about a route.
    route: FibAnswer,
    /// The first error in reading a map, which makes the decision void.
    failed: RefCell<Option<Error>>,
}

impl<'a> Live<'a> {
    /// Returns the maps at the current time. Only a program can ask the kernel for a route, so its answer is
    /// taken from the verdict of the program.
    pub(super) fn new(
        maps: &'a Maps,
        registry: &'a Registry,
        config: &'a Config,
        verdict: Option<Verdict>,
    ) -> Result<Self> {
        let route = match verdict {
            Some(Verdict::ToOutside { ifindex, next_hop, .. }) => {
                let is_resolved = next_hop != NextHop::KERNEL;
                let outcome = if is_resolved { FibAnswer::RESOLVED } else { FibAnswer::UNRESOLVED };
                FibAnswer { outcome, ifindex, next_hop }
            }
            // A packet that was dropped for another reason had a route.
            Some(Verdict::Drop { reason, .. }) if reason != Reason::NoRoute => {
                FibAnswer { outcome: FibAnswer::UNRESOLVED, ..FibAnswer::NONE }
            }
            _ => FibAnswer::NONE,
        };
        Ok(Self { maps, registry, config, now: clock::monotonic()?, route, failed: RefCell::new(None) })
    }

    /// Returns the first error in reading them.
    pub(super) fn into_result(self) -> Result<()> {
        self.failed.into_inner().map_or(Ok(()), Err)
    }

    fn read<T: Default>(&self, read: Result<T, kernel::Error>) -> T {
        read.unwrap_or_else(|error| {
            self.failed.borrow_mut().get_or_insert(error.into());
            T::default()
        })
    }
}

impl Tables for Live<'_> {
    fn port(&self, port: u16) -> PortEntry {
        self.registry.owner_of(port)
    }

    fn endpoint(&self, slot: u16) -> Endpoint {
        self.read(self.maps.endpoint(slot))
    }

    fn config(&self) -> &Config {
        self.config
    }

    fn now(&self) -> u64 {
        self.now
    }

    fn fragment4(&self, key: &FragmentKey4) -> Option<FragCacheEntry> {
        self.read(self.maps.fragment4(key))
    }

    fn set_fragment4(&self, _key: &FragmentKey4, _fragment: &FragCacheEntry) {}

    fn fragment6(&self, key: &FragmentKey6) -> Option<FragCacheEntry> {
        self.read(self.maps.fragment6(key))
    }

    fn set_fragment6(&self, _key: &FragmentKey6, _fragment: &FragCacheEntry) {}

    fn echo(&self, key: &EchoKey) -> Option<Echo> {
        self.read(self.maps.echo(key))
    }

    fn set_echo(&self, _key: &EchoKey, _echo: &Echo) {}

    fn renew_echo(&self, _key: &EchoKey, _seen: u64) {}

    fn claim_echo(&self, _key: &EchoKey, _echo: &Echo, _stale: Option<Echo>) -> bool {
        true
    }

    fn is_host_port_allowed(&self, port: u16) -> bool {
        self.read(self.maps.is_open(port))
    }

    fn host_flow(&self, key: &HostFlowKey) -> Option<HostFlow> {
        self.read(self.maps.host_flow(key))
    }

    fn set_host_flow(&self, _key: &HostFlowKey, _flow: &HostFlow) {}

    fn neighbour(&self, _key: &NeighbourKey) -> Option<Neighbour> {
        // A dry run does not read the policers.
        None
    }

    fn set_neighbour(&self, _key: &NeighbourKey, _neighbour: &Neighbour) {}

    fn charge_neighbour(&self, _slot: u16, _now: u64) -> bool {
        true
    }

    fn is_broadcast(&self, address: Address4) -> bool {
        self.read(self.maps.is_broadcast(address))
    }

    fn is_address4(&self, address: Address4) -> bool {
        self.read(self.maps.is_address4(address))
    }

    fn is_address6(&self, address: Address6) -> bool {
        self.read(self.maps.is_address6(address))
    }

    fn fib(&self, _question: &FibQuestion) -> FibAnswer {
        self.route
    }

    fn host_connection(&self, key: &HostConnectionKey) -> HostConnection {
        self.read(self.maps.host_connection(key)).unwrap_or_default()
    }

    fn set_host_connection(&self, _key: &HostConnectionKey, _connection: &HostConnection) {}

    fn policer(&self, _slot: u16) -> Option<&GcraState> {
        // A policer's state changes all the time, and a dry run does not use it either.
        None
    }

    fn advance_tat(&self, _slot: u16, _time: u64, _now: u64, _tolerance: u64) -> bool {
        true
    }
}
