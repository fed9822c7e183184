//! Routing policy: the rules by which the kernel selects a routing table.

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    rule::{RuleAction, RuleAttribute, RuleMessage},
};

use super::{
    netlink::Netlink,
    routes::{TABLE_DEFAULT, TABLE_LOCAL, TABLE_MAIN},
};
use crate::kernel::error::{Context as _, Result};

/// The rules of a new namespace: priority and table (`fib_default_rules_init`, `fib6_rules_net_init`).
const STANDARD: [(u32, u32); 3] = [(0, TABLE_LOCAL), (32766, TABLE_MAIN), (32767, TABLE_DEFAULT)];

/// Whether an IP version has only the kernel's own rules, which ask the tables local, main and, for IPv4, default
/// for every packet.
pub fn are_standard(netlink: &Netlink, family: AddressFamily) -> Result<bool> {
    let mut question = RuleMessage::default();
    question.header.family = family;
    let found = netlink
        .list(&RouteNetlinkMessage::GetRule(question), |answer| match answer {
            RouteNetlinkMessage::NewRule(message) if message.header.family == family => {
                Some(of_all(&message))
            }
            _ => None,
        })
        .context(|| "cannot list the routing rules")?;
    let expected = if family == AddressFamily::Inet { &STANDARD[..] } else { &STANDARD[..2] };
    // A kernel without policy routing has no rules, and asks the same tables.
    Ok(found.is_empty() || found.iter().copied().eq(expected.iter().copied().map(Some)))
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
        && !header.flags.contains(netlink_packet_route::rule::RuleFlags::Invert);
    is_for_all.then_some((priority, table))
}
