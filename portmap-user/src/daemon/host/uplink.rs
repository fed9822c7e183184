//! The uplinks: the interfaces that lead outside. One of them is the main one.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use netlink_packet_route::route::RouteType;
use portmap_common::slot::{HOST_SLOT, slot_of_veth};

use crate::{
    error::{Error, Result},
    kernel::{
        link::{self, Interface, LOOPBACK, Mac},
        netlink::Netlink,
        routes::{Route, TABLE_LOCAL, TABLE_MAIN},
    },
    settings::UplinkChoice,
};

/// Most interfaces that an error names.
const MOST_NAMED: usize = 12;

/// The uplinks of the host.
pub(super) struct Uplinks {
    /// The main one.
    pub(super) main: Interface,
    /// The others, by index.
    pub(super) further: BTreeMap<u32, Interface>,
}

impl Uplinks {
    /// The speed of the fastest one in bytes per second, among those whose drivers report it.
    pub(super) fn speed(&self) -> Option<u64> {
        [&self.main]
            .into_iter()
            .chain(self.further.values())
            .filter_map(|uplink| link::speed(&uplink.name))
            .max()
    }
}

/// Finds the interfaces that the settings select. `in_use` are the indices of the present uplinks, the main one
/// first. It stays the main one while it is selected, except that an interface that is selected by its default
/// route only follows the routes. A selected interface that has been renamed stays, too.
pub(super) fn find(
    netlink: &Netlink,
    wanted: &[UplinkChoice],
    routes: [&[Route]; 2],
    in_use: &[u32],
) -> Result<Uplinks> {
    let ranks = default_ranks(routes);
    let mut known = BTreeMap::new();
    let mut add = |found: Option<Interface>| known.extend(found.map(|found| (found.index, found)));
    let mut is_missing = false;
    for choice in wanted {
        match choice {
            UplinkChoice::Name(name) => {
                let found = link::find(netlink, name)?;
                is_missing |= found.is_none();
                add(found);
            }
            UplinkChoice::Pattern(_) => link::all(netlink)?.into_iter().for_each(|found| add(Some(found))),
            UplinkChoice::Auto => {
                for index in ranks.keys() {
                    add(link::find_by_index(netlink, *index)?);
                }
            }
        }
    }
    if is_missing {
        for index in in_use {
            add(link::find_by_index(netlink, *index)?);
        }
    }
    select(known, wanted, &ranks, in_use).map_or_else(|| Err(none_found(&link::all(netlink)?, wanted)), Ok)
}

/// How a default route recommends its interface as the main uplink; the least one is preferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    tier: Tier,
    metric: u32,
}

/// The kinds of default routes. Only those of the first kind that a host has make an interface the main uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Tier {
    /// Of IPv4, in the table main.
    Main4,
    /// Of IPv6, in the table main.
    Main6,
    /// In another table, which a rule or a VRF selects.
    OtherTable,
    /// There is no default route.
    None,
}

/// The interfaces of all default routes, with the best rank of each.
fn default_ranks(routes: [&[Route]; 2]) -> BTreeMap<u32, Rank> {
    let mut ranks = BTreeMap::new();
    for (routes, main) in routes.into_iter().zip([Tier::Main4, Tier::Main6]) {
        for route in routes.iter().filter(|route| is_default(route)) {
            let tier = if route.route.table == TABLE_MAIN { main } else { Tier::OtherTable };
            let rank = Rank { tier, metric: route.route.metric };
            for hop in route.hops.iter().filter(|hop| leads_outside(hop.interface)) {
                let best = ranks.entry(hop.interface).or_insert(rank);
                *best = rank.min(*best);
            }
        }
    }
    ranks
}

fn is_default(route: &Route) -> bool {
    let found = &route.route;
    found.is_default() && found.kind == RouteType::Unicast && found.table != TABLE_LOCAL
}

fn leads_outside(index: u32) -> bool {
    index != LOOPBACK && slot_of_veth(index) == HOST_SLOT
}

