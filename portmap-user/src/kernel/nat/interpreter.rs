//! What a rule of `nf_tables` translates, from its expressions. They are a program with registers
//! (`linux/netfilter/nf_tables.h`), of which this follows the parts that concern ports and addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    rule::{NewAddress, Translation},
    xtables,
};
use crate::{
    kernel::dump::{Attributes, attributes},
    model::{PortRange, PortSet},
};

/// Number of four-byte registers.
const REGISTERS: usize = 16;
/// Families (`linux/netfilter.h`).
pub(super) const NFPROTO_IPV4: u8 = 2;
pub(super) const NFPROTO_IPV6: u8 = 10;
/// Attributes of expressions.
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
/// `NFTA_DATA_VALUE`.
const VALUE: u16 = 1;
/// `enum nft_cmp_ops`.
const EQUAL: u32 = 0;
const LESS: u32 = 2;
const AT_MOST: u32 = 3;
const GREATER: u32 = 4;
const AT_LEAST: u32 = 5;
/// `NFT_META_L4PROTO`.
const META_PROTOCOL: u32 = 16;
/// `enum nft_payload_bases`.
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;

/// A translation with its conditions.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Interpretation {
    pub(super) protocol: Option<u8>,
    pub(super) ports: Option<PortSet>,
    pub(super) translation: Option<Translation>,
    pub(super) to_ports: Option<PortRange>,
}

/// Content of a four-byte register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    Unknown,
    Constant([u8; 4]),
    Protocol,
    DestinationPort,
}

/// Follows the expressions of a rule, a list of attributes, in a table of this family.
pub(super) fn interpret(family: u8, expressions: &[u8]) -> Interpretation {
    let mut state =
        State { family, registers: [Content::Unknown; REGISTERS], found: Interpretation::default() };
    for (_, expression) in attributes(expressions) {
        let parts = Attributes(expression);
        if let Some(name) = parts.text(NFTA_EXPR_NAME) {
            state.step(name, &Attributes(parts.bytes(NFTA_EXPR_DATA)));
        }
    }
    state.found
}

struct State {
    family: u8,
    registers: [Content; REGISTERS],
    found: Interpretation,
}

impl State {
    fn step(&mut self, name: &str, data: &Attributes<'_>) {
        match name {
            "payload" => self.load_payload(data),
            "meta" => {
                let is_protocol = data.number(2) == Some(META_PROTOCOL);
                self.set(data.number(1), if is_protocol { Content::Protocol } else { Content::Unknown });
            }
            "immediate" => self.load_constant(data),
            "cmp" => self.compare(data),
            "range" => {
                let (from, to) = (data.nested(3).bytes(VALUE), data.nested(4).bytes(VALUE));
                if data.number(2) == Some(EQUAL) && self.is_port(data.number(1)) {
                    self.restrict(port(from), port(to));
                }
            }
            "match" => self.apply_match(data),
            "target" => {
                let (name, revision) = (data.text(1).unwrap_or_default(), data.number(2).unwrap_or_default());
                let is_v6 = self.family == NFPROTO_IPV6;
                if let Some((translation, ports)) =
                    xtables::translation_of_target(name, revision, is_v6, data.bytes(3))
                {
                    self.found.translation = Some(translation);
                    self.found.to_ports = ports;
                }
            }
            "redir" => self.translate(Translation::Redirect, data.number(1), data.number(2)),
            "masq" => self.translate(Translation::Masquerade, data.number(2), data.number(3)),
            "nat" => self.apply_nat(data),
            // These write no register.
            "counter" | "limit" | "log" | "quota" | "last" | "connlimit" => {}
            // A lookup without a destination register tests for membership in a set, which is not read.
            "lookup" if data.number(3).is_none() => {}
            _ => self.registers = [Content::Unknown; REGISTERS],
        }
    }

    /// Returns the index of a register. Registers 1 to 4 are four times as large.
    fn index(register: Option<u32>) -> Option<usize> {
        let index = match register? {
            large @ 1..=4 => 4 * (large - 1),
            small => small.checked_sub(8)?,
        };
        usize::try_from(index).ok().filter(|index| *index < REGISTERS)
    }

    fn set(&mut self, register: Option<u32>, content: Content) {
        if let Some(place) = Self::index(register).and_then(|index| self.registers.get_mut(index)) {
            *place = content;
        }
    }

    fn get(&self, register: Option<u32>) -> Content {
        Self::index(register).map_or(Content::Unknown, |index| self.registers[index])
    }

    fn is_port(&self, register: Option<u32>) -> bool {
        self.get(register) == Content::DestinationPort
    }

