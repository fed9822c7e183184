//! Ownership of ICMP identifiers: which container receives an echo reply.
//!
//! An echo message has no port, only an identifier that its sender chooses. When a request leaves, the hook
//! records its sender, peer and identifier. If another owner has the identifier towards
//! this peer, the request gets a different one, and its reply gets the original one back. The sequence of
//! identifiers that are tried depends on a secret, so that a container cannot occupy all identifiers of
//! another one with a few requests. An owner that sends no more requests loses its identifiers to others.

use portmap_common::{
    flow_state::{ECHO_LIFETIME, Echo, EchoKey},
    reason::Reason,
    slot::HOST_SLOT,
    tables::PortEntry,
};

use crate::{packet::IpVersion, tables::Tables};

/// Most identifiers that are tried.
const MAX_ATTEMPTS: u16 = 8;

/// Returns the distance between the identifiers that are tried; it is odd, so that all of them differ.
#[inline(always)]
fn step(secret: u64, slot: u16, id: u16) -> u16 {
    // The finalizer of MurmurHash3: every bit of the secret, the slot and the identifier affects every bit of
    // the result.
    let mut mixed = secret ^ (u64::from(slot) << 16 | u64::from(id));
    mixed = (mixed ^ mixed >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed = (mixed ^ mixed >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    (mixed >> 48) as u16 | 1
}

#[inline(always)]
fn key<V: IpVersion>(peer: V::Address, id: u16) -> EchoKey {
    EchoKey { peer: V::to_mapped(peer), id: u32::from(id), version: V::NUMBER }
}

/// Returns the container that owns an identifier towards `peer`, and the identifier that it uses itself.
#[inline(always)]
pub fn lookup_owner<V: IpVersion>(
    tables: &impl Tables,
    peer: V::Address,
    id: u16,
) -> Option<(PortEntry, u16)> {
    let echo = tables.echo(&key::<V>(peer, id))?;
    container(tables, echo).map(|owner| (owner, echo.id))
}

/// Returns the container that owns an identifier, if it still exists.
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

/// Allocates an identifier towards `peer` to the container in `slot`, which uses `id` itself, and returns it.
#[inline(always)]
pub fn allocate_id<V: IpVersion>(
    tables: &impl Tables,
    peer: V::Address,
    id: u16,
    slot: u16,
) -> Result<u16, Reason> {
    let now = tables.now();
    let mine = Echo { generation: tables.endpoint(slot).generation, slot, id, seen: now };
    let step = step(tables.config().secret, slot, id);
    let mut candidate = id;
    for _ in 0..MAX_ATTEMPTS {
        let key = key::<V>(peer, candidate);
        let found = tables.echo(&key);
        if found.is_some_and(|echo| echo.is_same_owner(&mine)) {
            tables.renew_echo(&key, now);
            return Ok(candidate);
        }
        let is_taken = found.is_some_and(|echo| {
            now.wrapping_sub(echo.seen) <= ECHO_LIFETIME
                && (echo.slot == HOST_SLOT || container(tables, echo).is_some())
        });
        if !is_taken && tables.claim_echo(&key, &mine, found) {
            return Ok(candidate);
        }
        candidate = candidate.wrapping_add(step);
    }
    Err(Reason::EchoBusy)
}

/// Reserves an identifier towards `peer` for the host, which never gets a different one.
#[inline(always)]
pub fn reserve_for_host<V: IpVersion>(tables: &impl Tables, peer: V::Address, id: u16) {
    let host = Echo { generation: 0, slot: HOST_SLOT, id, seen: tables.now() };
    let key = key::<V>(peer, id);
    if tables.echo(&key).is_some_and(|echo| echo.is_same_owner(&host)) {
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
    fn icmp_id_steps_are_odd_and_differ_between_containers() {
        // Adjacent identifiers and slots must rarely have one step.
        for secret in [0, 1, u64::MAX] {
            let steps: BTreeSet<u16> =
                (0..128).flat_map(|id| (1..9).map(move |slot| step(secret, slot, id))).collect();
            assert!(steps.len() > 950 && steps.iter().all(|step| step % 2 == 1), "{}", steps.len());
        }
        assert_ne!(step(1, 1, 1234), step(2, 1, 1234));
    }
}
