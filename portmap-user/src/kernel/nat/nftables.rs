//! The chains and rules of `nf_tables`. A host of Kubernetes has tens of thousands of rules.

use std::{collections::BTreeSet, io};

use super::{
    interpreter::{NFPROTO_IPV4, NFPROTO_IPV6, interpret},
    nfnetlink::{dump, split},
    rule::NatRule,
};

/// Message types (`linux/netfilter/nfnetlink.h`, `linux/netfilter/nf_tables.h`).
const NFNL_SUBSYS_NFTABLES: u16 = 10 << 8;
const NEWCHAIN: u16 = NFNL_SUBSYS_NFTABLES | 3;
const GETCHAIN: u16 = NFNL_SUBSYS_NFTABLES | 4;
const NEWRULE: u16 = NFNL_SUBSYS_NFTABLES | 6;
const GETRULE: u16 = NFNL_SUBSYS_NFTABLES | 7;
/// Attributes of chains and their hooks, and of rules.
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
/// `NFPROTO_INET`, and `NF_INET_LOCAL_OUT`.
const NFPROTO_INET: u8 = 1;
const OUTPUT: u32 = 3;
/// Family, table and name of a chain.
type Chain = (u8, String, String);

/// Calls `visit` with every rule that translates, except those of chains at the output hook. Returns whether the
/// rules have not changed meanwhile; otherwise some may have been missed or repeated.
///
/// # Errors
///
/// If the kernel refuses a dump.
pub(super) fn for_each_rule(mut visit: impl FnMut(NatRule)) -> io::Result<bool> {
    let mut output = BTreeSet::new();
    let have_chains_stayed = dump(GETCHAIN, NEWCHAIN, |message| output.extend(output_chain(message)))?;
    let have_rules_stayed = dump(GETRULE, NEWRULE, |message| {
        if let Some(rule) = rule(message, &output) {
            visit(rule);
        }
    })?;
    Ok(have_chains_stayed && have_rules_stayed)
}

/// Parses a chain. `None` if it is not a base chain at the output hook.
fn output_chain(message: &[u8]) -> Option<Chain> {
    let (family, attributes) = split(message)?;
    let hook = attributes.nested(NFTA_CHAIN_HOOK).number(NFTA_HOOK_HOOKNUM);
    let chain = || Some((attributes.text(NFTA_CHAIN_TABLE)?, attributes.text(NFTA_CHAIN_NAME)?));
    let (table, name) = chain().filter(|_| hook == Some(OUTPUT))?;
    Some((family, table.to_owned(), name.to_owned()))
}

/// Parses a rule. `None` if it translates nothing, or is in one of the chains `without`.
fn rule(message: &[u8], without: &BTreeSet<Chain>) -> Option<NatRule> {
    let (family, attributes) = split(message)?;
    let name = match family {
        NFPROTO_INET => "inet",
        NFPROTO_IPV4 => "ip",
        NFPROTO_IPV6 => "ip6",
        _ => return None,
    };
    let found = interpret(family, attributes.bytes(NFTA_RULE_EXPRESSIONS));
    let translation = found.translation?;
    let (table, chain) = (attributes.text(NFTA_RULE_TABLE)?, attributes.text(NFTA_RULE_CHAIN)?);
    let chain = (family, table.to_owned(), chain.to_owned());
    if without.contains(&chain) {
        return None;
    }
    let (_, table, chain) = chain;
    Some(NatRule {
        family: name,
        table,
        chain,
        protocol: found.protocol,
        ports: found.ports,
        translation,
        to_ports: found.to_ports,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nat_rules_of_any_bytes_are_parsed() {
        let mut state = 1_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_ne_bytes()[3]
        };
        for length in 0..512 {
            let mut message: Vec<u8> = (0..length).map(|_| next()).collect();
            // Small lengths and kinds, so that attributes are found.
            for word in message.chunks_exact_mut(4).skip(1) {
                if word[0] & 1 == 0 {
                    word.copy_from_slice(&[word[1] & 63, 0, word[2] & 7, 0]);
                }
            }
            let _ = (rule(&message, &BTreeSet::new()), output_chain(&message));
        }
    }
}
