//! Drops: counts of them, and single packets as they are dropped.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// What stands in the place of a container's name for packets that no container sent.
pub const OUTSIDE: &str = "outside";

/// Which way dropped packets went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// To the container; from outside to the host.
    Rx,
    /// Sent by the container.
    Tx,
}

impl Direction {
    /// The name that commands print.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rx => "rx",
            Self::Tx => "tx",
        }
    }
}

/// How many packets were dropped for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropCount {
    /// The container's name, or [`OUTSIDE`].
    pub name: String,
    /// Which way the packets went.
    pub direction: Direction,
    /// Name of the reason.
    pub reason: String,
    /// Number of packets.
    pub packets: u64,
    /// What the reason means, in one sentence.
    pub text: String,
}

/// One packet that was dropped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropSample {
    /// When: the host's local time with milliseconds and its distance from UTC (RFC 3339).
    pub time: String,
    /// Name of the container that sent it, or [`OUTSIDE`].
    pub name: String,
    /// Name of the reason.
    pub reason: String,
    /// Source address; none if it could not be read.
    pub source: Option<IpAddr>,
    /// Source port; none if there is none, or if it is 0.
    pub source_port: Option<u16>,
    /// Destination address; none if it could not be read.
    pub destination: Option<IpAddr>,
    /// Destination port; none if there is none, or if it is 0.
    pub destination_port: Option<u16>,
    /// Name or number of the protocol; the Ethernet type, such as `0x0806`, if no IP header could be read.
    pub protocol: String,
    /// Length of the frame in bytes.
    pub length: u32,
    /// Dropped packets of the same sender that were not shown, since the one that was shown last.
    pub suppressed: u64,
}

/// What a follower is told: a packet, or that it was too slow for some of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum DropNews {
    /// A packet was dropped.
    Sample(DropSample),
    /// Samples of anybody's packets were thrown away, because this follower did not take them in time.
    Missed {
        /// Number of samples.
        missed: u64,
    },
}