/// Selects the uplinks among the known interfaces; `None` if none of them is one.
fn select(
    mut known: BTreeMap<u32, Interface>,
    wanted: &[UplinkChoice],
    ranks: &BTreeMap<u32, Rank>,
    in_use: &[u32],
) -> Option<Uplinks> {
    let missing = wanted.iter().position(|choice| {
        matches!(choice, UplinkChoice::Name(_)) && !known.values().any(|found| choice.names(&found.name))
    });
    let rank_of =
        |index: u32| ranks.get(&index).copied().unwrap_or(Rank { tier: Tier::None, metric: u32::MAX });
    let best_tier = ranks.values().map(|rank| rank.tier).min();
    let mut selected = Vec::new();
    for (index, interface) in &known {
        let selects = |choice: &UplinkChoice| match choice {
            UplinkChoice::Auto => ranks.contains_key(index),
            UplinkChoice::Name(_) => choice.names(&interface.name),
            // A pattern means the interfaces that can be used: not spare ones, nor the parts of a bond.
            UplinkChoice::Pattern(_) => {
                let is_usable = interface.is_up || in_use.first() == Some(index);
                choice.names(&interface.name) && leads_outside(*index) && !interface.is_port && is_usable
            }
        };
        let renamed = || missing.filter(|_| in_use.contains(index));
        let Some(place) = wanted.iter().position(selects).or_else(renamed) else { continue };
        let follows_routes =
            wanted.iter().filter(|choice| selects(choice)).all(|choice| *choice == UplinkChoice::Auto)
                && wanted.iter().any(selects);
        let rank = rank_of(*index);
        let is_second = follows_routes && Some(rank.tier) != best_tier;
        selected.push((is_second, in_use.first() != Some(index), place, rank, *index));
    }
    selected.sort_unstable();
    let selected: Vec<u32> = selected.into_iter().map(|(.., index)| index).collect();
    let main = known.remove(selected.first()?)?;
    let further: BTreeSet<u32> = selected.into_iter().skip(1).collect();
    known.retain(|index, _| further.contains(index));
    Some(Uplinks { main, further: known })
}

fn none_found(all: &[Interface], wanted: &[UplinkChoice]) -> Error {
    let outside: Vec<&Interface> = all.iter().filter(|found| leads_outside(found.index)).collect();
    let describe = |found: &&Interface| format!("{}{}", found.name, if found.is_up { "" } else { " (down)" });
    let mut found: Vec<String> = outside.iter().take(MOST_NAMED).map(describe).collect();
    if outside.len() > MOST_NAMED {
        found.push(format!("and {} more", outside.len() - MOST_NAMED));
    }
    let found = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
    if wanted.iter().all(|choice| *choice == UplinkChoice::Auto) {
        return Error::usage(format!(
            "no uplink: the host has no default route, but these interfaces: {found}; add a route, or name the \
             uplink with --uplink"
        ));
    }
    let wanted: Vec<String> = wanted.iter().map(UplinkChoice::to_string).collect();
    let wanted = wanted.join(", ");
    Error::usage(format!(
        "no uplink: no interface is selected by --uplink {wanted}; the host has these: {found}; name one of them, \
         or set one up that matches, because patterns select interfaces that are up"
    ))
}

/// Refuses a main uplink by which containers cannot communicate.
pub(super) fn check_main(uplink: &Interface) -> Result<()> {
    let name = &uplink.name;
    if uplink.index == LOOPBACK {
        return Err(Error::usage(format!(
            "the uplink {name} is the loopback device: expected an interface that leads outside, see `ip link`"
        )));
    }
    if uplink.has_foreign_header || (uplink.is_ethernet && uplink.mac == Mac::default()) {
        return Err(Error::usage(format!(
            "the uplink {name} has neither Ethernet frames nor bare packets: expected an Ethernet interface with a \
             MAC address, or one without link-layer headers such as a tunnel, see `ip link`"
        )));
    }
    Ok(())
}

