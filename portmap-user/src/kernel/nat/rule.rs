//! A NAT rule, as far as it concerns ports and addresses.

use std::{fmt, net::IpAddr};

use crate::model::{PortRange, PortSet};

/// A rule that translates an address or a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatRule {
    /// Family of its table, as in the output of `nft`.
    pub family: &'static str,
    /// Its table.
    pub table: String,
    /// Its chain.
    pub chain: String,
    /// Number of the protocol to which it is restricted, if it is to one.
    pub protocol: Option<u8>,
    /// The destination ports to which it is restricted, as far as they are part of the rule.
    pub ports: Option<PortSet>,
    /// What it translates.
    pub translation: Translation,
    /// The ports to which it translates; `None` if the port stays, the kernel chooses it, or it comes from a map.
    pub to_ports: Option<PortRange>,
}

/// What a rule translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Translation {
    /// The destination, to the host itself.
    Redirect,
    /// The destination.
    Destination(NewAddress),
    /// The source.
    Source(NewAddress),
    /// The source, to the address of the interface by which the packet leaves.
    Masquerade,
}

/// The address to which a rule translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewAddress {
    /// The packet's own: only the port changes.
    Same,
    /// This one, or the first of several.
    Known(IpAddr),
    /// One of a map, which is not read.
    Unknown,
}

/// The rule's place, as in the output of `nft`.
impl fmt::Display for NatRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "table {} {}, chain {}", self.family, self.table, self.chain)
    }
}
