//! The interfaces of the host by which packets for containers can come: the uplinks, all others that are up, and those
//! that have a shared address or a route.

use std::collections::{BTreeMap, BTreeSet};

use netlink_packet_route::tc::TcHandle;
use portmap_common::{
    slot::{HOST_SLOT, slot_of_veth},
    tables::FURTHER_FLOWS,
};

use super::uplink::Uplinks;
use crate::{
    error::Result,
    kernel::{
        link::{self, Interface, LOOPBACK},
        netlink::Netlink,
        qdisc::{self, RootQdisc},
    },
};

/// An interface at which programs are attached, besides the main uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::daemon) struct HostInterface {
    /// Its name.
    pub name: String,
    /// Whether its frames have an Ethernet header.
    pub is_ethernet: bool,
    /// Whether it is a further uplink.
    pub is_uplink: bool,
    /// Whether it is a further uplink whose qdisc is portmap's, or can become it.
    pub has_flows: bool,
}

/// Returns the interfaces other than the main uplink at which packets for the host arrive, by index: the further
/// uplinks, those that are up, and those among `candidates`; not the loopback device, host veths, and ports of bridges
/// and the like. `flows` is the parent of the uplinks' qdiscs, if they have flows.
pub(in crate::daemon) fn probe(
    netlink: &Netlink,
    candidates: impl IntoIterator<Item = u32>,
    uplinks: &Uplinks,
    flows: Option<TcHandle>,
) -> Result<BTreeMap<u32, HostInterface>> {
    let candidates: BTreeSet<u32> = candidates.into_iter().collect();
    let is_foreign = |index: u32| {
        ![LOOPBACK, uplinks.main.index].contains(&index)
            && slot_of_veth(index) == HOST_SLOT
            && !uplinks.further.contains_key(&index)
    };
    let mut found = BTreeMap::new();
    for interface in link::all(netlink)? {
        let Interface { index, name, is_ethernet, is_up, is_port, .. } = interface;
        // The kernel accepts packets for the host's addresses wherever they arrive, and answers ARP for them there.
        let receives = is_up || candidates.contains(&index);
        if receives && !is_port && is_foreign(index) {
            found.insert(index, HostInterface { name, is_ethernet, is_uplink: false, has_flows: false });
        }
    }
    let mut places = FURTHER_FLOWS;
    for (index, interface) in &uplinks.further {
        let has_flows = match flows.filter(|_| places > 0) {
            Some(parent) => !matches!(qdisc::at_parent(netlink, *index, parent)?, RootQdisc::Foreign(_)),
            None => false,
        };
        places -= usize::from(has_flows);
        let Interface { name, is_ethernet, .. } = interface.clone();
        found.insert(*index, HostInterface { name, is_ethernet, is_uplink: true, has_flows });
    }
    Ok(found)
}
