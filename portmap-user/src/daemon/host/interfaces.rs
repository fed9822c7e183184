//! The interfaces of the host by which packets for containers can come: all that have a shared address, or a
//! route, and not only the uplink.

use std::collections::{BTreeMap, BTreeSet};

use portmap_common::slot::{HOST_SLOT, slot_of_veth};

use crate::{
    error::Result,
    kernel::{
        link::{self, LOOPBACK},
        netlink::Netlink,
    },
};

/// An interface at which programs are attached, besides the uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::daemon) struct HostInterface {
    /// Its name.
    pub name: String,
    /// Whether its frames have an Ethernet header.
    pub is_ethernet: bool,
}

/// Returns the interfaces among `candidates` at which packets for the host arrive, by index: not the loopback
/// device, host veths, and ports of bridges and the like. An interface that has ended meanwhile is none.
pub(in crate::daemon) fn probe(
    netlink: &Netlink,
    candidates: impl IntoIterator<Item = u32>,
    uplink: u32,
) -> Result<BTreeMap<u32, HostInterface>> {
    let candidates: BTreeSet<u32> = candidates.into_iter().collect();
    let is_foreign = |index: &u32| ![LOOPBACK, uplink].contains(index) && slot_of_veth(*index) == HOST_SLOT;
    let mut found = BTreeMap::new();
    for index in candidates.into_iter().filter(is_foreign) {
        if let Some(interface) = link::find_by_index(netlink, index)?
            && !interface.is_port
        {
            let link::Interface { name, is_ethernet, .. } = interface;
            found.insert(index, HostInterface { name, is_ethernet });
        }
    }
    Ok(found)
}
