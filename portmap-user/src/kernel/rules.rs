//! Routing policy: the rules by which the kernel selects a routing table.

use std::net::IpAddr;

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::RouteType,
    rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage},
};

use super::{
    netlink::Netlink,
    routes::{TABLE_DEFAULT, TABLE_LOCAL, TABLE_MAIN},
};
use crate::kernel::error::{Context as _, Result};

/// The rules of a new namespace: priority and table (`fib_default_rules_init`, `fib6_rules_net_init`).
const STANDARD: [(u32, u32); 3] = [(0, TABLE_LOCAL), (32766, TABLE_MAIN), (32767, TABLE_DEFAULT)];

/// What a rule does with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Asks a table.
    Table(u32),
    /// Returns the error of this kind of route.
    Error(RouteType),
}

/// A rule that the kernel applies when a process of the host connects: its packet has no mark, and no source address
/// yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What it does.
    pub action: Action,
    /// The destinations for which it does that; `None`: all.
    pub to: Option<(IpAddr, u8)>,
    /// It ignores routes with prefixes of at most this many bits.
    pub suppressed_length: Option<u8>,
}

/// Lists the rules of an IP version that apply when a process of the host connects to somewhere, in the kernel's
/// order. `None` if there are only the kernel's own, which ask the tables local, main and, for IPv4, default for every
/// packet.
pub fn list(netlink: &Netlink, family: AddressFamily) -> Result<Option<Vec<Rule>>> {
    let mut question = RuleMessage::default();
    question.header.family = family;
    let found = netlink
        .list(&RouteNetlinkMessage::GetRule(question), |answer| match answer {
            RouteNetlinkMessage::NewRule(message) if message.header.family == family => Some(message),
            _ => None,
        })
        .context(|| "cannot list the routing rules")?;
    let standard = if family == AddressFamily::Inet { &STANDARD[..] } else { &STANDARD[..2] };
    // A kernel without policy routing has no rules, and asks the same tables.
    let is_standard = found.is_empty() || found.iter().map(of_all).eq(standard.iter().copied().map(Some));
    Ok((!is_standard).then(|| found.iter().filter_map(applied).collect()))
}

/// The rule, if it can apply to the first packet of a connection of the host's. Rules for one protocol or port, and
/// jumps to other rules, do not apply to all of them, so they are left out.
fn applied(message: &RuleMessage) -> Option<Rule> {
    let header = &message.header;
    let (mut table, mut mark, mut compared) = (u32::from(header.table), 0, u32::MAX);
    let (mut to, mut suppressed_length, mut is_for_host) = (None, None, header.tos == 0);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Table(number) => table = *number,
            RuleAttribute::Destination(address) => to = Some((*address, header.dst_len)),
            RuleAttribute::FwMark(number) => mark = *number,
            RuleAttribute::FwMask(number) => compared = *number,
            RuleAttribute::SuppressPrefixLen(length) => suppressed_length = u8::try_from(*length).ok(),
            // The kernel takes what the host itself sends for packets from its loopback device.
            RuleAttribute::Iifname(name) => is_for_host &= name == "lo",
            RuleAttribute::UidRange(range) => is_for_host &= range.start == 0,
            RuleAttribute::SuppressIfGroup(u32::MAX)
            | RuleAttribute::Priority(_)
            | RuleAttribute::Protocol(_)
            | RuleAttribute::Realm(_) => {}
            _ => is_for_host = false,
        }
    }
    is_for_host &= header.src_len == 0 && mark & compared == 0;
    if header.flags.contains(RuleFlags::Invert) {
        // "All destinations but these" is not one network.
        is_for_host = !is_for_host && to.is_none();
    }
    let action = match header.action {
        RuleAction::ToTable => Action::Table(table),
        RuleAction::Blackhole => Action::Error(RouteType::BlackHole),
        RuleAction::Unreachable => Action::Error(RouteType::Unreachable),
        RuleAction::Prohibit => Action::Error(RouteType::Prohibit),
        _ => return None,
    };
    is_for_host.then_some(Rule { action, to, suppressed_length })
}

/// Priority and table of a rule for all packets; `None` for any other rule.
fn of_all(message: &RuleMessage) -> Option<(u32, u32)> {
    let header = &message.header;
    let (mut priority, mut table) = (0, u32::from(header.table));
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(number) => priority = *number,
            RuleAttribute::Table(number) => table = *number,
            RuleAttribute::Protocol(_) | RuleAttribute::SuppressPrefixLen(u32::MAX) => {}
            _ => return None,
        }
    }
    let is_for_all = header.action == RuleAction::ToTable
        && (header.dst_len, header.src_len, header.tos) == (0, 0, 0)
        && !header.flags.contains(RuleFlags::Invert);
    is_for_all.then_some((priority, table))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(flags: RuleFlags, attributes: Vec<RuleAttribute>) -> Option<Rule> {
        let mut message = RuleMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.action = RuleAction::ToTable;
        message.header.flags = flags;
        message.header.dst_len = 24;
        message.attributes = attributes;
        message.attributes.push(RuleAttribute::Table(7));
        applied(&message)
    }

    #[test]
    fn rules_for_marked_or_forwarded_packets_are_not_the_hosts() {
        let (is, not) = (RuleFlags::empty(), RuleFlags::Invert);
        let table = Some(Rule { action: Action::Table(7), to: None, suppressed_length: None });
        let iif = |name: &str| RuleAttribute::Iifname(name.to_owned());
        let to = RuleAttribute::Destination([192, 0, 2, 0].into());
        assert_eq!(rule(is, vec![]), table);
        assert_eq!(rule(is, vec![RuleAttribute::FwMark(51820)]), None);
        assert_eq!(rule(not, vec![RuleAttribute::FwMark(51820)]), table, "as wg-quick adds it");
        assert_eq!(rule(is, vec![RuleAttribute::FwMark(0x80), RuleAttribute::FwMask(0x7f)]), table);
        assert_eq!(rule(is, vec![iif("lo")]), table);
        assert_eq!(rule(is, vec![iif("eth1")]), None);
        assert_eq!(rule(is, vec![RuleAttribute::L3MDev(true)]), None);
        assert_eq!(rule(not, vec![to.clone()]), None);
        let suppressing = vec![RuleAttribute::SuppressPrefixLen(0), to];
        let limited = Rule {
            action: Action::Table(7),
            to: Some(([192, 0, 2, 0].into(), 24)),
            suppressed_length: Some(0),
        };
        assert_eq!(rule(is, suppressing), Some(limited));
        // The kernel's value for "nothing".
        assert_eq!(rule(is, vec![RuleAttribute::SuppressPrefixLen(u32::MAX)]), table);
    }
}
