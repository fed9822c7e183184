//! Who a container talks to, from its sockets: one visit of its namespace, on demand. The datapath keeps no
//! table of connections for it.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    ops::ControlFlow,
    time::{Duration, Instant},
};

use super::talkers::{Key, Talkers, Total};
use crate::{
    api::{FlowDirection, Flows, FlowsRequest, HOST},
    daemon::{container::lookup, env::Env, host::HostState, registry::Snapshot},
    error::{Error, Result},
    kernel::{
        tcp_sockets::{self, Ended, Query},
        udp_sockets,
    },
    model::{ContainerRecord, Loopback, PortRange, Protocol, TcpInfo, TcpSocket, TcpState},
};

/// Time for the visit; the rest of the sockets is left out.
const PATIENCE: Duration = Duration::from_secs(2);

/// States of sockets with a peer. Those in `TIME_WAIT` have no counters any more.
const CONNECTED: [TcpState; 8] = [
    TcpState::Established,
    TcpState::SynSent,
    TcpState::SynReceived,
    TcpState::FinWait1,
    TcpState::FinWait2,
    TcpState::CloseWait,
    TcpState::LastAck,
    TcpState::Closing,
];

/// The flows of a container.
///
/// # Errors
///
/// If there is no such container, the request exceeds a bound, or the namespace cannot be visited.
pub(in crate::daemon) fn of(
    env: &Env,
    state: &HostState,
    containers: &Snapshot,
    name: &str,
    request: FlowsRequest,
) -> Result<Flows> {
    let record = &containers.entry(name)?.record;
    let FlowsRequest { limit, by_peer } = request;
    if !(1..=FlowsRequest::MAX_LIMIT).contains(&limit) {
        return Err(Error::usage(format!(
            "a limit of {limit} flows: expected 1 to {}",
            FlowsRequest::MAX_LIMIT
        )));
    }
    let owners = Owners::new(env, state, containers, record);
    let deadline = Instant::now() + PATIENCE;
    let (mut talkers, unconnected_udp, in_time) = lookup::visit_existing(record, |_inside| {
        let mut reader = Reader { owners: &owners, record, by_peer, talkers: Talkers::default() };
        let tcp = reader.tcp(deadline)?;
        let (udp, unconnected) = reader.udp(deadline)?;
        Ok((reader.talkers, unconnected, tcp == Ended::Complete && udp == Ended::Complete))
    })?;
    let is_complete = in_time && talkers.is_exact();
    let (flows, others) = talkers.largest(limit);
    Ok(Flows { name: name.to_owned(), flows, others, unconnected_udp, is_complete })
}

/// Reads sockets of the container's namespace.
struct Reader<'a> {
    owners: &'a Owners<'a>,
    record: &'a ContainerRecord,
    by_peer: bool,
    talkers: Talkers,
}

impl Reader<'_> {
    /// Reads TCP sockets.
    fn tcp(&mut self, deadline: Instant) -> Result<Ended> {
        let mut listened = BTreeSet::new();
        let listening = Query { states: &[TcpState::Listen], info: false, ..Query::ALL };
        let ended = tcp_sockets::visit(listening, deadline, |socket| {
            listened.insert(socket.local.port());
            ControlFlow::Continue(())
        })?;
        if ended != Ended::Complete {
            return Ok(ended);
        }
        let connected = Query { states: &CONNECTED, ..Query::ALL };
        Ok(tcp_sockets::visit(connected, deadline, |socket| {
            let (local, remote) = (socket.local.port(), socket.remote);
            let key = self.key(Protocol::TCP, local, remote.ip(), remote.port(), listened.contains(&local));
            self.talkers.add(key, total(socket));
            ControlFlow::Continue(())
        })?)
    }

    /// Reads UDP sockets; also returns the number of those without a peer.
    fn udp(&mut self, deadline: Instant) -> Result<(Ended, u64)> {
        let mut unconnected = 0;
        let ended = udp_sockets::visit(None, deadline, |socket| match socket.remote {
            None => unconnected += 1,
            Some(remote) => {
                let key = self.key(Protocol::UDP, socket.local.port(), remote.ip(), remote.port(), false);
                self.talkers.add(key, Total { connections: 1, ..Total::default() });
            }
        })?;
        Ok((ended, unconnected))
    }

    /// The flow of a socket. A port on which the container listens is a service, and so is every port that is
    /// not one of its ephemeral ports.
    fn key(&self, protocol: Protocol, local: u16, peer: IpAddr, remote: u16, is_listened: bool) -> Key {
        let is_service = is_listened || !self.record.has_ephemeral(local);
        let (direction, port) =
            if is_service { (FlowDirection::In, local) } else { (FlowDirection::Out, remote) };
        let peer_name = self.owners.name(peer, remote).map(str::to_owned);
        Key { protocol: protocol.0, peer, peer_name, service: (!self.by_peer).then_some((direction, port)) }
    }
}

/// What a connection contributes.
fn total(socket: &TcpSocket) -> Total {
    let info = socket.info.unwrap_or_default();
    let TcpInfo { rtt, retransmits, bytes_sent, bytes_retransmitted, bytes_received, .. } = info;
    // The kernel counts the end of the peer's stream as one byte.
    let end = matches!(socket.state, TcpState::CloseWait | TcpState::LastAck | TcpState::Closing);
    Total {
        connections: 1,
        bytes_sent: bytes_sent.saturating_sub(bytes_retransmitted),
        bytes_received: bytes_received.saturating_sub(u64::from(end)),
        retransmits: retransmits.into(),
        rtt_sum: rtt.into(),
        rtt_count: u64::from(rtt > 0),
    }
}

/// The owners of the ports of this host, as the peers of one container.
struct Owners<'a> {
    /// By first port.
    ranges: Vec<(PortRange, &'a str)>,
    addresses: Vec<IpAddr>,
    /// The container, if its loopback addresses are its own.
    private: Option<&'a str>,
}

impl<'a> Owners<'a> {
    fn new(env: &Env, state: &HostState, containers: &'a Snapshot, record: &'a ContainerRecord) -> Self {
        let mut ranges: Vec<(PortRange, &str)> = Vec::new();
        for other in containers.ready() {
            ranges.extend(other.all_ports().ranges().iter().map(|range| (*range, other.name.as_str())));
        }
        ranges.sort_by_key(|(range, _)| range.first());
        Self {
            ranges,
            addresses: state.addresses.iter().map(|own| own.address).collect(),
            private: (env.loopback(record) == Loopback::Private).then_some(record.name.as_str()),
        }
    }

    /// The container that owns the port, or the host; `None` if the address is not of this host.
    fn name(&self, address: IpAddr, port: u16) -> Option<&'a str> {
        if address.is_loopback()
            && let Some(private) = self.private
        {
            return Some(private);
        }
        if !address.is_loopback() && !self.addresses.contains(&address) {
            return None;
        }
        let after = self.ranges.partition_point(|(range, _)| range.first() <= port);
        let before = after.checked_sub(1).and_then(|index| self.ranges.get(index));
        Some(before.filter(|(range, _)| range.contains(port)).map_or(HOST, |(_, name)| *name))
    }
}
