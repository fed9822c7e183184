//! Expected verdicts and state changes.

use portmap_common::{
    flow_state::{
        Echo, FragCacheEntry, HostConnection, HostConnectionKey, HostFlowKey, Neighbour, NeighbourKey,
    },
    tables::PortEntry,
};
use portmap_ebpf::verdict::{IcmpIdRewrite, NextHop, Origin};

use crate::state::{Datagram, Peer};

/// An expected verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Left to the host.
    Left,
    /// Already handled, or not counted at this hook.
    AlreadyHandled,
    /// Stays inside the container.
    DeliverLocal(u16),
    /// Dropped, and counted for this slot.
    Dropped(u16),
    /// To a container.
    Container(Delivery),
    /// From this slot to the outside.
    Outside(u16, Exit),
    /// From a container to the outside with a free identifier, or dropped if all candidates are taken.
    Request(EchoRequest),
    /// From this slot to the host.
    Host(u16),
    /// Redirected to the container's `eth0`.
    Eth0(u32),
    /// Into the container's loopback device.
    Loopback,
    /// In a flow of the uplink's qdisc.
    AssignFlow(u16),
}

/// The way of a packet to the outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Index of the interface.
    pub ifindex: u32,
    /// The next hop.
    pub next_hop: NextHop,
}

/// A question to the FIB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Whether it is about IPv6.
    pub is_v6: bool,
    /// Source address of the packet; an IPv4 address as `::ffff:a.b.c.d`.
    pub source: [u8; 16],
    /// Destination address, in the same form.
    pub destination: [u8; 16],
    /// Its protocol.
    pub protocol: u8,
    /// Source and destination port; 0 if it has none.
    pub ports: (u16, u16),
}

/// A packet to a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Its origin.
    pub origin: Origin,
    /// Its receiver.
    pub owner: PortEntry,
    /// Whether it is from or to `::1`.
    pub by_loopback: bool,
    /// The rewrite of its identifier.
    pub rewrite: IcmpIdRewrite,
}

/// An echo request of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EchoRequest {
    /// The sender's slot.
    pub owner: Echo,
    /// The destination.
    pub peer: Peer,
    /// Its way.
    pub exit: Exit,
    /// Offset of the message in the frame.
    pub message: usize,
}

/// The expected verdict and state changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The verdict.
    pub expected: Expected,
    /// New entry of the fragment cache.
    pub first: Option<(Datagram, FragCacheEntry)>,
    /// Identifier that the host reserves.
    pub reserves: Option<(Peer, u16)>,
    /// Flow of the host that is tracked.
    pub host_flow: Option<HostFlowKey>,
    /// New entry of a neighbour that a container is charged for, or about which the FIB was asked.
    pub neighbour: Option<(NeighbourKey, Neighbour)>,
    /// New entry of a connection of the host's.
    pub host_connection: Option<(HostConnectionKey, HostConnection)>,
    /// Question to the FIB.
    pub question: Option<Question>,
}