/// The gateway of an interface's preferred default route in the table main.
pub(super) fn gateway<A>(
    routes: &[Route],
    interface: &Interface,
    right_version: impl Fn(IpAddr) -> Option<A>,
) -> Option<A> {
    let mut defaults: Vec<&Route> =
        routes.iter().filter(|route| is_default(route) && route.route.table == TABLE_MAIN).collect();
    defaults.sort_by_key(|route| route.route.metric);
    let hops = defaults.into_iter().flat_map(|route| &route.hops);
    hops.filter(|hop| hop.interface == interface.index).filter_map(|hop| hop.gateway).find_map(right_version)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(interfaces: &[(u32, &str)]) -> BTreeMap<u32, Interface> {
        let interface = |index: u32, name: &str| Interface {
            index,
            name: name.to_owned(),
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            is_ethernet: true,
            has_foreign_header: false,
            is_up: true,
            has_carrier: true,
            is_port: false,
            peer: None,
            alias: None,
            group: 0,
        };
        interfaces.iter().map(|(index, name)| (*index, interface(*index, name))).collect()
    }

    fn name(text: &str) -> UplinkChoice {
        UplinkChoice::Name(text.to_owned())
    }

    fn pattern(text: &str) -> UplinkChoice {
        UplinkChoice::Pattern(text.to_owned())
    }

    /// The names of the selected uplinks, the main one first.
    fn selected(
        interfaces: &[(u32, &str)],
        wanted: &[UplinkChoice],
        ranks: &[(u32, Tier, u32)],
        in_use: &[u32],
    ) -> Vec<String> {
        let ranks = ranks
            .iter()
            .map(|(index, tier, metric)| (*index, Rank { tier: *tier, metric: *metric }))
            .collect();
        let found = select(known(interfaces), wanted, &ranks, in_use);
        found.map_or_else(Vec::new, |found| {
            let further = found.further.into_values().map(|further| further.name);
            std::iter::once(found.main.name).chain(further).collect()
        })
    }

    #[test]
    fn uplinks_are_ordered_by_flag_then_metric_then_index() {
        let all = [(2, "eth0"), (3, "eth1"), (4, "wg0"), (5, "docker0")];
        let ranks = [(3, Tier::Main4, 100), (4, Tier::Main4, 50)];
        assert_eq!(selected(&all, &[name("wg0"), pattern("eth*")], &ranks, &[]), ["wg0", "eth0", "eth1"]);
        assert_eq!(selected(&all, &[pattern("eth*"), name("wg0")], &ranks, &[]), ["eth1", "eth0", "wg0"]);
        assert_eq!(selected(&all, &[pattern("eth?")], &[], &[]), ["eth0", "eth1"]);
        assert_eq!(selected(&all, &[UplinkChoice::Auto], &ranks, &[]), ["wg0", "eth1"]);
        assert_eq!(selected(&all, &[pattern("ppp*")], &ranks, &[]), [""; 0]);
    }

    #[test]
    fn uplink_in_use_stays_the_main_one_while_it_is_selected() {
        let all = [(2, "eth0"), (3, "eth1")];
        assert_eq!(selected(&all, &[pattern("eth*")], &[(2, Tier::Main4, 0)], &[3, 2]), ["eth1", "eth0"]);
        assert_eq!(selected(&all[..1], &[pattern("eth*")], &[], &[3, 2]), ["eth0"]);
        // By default routes it must have one of the best kind.
        let ranks = |tier| [(2, Tier::Main4, 0), (3, tier, 0)];
        assert_eq!(selected(&all, &[UplinkChoice::Auto], &ranks(Tier::Main4), &[3]), ["eth1", "eth0"]);
        assert_eq!(selected(&all, &[UplinkChoice::Auto], &ranks(Tier::Main6), &[3]), ["eth0", "eth1"]);
        let named = [UplinkChoice::Auto, name("eth1")];
        assert_eq!(selected(&all, &named, &ranks(Tier::Main6), &[3]), ["eth1", "eth0"]);
    }

    #[test]
    fn uplink_that_is_renamed_stays() {
        let all = [(2, "wan0"), (3, "eth1")];
        assert_eq!(selected(&all, &[name("eth0")], &[], &[2]), ["wan0"]);
        assert_eq!(selected(&all, &[name("eth1"), name("eth0")], &[], &[3, 2]), ["eth1", "wan0"]);
        // Another interface has taken the name.
        assert_eq!(selected(&[(2, "wan0"), (3, "eth0")], &[name("eth0")], &[], &[2]), ["eth0"]);
        assert_eq!(selected(&all, &[pattern("eth*")], &[], &[2, 3]), ["eth1"]);
    }

    #[test]
    fn uplink_patterns_select_usable_interfaces() {
        let of = |change: fn(&mut Interface)| {
            let mut known = known(&[(LOOPBACK, "lo"), (2, "eth0"), (3, "eth1")]);
            known.entry(3).and_modify(change);
            let found = select(known, &[pattern("*")], &BTreeMap::new(), &[]).expect("an uplink");
            found.further.into_keys().chain([found.main.index]).collect::<Vec<_>>()
        };
        assert_eq!(of(|_| ()), [3, 2]);
        assert_eq!(of(|part| part.is_port = true), [2]);
        assert_eq!(of(|spare| spare.is_up = false), [2]);
    }
}
