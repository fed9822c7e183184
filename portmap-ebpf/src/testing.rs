//! Support for tests of the decision code: maps in memory, and the fast path by itself.
//!
//! Two test programs have implementations of [`Tables`] of their own: the reference test records each write
//! and lookup to compare it with its model, and the fuzz targets keep state in the form that their
//! specification uses and simulate races between CPUs.
extern crate std;

use core::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use portmap_common::{
    flow_state::{
        Echo, EchoKey, FragCacheEntry, FragmentKey4, FragmentKey6, HostConnection, HostConnectionKey,
        HostFlow, HostFlowKey, Neighbour, NeighbourKey,
    },
    gcra::GcraState,
    hook_point::HookPoint,
    tables::{Address4, Address6, Config, Endpoint, HOST_CONNECTIONS, PortEntry},
};

use crate::{
    fib::{FibAnswer, FibQuestion},
    frame::Frame,
    hooks::{ContainerEth0, ContainerLo, Hook, HostLo, ReturnVerdict, Uplink, UplinkEgress, Veth},
    packet::{FastPath, IpVersion as _, V4, V6, ethernet::L3},
    tables::Tables,
    verdict::Verdict,
};

/// [`Tables`] in memory. A test fills in the fields that it needs; a missing port or endpoint is all zero,
/// and every new neighbour conforms.
#[derive(Clone, Debug, Default)]
pub struct FakeTables {
    /// Owners by port.
    pub ports: BTreeMap<u16, PortEntry>,
    /// Containers by slot.
    pub endpoints: BTreeMap<u16, Endpoint>,
    /// Configuration of the host's network.
    pub config: Config,
    /// Clock, in nanoseconds.
    pub now: Cell<u64>,
    /// The host's ports that containers may reach.
    pub allowed_host_ports: BTreeSet<u16>,
    /// Broadcast addresses of the host's networks other than the shared one.
    pub broadcasts: BTreeSet<Address4>,
    /// Shared IPv4 addresses other than the primary one.
    pub addresses4: BTreeSet<Address4>,
    /// Shared IPv6 addresses other than the primary one.
    pub addresses6: BTreeSet<Address6>,
    /// The FIB's answers by destination, in the form of [`FibQuestion::destination`].
    pub routes: BTreeMap<Address6, FibAnswer>,
    /// The FIB's answer for all other destinations.
    pub default_route: FibAnswer,
    /// Connections of the host's from ports of containers.
    pub host_connections: RefCell<BTreeMap<HostConnectionKey, HostConnection>>,
    /// Policers by slot. Their theoretical arrival times are the initial values only.
    pub policers: BTreeMap<u16, GcraState>,
    /// Theoretical arrival times by slot, once a packet has been charged.
    pub tats: RefCell<BTreeMap<u16, u64>>,
    /// Fragment cache of IPv4.
    pub fragments4: RefCell<BTreeMap<FragmentKey4, FragCacheEntry>>,
    /// Fragment cache of IPv6.
    pub fragments6: RefCell<BTreeMap<FragmentKey6, FragCacheEntry>>,
    /// Owners of ICMP identifiers.
    pub echoes: RefCell<BTreeMap<EchoKey, Echo>>,
    /// Flows from the host to containers.
    pub host_flows: RefCell<BTreeMap<HostFlowKey, HostFlow>>,
    /// Neighbours that containers have used.
    pub neighbours: RefCell<BTreeMap<NeighbourKey, Neighbour>>,
}

impl Tables for FakeTables {
    fn port(&self, port: u16) -> PortEntry {
        let mut entry = self.ports.get(&port).copied().unwrap_or_default();
        if self.host_connections.borrow().keys().any(|key| key.local_port == port) {
            entry.flags |= HOST_CONNECTIONS;
        }
        entry
    }

    fn endpoint(&self, slot: u16) -> Endpoint {
        self.endpoints.get(&slot).copied().unwrap_or_default()
    }

    fn config(&self) -> &Config {
        &self.config
    }

    fn now(&self) -> u64 {
        self.now.get()
    }

    fn fragment4(&self, key: &FragmentKey4) -> Option<FragCacheEntry> {
        self.fragments4.borrow().get(key).copied()
    }

    fn set_fragment4(&self, key: &FragmentKey4, entry: &FragCacheEntry) {
        self.fragments4.borrow_mut().insert(*key, *entry);
    }

    fn fragment6(&self, key: &FragmentKey6) -> Option<FragCacheEntry> {
        self.fragments6.borrow().get(key).copied()
    }

