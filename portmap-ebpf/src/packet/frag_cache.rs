//! The fragment cache: the ports or the ICMP identifier of a datagram's first fragment, for its subsequent
//! fragments.

use portmap_common::flow_state::{CONFLICT_WINDOW, FRAGMENT_LIFETIME, FragCacheEntry};

use super::{
    ip::{IpHeader, IpVersion},
    l4::{L4Info, L4Kind, ParsedL4, Ports},
};
use crate::tables::{FragmentKey as _, Tables};

/// Returns the L4 content of a datagram's first fragment, if its entry has neither expired nor a conflict.
#[inline(always)]
pub(super) fn lookup<V: IpVersion>(
    tables: &impl Tables,
    ip: &IpHeader<V>,
    datagram: u32,
    scope: u16,
) -> Option<L4Info<V>> {
    let entry = V::fragment_key(ip, datagram, scope).get(tables)?;
    if tables.now().wrapping_sub(entry.seen) > FRAGMENT_LIFETIME {
        return None;
    }
    if entry.kind == FragCacheEntry::CONFLICT {
        return None;
    }
    Some(match entry.kind {
        FragCacheEntry::ECHO_REQUEST => L4Info::of_echo(true, entry.source, 0),
        FragCacheEntry::ECHO_REPLY => L4Info::of_echo(false, entry.source, 0),
        _ => L4Info::of_ports(Ports { source: entry.source, destination: entry.destination }),
    })
}

/// Inserts a packet into the cache if it is a first fragment. A caller must do that only for a packet that
/// may pass.
///
/// If two first fragments of one datagram differ, the receiver may use either one, so the entry becomes a
/// conflict.
#[inline(always)]
pub fn insert<V: IpVersion>(tables: &impl Tables, ip: &IpHeader<V>, l4: &ParsedL4<V>, scope: u16) {
    if !l4.is_first {
        return;
    }
    let info = &l4.info;
    let (kind, source, destination) = match info.kind {
        L4Kind::Ports => (FragCacheEntry::PORTS, info.ports.source, info.ports.destination),
        L4Kind::EchoRequest => (FragCacheEntry::ECHO_REQUEST, info.id, 0),
        L4Kind::EchoReply => (FragCacheEntry::ECHO_REPLY, info.id, 0),
        L4Kind::IcmpErrorPorts | L4Kind::IcmpErrorEcho => return,
    };
    let mut entry = FragCacheEntry { seen: tables.now(), kind, source, destination };
    if let Some(before) = V::fragment_key(ip, l4.datagram, scope).get(tables)
        && entry.seen.wrapping_sub(before.seen) <= CONFLICT_WINDOW
    {
        if before.kind == FragCacheEntry::CONFLICT {
            return;
        }
        if before.kind != kind || before.source != source || before.destination != destination {
            entry = FragCacheEntry {
                seen: entry.seen,
                kind: FragCacheEntry::CONFLICT,
                source: 0,
                destination: 0,
            };
        }
    }
    V::fragment_key(ip, l4.datagram, scope).set(tables, &entry);
}
