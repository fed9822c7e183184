//! How many neighbours a container has the host ask for.
//!
//! Each one on the uplink's network takes a place in a table of the kernel's that the whole machine has one of, for about a
//! minute if nobody answers. So what a container asks for costs it something, whether or not somebody answers, which
//! programs cannot see; but once a minute for each, so that whoever speaks with few pays next to nothing.

use portmap_common::memory::{NEIGHBOUR_LIFETIME, Neighbour, NeighbourKey};

use crate::{packet::Version, tables::Tables};

/// Whether the container in `slot` may have a packet sent to a neighbour. If so, and it is a new one, it has been paid for.
#[inline(always)]
pub fn admits<V: Version>(tables: &impl Tables, address: V::Address, slot: u16) -> bool {
    // The gateways are known to the host in any case.
    if !V::is_mere_neighbour(address, tables.config()) {
        return true;
    }
    let now = tables.now();
    let key = NeighbourKey { address: V::mapped(address), slot: u32::from(slot), version: V::NUMBER };
    if tables.neighbour(&key).is_some_and(|known| now.wrapping_sub(known.seen) <= NEIGHBOUR_LIFETIME) {
        return true;
    }
    if !tables.may_ask(slot, now) {
        return false;
    }
    tables.set_neighbour(&key, &Neighbour { seen: now });
    true
}