    /// Returns a constant of `N` bytes, a multiple of four.
    fn constant<const N: usize>(&self, register: Option<u32>) -> Option<[u8; N]> {
        let index = Self::index(register)?;
        let mut bytes = [0; N];
        for (number, part) in bytes.chunks_exact_mut(4).enumerate() {
            let Content::Constant(constant) = *self.registers.get(index + number)? else { return None };
            part.copy_from_slice(&constant);
        }
        Some(bytes)
    }

    fn load_payload(&mut self, data: &Attributes<'_>) {
        let place = (data.number(2), data.number(3), data.number(4));
        let protocol = if self.family == NFPROTO_IPV6 { 6 } else { 9 };
        let content = if place == (Some(TRANSPORT_HEADER), Some(2), Some(2)) {
            Content::DestinationPort
        } else if place == (Some(NETWORK_HEADER), Some(protocol), Some(1)) {
            Content::Protocol
        } else {
            Content::Unknown
        };
        self.set(data.number(1), content);
    }

    fn load_constant(&mut self, data: &Attributes<'_>) {
        let Some(index) = Self::index(data.number(1)) else { return };
        let value = data.nested(2).bytes(VALUE);
        for (place, part) in self.registers[index..].iter_mut().zip(value.chunks(4)) {
            let mut constant = [0; 4];
            constant[..part.len()].copy_from_slice(part);
            *place = Content::Constant(constant);
        }
    }

    fn compare(&mut self, data: &Attributes<'_>) {
        let (value, operation) = (data.nested(3).bytes(VALUE), data.number(2));
        match (self.get(data.number(1)), operation, value) {
            (Content::Protocol, Some(EQUAL), [protocol]) => self.found.protocol = Some(*protocol),
            (Content::DestinationPort, Some(operation), [_, _]) => {
                let port = port(value);
                match operation {
                    EQUAL => self.restrict(port, port),
                    AT_LEAST => self.restrict(port, u16::MAX),
                    GREATER => self.restrict(port.saturating_add(1), u16::MAX),
                    AT_MOST => self.restrict(0, port),
                    LESS => self.restrict(0, port.saturating_sub(1)),
                    _ => {}
                }
            }
            _ => {}
        }
    }

    /// Restricts the rule to destination ports, in addition to earlier restrictions.
    fn restrict(&mut self, first: u16, last: u16) {
        self.restrict_to(&PortRange::new(first, last).map(PortSet::from).unwrap_or_default());
    }

    fn restrict_to(&mut self, ports: &PortSet) {
        let before = self.found.ports.take();
        self.found.ports = Some(before.map_or_else(|| ports.clone(), |before| before.intersection(ports)));
    }

    fn apply_match(&mut self, data: &Attributes<'_>) {
        let name = data.text(1).unwrap_or_default();
        if let Some(ports) = xtables::ports_of_match(name, data.bytes(3)) {
            self.restrict_to(&ports);
        }
    }

    fn translate(&mut self, translation: Translation, first: Option<u32>, last: Option<u32>) {
        let port_in = |register| self.constant::<4>(register).map(|constant| port(&constant));
        let ports = port_in(first).zip(port_in(last.or(first)));
        self.found.to_ports = ports.and_then(|(first, last)| PortRange::new(first, last));
        self.found.translation = Some(translation);
    }

    fn apply_nat(&mut self, data: &Attributes<'_>) {
        /// `NFT_NAT_DNAT`.
        const DESTINATION: u32 = 1;
        let is_v6 = data.number(2) == Some(u32::from(NFPROTO_IPV6));
        let register = data.number(3);
        let address = match register {
            None => NewAddress::Same,
            _ if is_v6 => self.constant::<16>(register).map(Ipv6Addr::from).map(IpAddr::from).into(),
            _ => self.constant::<4>(register).map(Ipv4Addr::from).map(IpAddr::from).into(),
        };
        let is_destination = data.number(1) == Some(DESTINATION);
        let translation =
            if is_destination { Translation::Destination(address) } else { Translation::Source(address) };
        self.translate(translation, data.number(5), data.number(6));
    }
}

impl From<Option<IpAddr>> for NewAddress {
    fn from(address: Option<IpAddr>) -> Self {
        address.map_or(Self::Unknown, Self::Known)
    }
}

/// A port in network byte order at the start of a value.
fn port(value: &[u8]) -> u16 {
    value.first_chunk().map_or(0, |port| u16::from_be_bytes(*port))
}

#[cfg(test)]
mod tests;
