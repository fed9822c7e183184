//! The choice of the primary address: the one by which the host and its containers are known.
//!
//! The choice is stable. An address that is added later never takes the place of the primary one, and a primary
//! address that was away (while a DHCP lease was renewed, or the uplink was down) is the primary one again when it
//! returns.

use std::net::IpAddr;

use crate::kernel::{
    address::{HostAddress, Listed},
    link::LOOPBACK,
    netlink::Netlink,
    routes,
};

/// Number of former primary addresses that are remembered.
const REMEMBERED: usize = 16;

/// Chooses among the shared addresses of one IP version. `known` are the present and former primary addresses, in
/// the order of preference.
pub(super) fn choose(
    netlink: &Netlink,
    shared: &[Listed],
    uplink: u32,
    known: &[IpAddr],
) -> Option<HostAddress> {
    let first = shared.first()?.address.address;
    let by_kernel = routes::source_by(netlink, uplink, first.is_ipv6());
    select(shared, uplink, known, by_kernel)
}

fn select(
    shared: &[Listed],
    uplink: u32,
    known: &[IpAddr],
    by_kernel: Option<IpAddr>,
) -> Option<HostAddress> {
    let is_candidate = |listed: &&Listed| {
        let HostAddress { address, interface, .. } = listed.address;
        interface == uplink || interface == LOOPBACK || Some(address) == by_kernel
    };
    let mut candidates: Vec<&Listed> = shared.iter().filter(is_candidate).collect();
    if candidates.is_empty() {
        candidates = shared.iter().collect();
    }
    // The uplink's first, for an address that several interfaces have. The sort is stable.
    candidates.sort_by_key(|listed| listed.address.interface != uplink);
    // A temporary address is another one tomorrow, and a deprecated one is on its way out.
    let is_temporary = |address: &HostAddress| address.address.is_ipv6() && address.secondary;
    let rank = |listed: &&Listed| (is_temporary(&listed.address), listed.address.deprecated);
    let best = candidates.iter().map(rank).min()?;
    candidates.retain(|listed| rank(listed) == best);
    let find = |wanted: IpAddr| candidates.iter().find(|listed| listed.address.address == wanted);
    let chosen = known.iter().find_map(|address| find(*address)).or_else(|| by_kernel.and_then(find));
    let longest_lived = || {
        let on_uplink = |listed: &Listed| listed.address.interface == uplink;
        let worth = |listed: &&&Listed| (on_uplink(listed), !listed.address.secondary, listed.preferred_for);
        // The last of equal maxima would be the newest address.
        candidates.iter().rev().max_by_key(worth)
    };
    chosen.or_else(longest_lived).map(|listed| listed.address)
}

/// Adds an address to the present and former primary ones, after those that are known.
pub(super) fn remember(known: &mut Vec<IpAddr>, address: IpAddr) {
    if known.contains(&address) {
        return;
    }
    known.push(address);
    if known.len() > REMEMBERED {
        known.remove(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UPLINK: u32 = 2;

    fn listed(address: &str, interface: u32) -> Listed {
        let address = HostAddress {
            address: address.parse().expect("an address"),
            prefix_length: 24,
            interface,
            deprecated: false,
            secondary: false,
            no_prefix_route: false,
            route_metric: None,
        };
        Listed { address, preferred_for: u32::MAX, protocol: 0 }
    }

    fn chosen(shared: &[Listed], known: &[&str], by_kernel: Option<&str>) -> String {
        let parse = |text: &str| text.parse::<IpAddr>().expect("an address");
        let known: Vec<IpAddr> = known.iter().map(|text| parse(text)).collect();
        select(shared, UPLINK, &known, by_kernel.map(parse)).expect("an address").address.to_string()
    }

    #[test]
    fn primary_address_stays_and_returns() {
        let (own, vip) = (listed("10.0.0.1", UPLINK), listed("10.0.0.50", UPLINK));
        // The kernel's choice counts at first, but not against the address in use.
        assert_eq!(chosen(&[vip, own], &[], Some("10.0.0.1")), "10.0.0.1");
        assert_eq!(chosen(&[vip, own], &["10.0.0.1"], Some("10.0.0.50")), "10.0.0.1");
        // It is away, and returns.
        assert_eq!(chosen(&[vip], &["10.0.0.1"], None), "10.0.0.50");
        assert_eq!(chosen(&[vip, own], &["10.0.0.1", "10.0.0.50"], None), "10.0.0.1");
    }

    #[test]
    fn primary_address_is_deprecated_only_without_alternative() {
        let (mut old, new) = (listed("2001:db8::1", UPLINK), listed("2001:db8::9", UPLINK));
        old.address.deprecated = true;
        assert_eq!(chosen(&[old], &[], None), "2001:db8::1");
        assert_eq!(chosen(&[old, new], &["2001:db8::1"], None), "2001:db8::9");
        // A temporary address does not count as one.
        let mut temporary = new;
        temporary.address.secondary = true;
        assert_eq!(chosen(&[temporary, old], &[], Some("2001:db8::9")), "2001:db8::1");
    }

    #[test]
    fn primary_address_is_the_uplinks_if_it_has_one() {
        let (own, other, lo) =
            (listed("10.0.0.1", UPLINK), listed("10.1.0.1", 7), listed("10.2.0.1", LOOPBACK));
        assert_eq!(chosen(&[lo, own, other], &["10.1.0.1"], None), "10.0.0.1");
        assert_eq!(chosen(&[lo, own, other], &[], Some("10.2.0.1")), "10.2.0.1");
        assert_eq!(chosen(&[lo, other], &[], None), "10.2.0.1");
        assert_eq!(chosen(&[other], &[], None), "10.1.0.1");
    }

    #[test]
    fn primary_address_is_the_longest_lived_one_at_first() {
        let (mut short, long) = (listed("2001:db8::1", UPLINK), listed("2001:db8::9", UPLINK));
        short.preferred_for = 100;
        assert_eq!(chosen(&[short, long], &[], None), "2001:db8::9");
    }

    #[test]
    fn primary_addresses_are_remembered_up_to_a_number() {
        let mut known = Vec::new();
        for number in (0..=REMEMBERED).chain([REMEMBERED]) {
            remember(&mut known, format!("10.0.0.{number}").parse().expect("an address"));
        }
        assert_eq!((known.len(), known[0].to_string()), (REMEMBERED, "10.0.0.1".to_owned()));
    }
}
