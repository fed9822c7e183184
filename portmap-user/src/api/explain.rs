//! What would become of a packet, and why.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::protocol::Protocol;

/// What stands in the place of a container's name for the host itself.
pub const HOST: &str = "host";

/// A packet whose fate is asked for. What is left out becomes something sensible.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainRequest {
    /// Who sends it: a container's name, [`HOST`] or [`OUTSIDE`](super::OUTSIDE).
    pub from: String,
    /// Its protocol; of ICMP it is an echo request.
    #[serde(default)]
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

/// The packet with everything that was left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedPacket {
    /// Its protocol.
    pub protocol: Protocol,
    /// Its source address.
    pub source: IpAddr,
    /// Its source port; none if the protocol has none.
    pub source_port: Option<u16>,
    /// Its destination address.
    pub destination: IpAddr,
    /// Its destination port; none if the protocol has none.
    pub destination_port: Option<u16>,
}

/// A verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// What happens: `continue`, `decided`, `own`, `drop`, `to_container`, `to_outside`, `to_host`, `to_eth0` or
    /// `to_loopback`; `none` if no program decides, `unknown` if a program's answer is not understood.
    pub verdict: String,
    /// Name of the reason, where there is one.
    pub reason: Option<String>,
    /// Where the packet goes: a container's name or the next hop's address.
    pub target: Option<String>,
    /// All of it in words.
    pub text: String,
}

/// What one hook decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The hook.
    pub hook: String,
    /// The program there.
    pub program: String,
    /// The verdict of the loaded program.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Whether the decision code of this daemon comes to the same verdict.
    pub agrees: bool,
    /// The verdict of that code, if it is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision_code: Option<Outcome>,
}

/// What would become of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The packet.
    pub packet: ExplainedPacket,
    /// The hooks that it passes, in this order, up to one about which there is no agreement.
    pub steps: Vec<Step>,
    /// The verdict that counts.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Whether all loaded programs and the decision code agree.
    pub agrees: bool,
}
