//! Matches and targets of iptables (xtables), in their binary form: inside rules of `nf_tables`, they are the
//! expressions `match` and `target`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::rule::{NewAddress, Translation};
use crate::{
    kernel::sock_diag::array,
    model::{PortRange, PortSet},
};

/// `NF_NAT_RANGE_MAP_IPS` and `NF_NAT_RANGE_PROTO_SPECIFIED` (`linux/netfilter/nf_nat.h`).
const MAP_IPS: u32 = 1;
const PROTO_SPECIFIED: u32 = 2;
/// `XT_TCP_INV_DSTPT` and `XT_UDP_INV_DSTPT`: the match is negated.
const INVERTED_DESTINATION: u8 = 2;
/// `XT_MULTIPORT_SOURCE`.
const MULTIPORT_SOURCE: u8 = 0;
/// Most ports of a multiport match.
const MULTIPORT_MOST: usize = 15;

/// Returns the destination ports to which a match restricts a rule; `None` if it does not.
pub(super) fn ports_of_match(name: &str, info: &[u8]) -> Option<PortSet> {
    let port = |at| u16::from_ne_bytes(array(info, at));
    // `struct xt_tcp`, `xt_udp`: ports of the source, of the destination, then flags.
    let inversion = match name {
        "tcp" => 11,
        "udp" => 8,
        "multiport" => return multiport(info),
        _ => return None,
    };
    if info.get(inversion)? & INVERTED_DESTINATION != 0 {
        return None;
    }
    let range = PortRange::new(port(4), port(6))?;
    (range != PortRange::new(0, u16::MAX)?).then(|| range.into())
}

/// `struct xt_multiport_v1`: ports, and whether each begins a range that the next one ends.
fn multiport(info: &[u8]) -> Option<PortSet> {
    let [flags, count, ..] = *info else { return None };
    let inverted = *info.get(2 + 2 * MULTIPORT_MOST + MULTIPORT_MOST)?;
    if flags == MULTIPORT_SOURCE || inverted != 0 {
        return None;
    }
    let count = usize::from(count).min(MULTIPORT_MOST);
    let port = |number: usize| u16::from_ne_bytes(array(info, 2 + 2 * number));
    let begins_range =
        |number: usize| info.get(2 + 2 * MULTIPORT_MOST + number).is_some_and(|flag| *flag != 0);
    let (mut ranges, mut number) = (Vec::new(), 0);
    while number < count {
        let last = if begins_range(number) && number + 1 < count { number + 1 } else { number };
        ranges.extend(PortRange::new(port(number), port(last)));
        number = last + 1;
    }
    Some(ranges.into())
}

/// Returns what a target translates, and to which ports; `None` if it is no NAT target.
pub(super) fn translation_of_target(
    name: &str,
    revision: u32,
    is_v6: bool,
    info: &[u8],
) -> Option<(Translation, Option<PortRange>)> {
    // Revision 0 for IPv4 is `struct nf_nat_ipv4_multi_range_compat`, all others begin as `struct nf_nat_range`.
    let (flags, address, first) = if revision == 0 && !is_v6 {
        (4, IpAddr::from(Ipv4Addr::from(array::<4>(info, 8))), 16)
    } else {
        let address = if is_v6 {
            IpAddr::from(Ipv6Addr::from(array::<16>(info, 4)))
        } else {
            IpAddr::from(Ipv4Addr::from(array::<4>(info, 4)))
        };
        (0, address, 36)
    };
    let flags = u32::from_ne_bytes(array(info, flags));
    let address = if flags & MAP_IPS == 0 { NewAddress::Same } else { NewAddress::Known(address) };
    let translation = match name {
        "REDIRECT" => Translation::Redirect,
        "DNAT" => Translation::Destination(address),
        "SNAT" => Translation::Source(address),
        "MASQUERADE" => Translation::Masquerade,
        _ => return None,
    };
    let port = |at| u16::from_be_bytes(array(info, at));
    let ports = PortRange::new(port(first), port(first + 2)).filter(|_| flags & PROTO_SPECIFIED != 0);
    Some((translation, ports))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xtables_matches_restrict_ports() {
        let tcp = |first: u16, last: u16, inverted: u8| {
            let ports = [0, u16::MAX, first, last].map(u16::to_ne_bytes).concat();
            ports_of_match("tcp", &[&ports[..], &[0, 0, 0, inverted]].concat())
        };
        assert_eq!(tcp(80, 89, 0), "80-89".parse().ok());
        assert_eq!((tcp(0, u16::MAX, 0), tcp(80, 80, INVERTED_DESTINATION)), (None, None));
        let mut multiport = [0; 48];
        multiport[..2].copy_from_slice(&[1, 3]);
        for (number, port) in [80_u16, 90, 95].into_iter().enumerate() {
            multiport[2 + 2 * number..4 + 2 * number].copy_from_slice(&port.to_ne_bytes());
        }
        multiport[2 + 30 + 1] = 1;
        assert_eq!(ports_of_match("multiport", &multiport), "80,90-95".parse().ok());
        // Any length is accepted.
        for length in 0..multiport.len() {
            multiport[1] = 255;
            let _ = ports_of_match("multiport", &multiport[..length]);
            let _ = ports_of_match("tcp", &multiport[..length]);
            let _ = translation_of_target("DNAT", 2, true, &multiport[..length]);
        }
    }
}
