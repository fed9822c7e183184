//! Echo requests and replies: whose reply is it?
//!
//! An echo message has no port, only an identifier that its sender makes up. Who has asked whom with which one is
//! written down when the request leaves. If an identifier is in use towards an address, a later asker gets another
//! one on the way out, and its own back on the way in.

use portmap_common::{
    memory::{Echo, EchoKey},
    reason::Reason,
    slot::HOST_SLOT,
    tables::PortEntry,
};

use crate::{packet::Version, tables::Tables};

/// Most identifiers that are tried.
const ATTEMPTS: u16 = 8;
/// Distance between them; odd, so that no two are the same.
const STEP: u16 = 0x2a6b;

#[inline(always)]
fn key<V: Version>(peer: V::Address, id: u16) -> EchoKey {
    EchoKey { peer: V::mapped(peer), id: u32::from(id), version: V::NUMBER }
}

/// Who gets a reply, or an error about a request, with this identifier, and the identifier that it used itself.
#[inline(always)]
pub fn asker<V: Version>(tables: &impl Tables, peer: V::Address, id: u16) -> Option<(PortEntry, u16)> {
    let echo = tables.echo(&key::<V>(peer, id))?;
    container(tables, echo).map(|owner| (owner, echo.id))
}

/// The container that has asked, if it still exists.
#[inline(always)]
fn container(tables: &impl Tables, echo: Echo) -> Option<PortEntry> {
    if echo.slot == HOST_SLOT {
        return None;
    }
    let endpoint = tables.endpoint(echo.slot);
    if endpoint.host_ifindex == 0 || endpoint.generation != echo.generation {
        return None;
    }
    Some(endpoint.entry(echo.slot))
}

/// Writes down that a container asks, and returns the identifier with which its request may leave.
#[inline(always)]
pub fn ask<V: Version>(tables: &impl Tables, peer: V::Address, id: u16, slot: u16) -> Result<u16, Reason> {
    let mine = Echo { generation: tables.endpoint(slot).generation, slot, id };
    let mut outside = id;
    for _ in 0..ATTEMPTS {
        let key = key::<V>(peer, outside);
        let found = tables.echo(&key);
        if found == Some(mine) {
            return Ok(outside);
        }
        let is_taken = found.is_some_and(|echo| echo.slot == HOST_SLOT || container(tables, echo).is_some());
        if !is_taken && tables.claim_echo(&key, &mine, found) {
            return Ok(outside);
        }
        outside = outside.wrapping_add(STEP);
    }
    Err(Reason::EchoBusy)
}

/// Writes down that the host itself asks, which it does with the identifier that it likes.
#[inline(always)]
pub fn host_asks<V: Version>(tables: &impl Tables, peer: V::Address, id: u16) {
    let host = Echo { generation: 0, slot: HOST_SLOT, id };
    let key = key::<V>(peer, id);
    if tables.echo(&key) != Some(host) {
        tables.set_echo(&key, &host);
    }
}