    fn set_fragment6(&self, key: &FragmentKey6, entry: &FragCacheEntry) {
        self.fragments6.borrow_mut().insert(*key, *entry);
    }

    fn echo(&self, key: &EchoKey) -> Option<Echo> {
        self.echoes.borrow().get(key).copied()
    }

    fn set_echo(&self, key: &EchoKey, echo: &Echo) {
        self.echoes.borrow_mut().insert(*key, *echo);
    }

    fn renew_echo(&self, key: &EchoKey, seen: u64) {
        self.echoes.borrow_mut().entry(*key).and_modify(|echo| echo.seen = seen);
    }

    fn claim_echo(&self, key: &EchoKey, echo: &Echo, stale: Option<Echo>) -> bool {
        assert_eq!(self.echo(key), stale, "no other CPU writes here");
        self.set_echo(key, echo);
        true
    }

    fn is_host_port_allowed(&self, port: u16) -> bool {
        self.allowed_host_ports.contains(&port)
    }

    fn host_flow(&self, key: &HostFlowKey) -> Option<HostFlow> {
        self.host_flows.borrow().get(key).copied()
    }

    fn set_host_flow(&self, key: &HostFlowKey, flow: &HostFlow) {
        self.host_flows.borrow_mut().insert(*key, *flow);
    }

    fn neighbour(&self, key: &NeighbourKey) -> Option<Neighbour> {
        self.neighbours.borrow().get(key).copied()
    }

    fn set_neighbour(&self, key: &NeighbourKey, neighbour: &Neighbour) {
        self.neighbours.borrow_mut().insert(*key, *neighbour);
    }

    fn charge_neighbour(&self, _slot: u16, _now: u64) -> bool {
        true
    }

    fn is_broadcast(&self, address: Address4) -> bool {
        self.broadcasts.contains(&address)
    }

    fn is_address4(&self, address: Address4) -> bool {
        self.addresses4.contains(&address)
    }

    fn is_address6(&self, address: Address6) -> bool {
        self.addresses6.contains(&address)
    }

    fn fib(&self, question: &FibQuestion) -> FibAnswer {
        self.routes.get(&question.destination).copied().unwrap_or(self.default_route)
    }

    fn host_connection(&self, key: &HostConnectionKey) -> HostConnection {
        self.host_connections.borrow().get(key).copied().unwrap_or_default()
    }

    fn set_host_connection(&self, key: &HostConnectionKey, connection: &HostConnection) {
        self.host_connections.borrow_mut().insert(*key, *connection);
    }

    fn policer(&self, slot: u16) -> Option<&GcraState> {
        self.policers.get(&slot)
    }

    fn advance_tat(&self, slot: u16, time: u64, now: u64, tolerance: u64) -> bool {
        let mut tats = self.tats.borrow_mut();
        let tat = tats.entry(slot).or_insert_with(|| self.policers.get(&slot).map_or(0, |limit| limit.tat));
        let from = (*tat).max(now);
        let conforms = from <= now + tolerance;
        if conforms {
            *tat = from + time;
        }
        conforms
    }
}

/// Returns the verdict of the fast path at a hook point, or `None` if the frame does not take it. It must be
/// the same as that of [`hooks::decide`](crate::hooks::decide).
pub fn decide_fast_path(point: HookPoint, frame: &impl Frame, tables: &impl Tables) -> Option<Verdict> {
    match point {
        HookPoint::UplinkIngress => fast_path::<Uplink>(frame, tables),
        HookPoint::UplinkEgress => fast_path::<UplinkEgress>(frame, tables),
        HookPoint::VethIngress(_) => fast_path::<Veth>(frame, tables),
        HookPoint::HostLoIngress => fast_path::<HostLo>(frame, tables),
        HookPoint::ContainerLoEgress => fast_path::<ContainerLo>(frame, tables),
        HookPoint::ContainerEth0Ingress => fast_path::<ContainerEth0>(frame, tables),
    }
}

fn fast_path<H: Hook>(frame: &impl Frame, tables: &impl Tables) -> Option<Verdict> {
    match H::classify_frame(frame, tables) {
        Ok(L3::V4) if V4::is_fast_path(frame) => {
            Some(H::apply_ip::<V4, FastPath, _>(frame, tables, &ReturnVerdict))
        }
        Ok(L3::V6) if V6::is_fast_path(frame) => {
            Some(H::apply_ip::<V6, FastPath, _>(frame, tables, &ReturnVerdict))
        }
        Ok(_) | Err(_) => None,
    }
}
