//! `portmap explain`: the verdicts on a hypothetical packet.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::wire::AsText;
use crate::model::Protocol;

pub use crate::model::name::HOST;

/// A packet to explain. The daemon chooses plausible values for omitted fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainRequest {
    /// Its sender: a container's name, [`HOST`] or [`OUTSIDE`](super::OUTSIDE).
    pub from: String,
    /// Its protocol; an ICMP packet is an echo request.
    #[serde(default, with = "AsText")]
    pub protocol: Protocol,
    /// Its source address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<IpAddr>,
    /// Its source port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    /// Its destination address.
    pub destination: IpAddr,
    /// Its destination port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<u16>,
}

/// The packet with all fields filled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedPacket {
    /// Its protocol.
    #[serde(with = "AsText")]
    pub protocol: Protocol,
    /// Its source address.
    pub source: IpAddr,
    /// Its source port; `None` if the protocol has no ports.
    pub source_port: Option<u16>,
    /// Its destination address.
    pub destination: IpAddr,
    /// Its destination port; `None` if the protocol has no ports.
    pub destination_port: Option<u16>,
}

/// A verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The action: `continue`, `decided`, `own`, `drop`, `to_container`, `to_outside`, `to_host`, `to_eth0`
    /// or `to_loopback`; `none` if no program sees the packet, `unknown` if a program's result cannot be
    /// decoded.
    pub verdict: String,
    /// Name of the reason, if the verdict has one.
    pub reason: Option<String>,
    /// The packet's destination: a container's name or the next hop's address.
    pub target: Option<String>,
    /// The verdict as a sentence.
    pub text: String,
}

/// The verdict at one hook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The hook.
    pub hook: String,
    /// The program at the hook.
    pub program: String,
    /// The verdict of the loaded program.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Whether the daemon's copy of the decision code returns the same verdict.
    pub agrees: bool,
    /// The verdict of the daemon's copy, if it differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision_code: Option<Outcome>,
}

/// The packet's path through the hooks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The packet.
    pub packet: ExplainedPacket,
    /// The hooks that it passes, in order, up to the first at which program and decision code disagree.
    pub steps: Vec<Step>,
    /// The final verdict.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Whether all loaded programs and the decision code agree.
    pub agrees: bool,
    /// Programs and NAT rules of the host that may decide otherwise, one line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}
