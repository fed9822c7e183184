//! Totals by flow, in bounded memory, however many peers a container has.

use std::{collections::HashMap, net::IpAddr};

use crate::{
    api::{Flow, FlowDirection, OtherFlows},
    model::Protocol,
};

/// Most flows that are counted separately.
const MAX_FLOWS: usize = 16_384;

/// What connections of one flow have in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    /// Number of the protocol.
    pub(super) protocol: u8,
    pub(super) peer: IpAddr,
    pub(super) peer_name: Option<String>,
    /// The service and its port; `None` if all of a peer's are one flow.
    pub(super) service: Option<(FlowDirection, u16)>,
}

/// Sums over connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Total {
    pub(super) connections: u64,
    pub(super) bytes_sent: u64,
    pub(super) bytes_received: u64,
    pub(super) retransmits: u64,
    /// Sum of round-trip times in microseconds, and the number of connections that have measured one.
    pub(super) rtt_sum: u64,
    pub(super) rtt_count: u64,
}

impl Total {
    fn add(&mut self, other: Self) {
        let Self { connections, bytes_sent, bytes_received, retransmits, rtt_sum, rtt_count } = other;
        self.connections += connections;
        // A container's own kernel counts these, but the sum over all may wrap.
        self.bytes_sent = self.bytes_sent.saturating_add(bytes_sent);
        self.bytes_received = self.bytes_received.saturating_add(bytes_received);
        self.retransmits += retransmits;
        self.rtt_sum += rtt_sum;
        self.rtt_count += rtt_count;
    }

    /// By bytes, then by connections.
    const fn weight(&self) -> (u64, u64) {
        (self.bytes_sent.saturating_add(self.bytes_received), self.connections)
    }
}

/// Totals by flow.
#[derive(Debug, Default)]
pub(super) struct Talkers {
    flows: HashMap<Key, Total>,
    /// Flows that have been removed to bound the memory.
    removed: Total,
}

impl Talkers {
    /// Adds a connection.
    pub(super) fn add(&mut self, key: Key, total: Total) {
        if self.flows.len() >= MAX_FLOWS && !self.flows.contains_key(&key) {
            self.remove_smaller_half();
        }
        self.flows.entry(key).or_default().add(total);
    }

    /// Whether every flow is counted separately from its first connection on.
    pub(super) fn is_exact(&self) -> bool {
        self.removed.connections == 0
    }

    fn remove_smaller_half(&mut self) {
        let mut all: Vec<(Key, Total)> = self.flows.drain().collect();
        let half = all.len() / 2;
        all.select_nth_unstable_by(half, |(_, a), (_, b)| b.weight().cmp(&a.weight()));
        for (_, total) in all.drain(half..) {
            self.removed.add(total);
        }
        self.flows.extend(all);
    }

    /// The largest flows, the largest first, and all others together.
    pub(super) fn largest(&mut self, limit: usize) -> (Vec<Flow>, OtherFlows) {
        let mut all: Vec<(Key, Total)> = self.flows.drain().collect();
        all.sort_by(|(a_key, a), (b_key, b)| b.weight().cmp(&a.weight()).then_with(|| a_key.cmp(b_key)));
        let mut others = self.removed;
        for (_, total) in all.drain(limit.min(all.len())..) {
            others.add(total);
        }
        let Total { connections, bytes_sent, bytes_received, .. } = others;
        (all.into_iter().map(flow).collect(), OtherFlows { connections, bytes_sent, bytes_received })
    }
}

fn flow((key, total): (Key, Total)) -> Flow {
    let Key { protocol, peer, peer_name, service } = key;
    let Total { connections, bytes_sent, bytes_received, retransmits, rtt_sum, rtt_count } = total;
    let protocol = Protocol(protocol);
    let counted = |value: u64| (protocol == Protocol::TCP).then_some(value);
    Flow {
        protocol: protocol.to_string(),
        peer,
        peer_name,
        direction: service.map(|(direction, _)| direction),
        port: service.map(|(_, port)| port),
        connections,
        bytes_sent: counted(bytes_sent),
        bytes_received: counted(bytes_received),
        rtt_us: rtt_sum.checked_div(rtt_count),
        retransmits: counted(retransmits),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(peer: u32) -> Key {
        Key {
            protocol: Protocol::TCP.0,
            peer: IpAddr::V4(peer.into()),
            peer_name: None,
            service: Some((FlowDirection::Out, 80)),
        }
    }

    fn connection(bytes_sent: u64, rtt: u64) -> Total {
        let rtt_count = u64::from(rtt > 0);
        Total { connections: 1, bytes_sent, rtt_sum: rtt, rtt_count, ..Total::default() }
    }

    #[test]
    fn flows_are_summed_and_sorted_by_bytes() {
        let mut talkers = Talkers::default();
        for (peer, bytes, rtt) in [(1, 10, 0), (2, 30, 100), (2, 40, 300), (3, 20, 0), (2, 0, 0)] {
            talkers.add(key(peer), connection(bytes, rtt));
        }
        assert!(talkers.is_exact());
        let (flows, others) = talkers.largest(2);
        let peers: Vec<_> = flows.iter().map(|flow| flow.peer.to_string()).collect();
        assert_eq!(peers, ["0.0.0.2", "0.0.0.3"]);
        assert_eq!((flows[0].connections, flows[0].bytes_sent, flows[0].rtt_us), (3, Some(70), Some(200)));
        assert_eq!((flows[1].rtt_us, flows[1].port), (None, Some(80)));
        assert_eq!(others, OtherFlows { connections: 1, bytes_sent: 10, bytes_received: 0 });
    }

    #[test]
    fn flows_of_udp_have_no_bytes() {
        let mut talkers = Talkers::default();
        talkers
            .add(Key { protocol: Protocol::UDP.0, ..key(1) }, Total { connections: 1, ..Total::default() });
        let (flows, _) = talkers.largest(1);
        assert_eq!(
            (flows[0].protocol.as_str(), flows[0].bytes_sent, flows[0].retransmits),
            ("udp", None, None)
        );
    }

    /// More peers than are counted separately: the memory stays bounded, nothing is lost, and the largest are
    /// still the first.
    #[test]
    fn flows_of_many_peers_are_bounded() {
        let mut talkers = Talkers::default();
        let count = 5 * u32::try_from(MAX_FLOWS).expect("a small number");
        for peer in 0..count {
            talkers.add(key(peer), connection(u64::from(peer % 1000), 0));
            if peer == 7 {
                talkers.add(key(peer), connection(1_000_000, 0));
            }
            assert!(talkers.flows.len() <= MAX_FLOWS);
        }
        assert!(!talkers.is_exact());
        let (flows, others) = talkers.largest(1);
        assert_eq!(flows[0].peer.to_string(), "0.0.0.7");
        assert_eq!(others.connections + flows[0].connections, u64::from(count) + 1);
        let sum: u64 = (0..count).map(|peer| u64::from(peer % 1000)).sum();
        assert_eq!(others.bytes_sent + flows[0].bytes_sent.unwrap_or_default(), sum + 1_000_000);
    }
}
