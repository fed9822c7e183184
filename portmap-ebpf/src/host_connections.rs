//! Connections of the host's from ports that containers own.
//!
//! The host's NAT (masquerading) chooses source ports without regard to their owners, and a connection of the host's
//! can be older than a container. So a packet that the host sends from a container's port is remembered with
//! its addresses and ports, and the packets of the same connection from outside are the host's, while all
//! others are the container's. The container cannot use the same addresses and ports meanwhile.

use portmap_common::{
    flow_state::{
        HOST_CONNECTION_LIFETIME, HOST_CONNECTION_REFRESH, HOST_TCP_LIFETIME, HostConnection,
        HostConnectionKey,
    },
    tables::{HOST_CONNECTIONS, PortEntry},
};

use crate::{
    frame::Frame,
    packet::{
        IpHeader, IpVersion, ParsedL4,
        l4::{L4Kind, TCP},
    },
    reach,
    tables::Tables,
};

/// Direction of a packet, seen from the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From outside.
    In,
    /// To the outside.
    Out,
}

/// Returns the connection of a packet; for an ICMP error, that of its inner packet.
#[inline(always)]
fn key<V: IpVersion>(ip: &IpHeader<V>, l4: &ParsedL4<V>, direction: Direction) -> HostConnectionKey {
    let info = &l4.info;
    let is_error = info.kind == L4Kind::IcmpErrorPorts;
    let (source, destination) =
        if is_error { (info.inner_source, info.inner_destination) } else { (ip.source, ip.destination) };
    // The inner packet of an error went the other way.
    let goes_out = (direction == Direction::Out) ^ is_error;
    let (local, local_port, peer, peer_port) = if goes_out {
        (source, info.ports.source, destination, info.ports.destination)
    } else {
        (destination, info.ports.destination, source, info.ports.source)
    };
    HostConnectionKey {
        peer: V::to_mapped(peer),
        local: V::to_mapped(local),
        peer_port,
        local_port,
        version: V::NUMBER,
    }
}

/// Returns whether a packet with ports, or an error about one, belongs to a connection of the host's. `entry`
/// is that of its local port.
#[inline(always)]
pub fn is_hosts<V: IpVersion>(
    tables: &impl Tables,
    ip: &IpHeader<V>,
    l4: &ParsedL4<V>,
    entry: PortEntry,
    direction: Direction,
) -> bool {
    entry.flags & HOST_CONNECTIONS != 0
        && tables.now() <= tables.host_connection(&key(ip, l4, direction)).until
}

/// Records that the host has sent a packet from a port that a container owns, unless it only answers one. `entry` is
/// that of the port.
#[inline(always)]
pub fn track<V: IpVersion>(
    frame: &impl Frame,
    tables: &impl Tables,
    ip: &IpHeader<V>,
    l4: &ParsedL4<V>,
    entry: PortEntry,
) {
    let (key, now) = (key(ip, l4, Direction::Out), tables.now());
    let known = tables.host_connection(&key);
    let is_known = now <= known.until;
    // Outsiders can make the host's stack answer from any port, by packets that it accepts and the hook at the ingress
    // cannot parse. The host has no connection because of that.
    if !is_known && reach::only_answers(frame, ip, l4) {
        return;
    }
    let was_closing = is_known && known.closing != 0;
    let is_closing =
        reach::closes_connection(frame, ip, l4) || (was_closing && !reach::opens_connection(frame, ip, l4));
    let is_long = l4.protocol == TCP && !is_closing;
    let mut until = now.wrapping_add(if is_long { HOST_TCP_LIFETIME } else { HOST_CONNECTION_LIFETIME });
    let is_same = is_known && is_closing == was_closing;
    if is_same && until < known.until {
        // A datagram or a fragment with the same addresses and ports does not shorten a TCP connection.
        until = known.until;
    }
    let is_recorded = is_same
        && until <= known.until.wrapping_add(HOST_CONNECTION_REFRESH)
        && entry.flags & HOST_CONNECTIONS != 0;
    if !is_recorded {
        let connection = HostConnection { until, closing: u32::from(is_closing), reserved: 0 };
        tables.set_host_connection(&key, &connection);
    }
}

/// Records that the peer has aborted a connection of the host's with this packet from outside, if it has.
#[inline(always)]
pub fn note_abort<V: IpVersion>(
    frame: &impl Frame,
    tables: &impl Tables,
    ip: &IpHeader<V>,
    l4: &ParsedL4<V>,
) {
    if reach::aborts_connection(frame, ip, l4) {
        let until = tables.now().wrapping_add(HOST_CONNECTION_LIFETIME);
        let connection = HostConnection { until, closing: 1, reserved: 0 };
        tables.set_host_connection(&key(ip, l4, Direction::In), &connection);
    }
}
