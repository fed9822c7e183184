//! Dropped packets: counters and samples.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

pub use crate::model::name::OUTSIDE;

/// Direction of dropped packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// To the container, or from outside to the host.
    Rx,
    /// Sent by the container.
    Tx,
}

impl Direction {
    /// The name in JSON and in the output of commands.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rx => "rx",
            Self::Tx => "tx",
        }
    }
}

/// Count of packets dropped for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropCount {
    /// The container's name, or [`OUTSIDE`].
    pub name: String,
    /// Direction of the packets.
    pub direction: Direction,
    /// Name of the reason.
    pub reason: String,
    /// Number of packets.
    pub packets: u64,
    /// Meaning of the reason, in one sentence.
    pub text: String,
}

/// One dropped packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropSample {
    /// Time of the drop: the host's local time with milliseconds and UTC offset (RFC 3339).
    pub time: String,
    /// Name of the sending container, or [`OUTSIDE`].
    pub name: String,
    /// Name of the reason.
    pub reason: String,
    /// Source address; `None` if the packet could not be parsed.
    pub source: Option<IpAddr>,
    /// Source port; `None` if the packet has none, or if it is 0.
    pub source_port: Option<u16>,
    /// Destination address; `None` if the packet could not be parsed.
    pub destination: Option<IpAddr>,
    /// Destination port; `None` if the packet has none, or if it is 0.
    pub destination_port: Option<u16>,
    /// Name or number of the protocol; the `EtherType`, such as 0x0806, if there is no valid IP header.
    pub protocol: String,
    /// Length of the frame in bytes.
    pub length: u32,
    /// Dropped packets of this sender that were not sampled since the previous sample.
    pub suppressed: u64,
}

impl DropSample {
    /// Source and destination, as far as the packet could be parsed.
    pub fn packet(&self) -> String {
        match (self.source, self.destination) {
            (Some(source), Some(destination)) => {
                let (from, to) =
                    (endpoint(source, self.source_port), endpoint(destination, self.destination_port));
                format!("{from} > {to}")
            }
            _ => "-".to_owned(),
        }
    }
}

/// An address, with the port if there is one.
pub fn endpoint(address: IpAddr, port: Option<u16>) -> String {
    port.map_or_else(|| address.to_string(), |port| SocketAddr::new(address, port).to_string())
}

/// An item of the stream of drops: a sample, or a gap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum DropStreamItem {
    /// A dropped packet.
    Sample(DropSample),
    /// The daemon discarded samples because this client did not read fast enough.
    Missed {
        /// Number of discarded samples.
        missed: u64,
    },
}
