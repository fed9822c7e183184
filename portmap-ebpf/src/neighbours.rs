//! The neighbour policer: how many new neighbours a container can have the host resolve.
//!
//! The kernel has one neighbour table for the whole machine, and keeps an unreachable neighbour for about a
//! minute. So every neighbour that the kernel must resolve is charged to the container that uses it, whether
//! or not it answers. Each neighbour is charged once a minute, so a container that uses few of them is not
//! affected.

use portmap_common::flow_state::{NEIGHBOUR_LIFETIME, Neighbour, NeighbourKey};

use crate::{
    route::{Exit, Route, is_direct_neighbour},
    tables::Tables,
};

/// Returns the key of a neighbour that the container in `slot` uses.
#[inline(always)]
fn key<V: Route>(address: V::Address, slot: u16) -> NeighbourKey {
    NeighbourKey { address: V::to_mapped(address), slot: u32::from(slot), version: V::NUMBER }
}

/// Returns the entry of a destination that is a neighbour on the direct way. Other ways do not need it: there
/// the FIB is asked in any case.
#[inline(always)]
pub fn known<V: Route>(tables: &impl Tables, destination: V::Address, slot: u16) -> Option<Neighbour> {
    if is_direct_neighbour::<V>(destination, tables.config()) {
        tables.neighbour(&key::<V>(destination, slot))
    } else {
        None
    }
}

/// Returns whether the container in `slot` may send a packet to `destination` by this way, and charges it for
/// a neighbour that must be resolved. `known` is the result of [`known`].
#[inline(always)]
pub fn conforms<V: Route>(
    tables: &impl Tables,
    destination: V::Address,
    slot: u16,
    known: Option<Neighbour>,
    exit: &Exit,
) -> bool {
    let is_direct = is_direct_neighbour::<V>(destination, tables.config());
    // The host itself resolves its gateways.
    if !exit.was_asked || !(is_direct || exit.is_new_neighbour) {
        return true;
    }
    let (key, now) = (key::<V>(destination, slot), tables.now());
    let before = if is_direct { known } else { tables.neighbour(&key) }.unwrap_or_default();
    let is_charged = before.seen != 0 && now.wrapping_sub(before.seen) <= NEIGHBOUR_LIFETIME;
    let mut seen = before.seen;
    if exit.is_new_neighbour && !is_charged {
        if !tables.charge_neighbour(slot, now) {
            return false;
        }
        seen = now;
    }
    if is_direct || !is_charged {
        tables.set_neighbour(&key, &Neighbour { seen, checked: now });
    }
    true
}
