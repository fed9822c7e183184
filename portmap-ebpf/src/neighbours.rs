//! The neighbour policer: how many new neighbours a container can have the host resolve.
//!
//! The kernel has one neighbour table for the whole machine, and keeps an unreachable neighbour for about a
//! minute. So every new neighbour on the uplink's network is charged to the container that uses it, whether
//! or not it answers, because programs cannot see that. Each neighbour is charged once a minute, so a
//! container that uses few of them is not affected.

use portmap_common::flow_state::{NEIGHBOUR_LIFETIME, Neighbour, NeighbourKey};

use crate::{route::Route, tables::Tables};

/// Returns whether the container in `slot` may send a packet to `address`, and charges it for a new
/// neighbour.
#[inline(always)]
pub fn conforms<V: Route>(tables: &impl Tables, address: V::Address, slot: u16) -> bool {
    // The host itself resolves its gateways.
    if !V::is_on_link_host(address, tables.config()) {
        return true;
    }
    let now = tables.now();
    let key = NeighbourKey { address: V::to_mapped(address), slot: u32::from(slot), version: V::NUMBER };
    if tables.neighbour(&key).is_some_and(|known| now.wrapping_sub(known.seen) <= NEIGHBOUR_LIFETIME) {
        return true;
    }
    if !tables.charge_neighbour(slot, now) {
        return false;
    }
    tables.set_neighbour(&key, &Neighbour { seen: now });
    true
}
