//! Echo requests and replies: whose reply is it?
//!
//! An echo message has no port, only an identifier that its sender makes up. Who has asked whom with which one is
//! written down when the request leaves. If an identifier is in use towards an address, a later asker gets another
//! one on the way out, and its own back on the way in. Which ones are tried nobody can foresee, so that nobody can take
//! all of them from another by a few requests of its own, and whoever asks no more loses them to who does.

use portmap_common::{
    memory::{ECHO_LIFETIME, Echo, EchoKey},
    reason::Reason,
    slot::HOST_SLOT,
    tables::PortEntry,
};

use crate::{packet::Version, tables::Tables};

/// Most identifiers that are tried.
const ATTEMPTS: u16 = 8;

/// The distance between the identifiers that are tried; odd, so that no two are the same.
#[inline(always)]
fn step(secret: u64, slot: u16, id: u16) -> u16 {
    // The finish of MurmurHash3: every bit of what is known and of what is not decides about every bit of the result.
    let mut mixed = secret ^ (u64::from(slot) << 16 | u64::from(id));
    mixed = (mixed ^ mixed >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed = (mixed ^ mixed >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    (mixed >> 48) as u16 | 1
}

#[inline(always)]
fn key<V: Version>(peer: V::Address, id: u16) -> EchoKey {
    EchoKey { peer: V::mapped(peer), id: u32::from(id), version: V::NUMBER }
}

/// Who gets a reply, or an error about a request, with this identifier, and the identifier that it used itself.
#[inline(always)]
pub fn lookup_owner<V: Version>(tables: &impl Tables, peer: V::Address, id: u16) -> Option<(PortEntry, u16)> {
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
    let now = tables.now();
    let mine = Echo { generation: tables.endpoint(slot).generation, slot, id, seen: now };
    let step = step(tables.config().secret, slot, id);
    let mut outside = id;
    for _ in 0..ATTEMPTS {
        let key = key::<V>(peer, outside);
        let found = tables.echo(&key);
        if found.is_some_and(|echo| echo.is_like(&mine)) {
            tables.renew_echo(&key, now);
            return Ok(outside);
        }
        let is_taken = found.is_some_and(|echo| {
            now.wrapping_sub(echo.seen) <= ECHO_LIFETIME
                && (echo.slot == HOST_SLOT || container(tables, echo).is_some())
        });
        if !is_taken && tables.claim_echo(&key, &mine, found) {
            return Ok(outside);
        }
        outside = outside.wrapping_add(step);
    }
    Err(Reason::EchoBusy)
}

/// Writes down that the host itself asks, which it does with the identifier that it likes.
#[inline(always)]
pub fn reserve_for_host<V: Version>(tables: &impl Tables, peer: V::Address, id: u16) {
    let host = Echo { generation: 0, slot: HOST_SLOT, id, seen: tables.now() };
    let key = key::<V>(peer, id);
    if tables.echo(&key).is_some_and(|echo| echo.is_like(&host)) {
        tables.renew_echo(&key, host.seen);
    } else {
        tables.set_echo(&key, &host);
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn who_knows_other_steps_knows_none() {
        // Of neighbours in every sense, few have the same; all are odd, and used.
        for secret in [0, 1, u64::MAX] {
            let steps: BTreeSet<u16> =
                (0..128).flat_map(|id| (1..9).map(move |slot| step(secret, slot, id))).collect();
            assert!(steps.len() > 950 && steps.iter().all(|step| step % 2 == 1), "{}", steps.len());
        }
        assert_ne!(step(1, 1, 1234), step(2, 1, 1234));
    }
}
