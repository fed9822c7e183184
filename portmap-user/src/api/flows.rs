//! Who a container talks to.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Flows in a response unless the request says otherwise.
const DEFAULT_LIMIT: usize = 20;

/// Request for the flows of a container, as the query of a URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlowsRequest {
    /// Most flows in the response, those with the most bytes.
    #[serde(default = "default_limit")]
    pub limit: usize,
    /// Whether all ports of a peer are one flow.
    #[serde(default)]
    pub by_peer: bool,
}

impl FlowsRequest {
    /// Most flows that a request may ask for.
    pub const MAX_LIMIT: usize = 1000;
}

impl Default for FlowsRequest {
    fn default() -> Self {
        Self { limit: DEFAULT_LIMIT, by_peer: false }
    }
}

const fn default_limit() -> usize {
    DEFAULT_LIMIT
}

/// Which end of a connection is the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FlowDirection {
    /// The container connects to the peer's port.
    Out,
    /// The peer connects to the container's port.
    In,
}

impl FlowDirection {
    /// The name in JSON and in the output of commands.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Out => "out",
            Self::In => "in",
        }
    }
}

/// The connections of a container with one peer to one service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// `tcp` or `udp`.
    pub protocol: String,
    /// The peer's address.
    pub peer: IpAddr,
    /// The container that owns the peer's port, or `host`; `None` if the peer is outside.
    pub peer_name: Option<String>,
    /// Which end is the service; `None` if all ports of the peer are one flow.
    pub direction: Option<FlowDirection>,
    /// The service's port: the peer's if the direction is `out`, the container's if it is `in`.
    pub port: Option<u16>,
    /// Number of open connections, or of connected UDP sockets.
    pub connections: u64,
    /// Bytes of data sent, without retransmissions; `None` for UDP, whose sockets do not count.
    pub bytes_sent: Option<u64>,
    /// Bytes of data received.
    pub bytes_received: Option<u64>,
    /// Mean of the connections' smoothed round-trip times in microseconds; `None` if none is measured.
    pub rtt_us: Option<u64>,
    /// Segments retransmitted.
    pub retransmits: Option<u64>,
}

/// The flows that are not listed, together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherFlows {
    /// Number of connections.
    pub connections: u64,
    /// Bytes of data sent.
    pub bytes_sent: u64,
    /// Bytes of data received.
    pub bytes_received: u64,
}

/// The open connections of a container, by peer and service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flows {
    /// Its name.
    pub name: String,
    /// The flows with the most bytes, in both directions together.
    pub flows: Vec<Flow>,
    /// All other flows.
    pub others: OtherFlows,
    /// UDP sockets without a fixed peer, of which the kernel does not record who they talk to.
    pub unconnected_udp: u64,
    /// Whether every socket was read in time, and every flow counted separately.
    pub is_complete: bool,
}
