//! Access of containers to the host's ports, to the daemon's listener, and to loopback addresses.

use portmap_common::{
    flow_state::{HOST_FLOW_LIFETIME, HostFlow, HostFlowKey},
    reason::Reason,
    tables::{HOST_ACCESS_LIMITED, LOOPBACK_PRIVATE, PortEntry},
};

use crate::{
    frame::Frame,
    packet::{
        IpHeader, IpVersion, ParsedL4,
        l4::{DCCP, L4Kind, SCTP, TCP},
    },
    tables::Tables,
};

/// Offsets of the start and the end of the word with the flags in a TCP header.
const TCP_FLAGS: usize = 12;
const TCP_FLAGS_END: usize = 16;
const FIN: u32 = 0x01 << 16;
const SYN: u32 = 0x02 << 16;
const RST: u32 = 0x04 << 16;
const ACK: u32 = 0x10 << 16;

/// Offset of the type of the first chunk in an SCTP packet (RFC 9260, section 3).
const SCTP_CHUNK: usize = 12;
/// Types of chunks that only answer: INIT ACK, ABORT, SHUTDOWN COMPLETE.
const SCTP_ANSWERS: [u32; 3] = [2, 6, 14];
/// Offset of the word with the type in a DCCP header (RFC 4340, section 5.1), and the type's place in it.
const DCCP_TYPE: usize = 8;
const DCCP_TYPE_SHIFT: u32 = 25;
/// Types of packets that only answer: Response, Reset.
const DCCP_ANSWERS: [u32; 2] = [1, 7];

/// Returns whether a packet is from or to a loopback address.
#[inline(always)]
pub fn is_by_loopback<V: IpVersion>(ip: &IpHeader<V>) -> bool {
    V::is_loopback(ip.source) || V::is_loopback(ip.destination)
}

/// Returns whether the owner of a port keeps loopback addresses private.
#[inline(always)]
pub const fn is_private(owner: PortEntry) -> bool {
    owner.flags & LOOPBACK_PRIVATE != 0
}

/// Checks whether the container in `slot` may send a packet to a port of the host. The error is the reason to
/// drop it.
///
/// ICMP errors are about packets that the host has sent, and a subsequent fragment is useless without the
/// first one, so both are allowed.
#[inline(always)]
pub fn check_host_access<V: IpVersion>(
    frame: &impl Frame,
    tables: &impl Tables,
    ip: &IpHeader<V>,
    l4: &ParsedL4<V>,
    slot: u16,
) -> Result<(), Reason> {
    let (config, info) = (tables.config(), &l4.info);
    if info.kind != L4Kind::Ports || l4.protocol == 0 {
        return Ok(());
    }
    let (port, is_tcp) = (info.ports.destination, l4.protocol == TCP);
    let listener = &config.listener;
    if is_tcp
        && listener.port != 0
        && listener.port == u32::from(port)
        && V::is_listener(ip.destination, listener)
    {
        return Err(Reason::Listener);
    }
    if config.reach & HOST_ACCESS_LIMITED == 0 || tables.is_host_port_allowed(port) {
        return Ok(());
    }
    let is_reply = if is_tcp {
        !opens_connection(frame, ip, l4)
    } else {
        let flow = tables.host_flow(&key(l4, slot, info.ports.source, port));
        flow.is_some_and(|flow| tables.now().wrapping_sub(flow.seen) <= HOST_FLOW_LIFETIME)
    };
    if is_reply { Ok(()) } else { Err(Reason::HostAccess) }
}

/// Records a flow from the host to the container in `slot`, which may then reply.
///
/// It skips TCP, whose flags mark replies, and ports that containers may reach anyway, so that replies from
/// such a port do not fill the map.
#[inline(always)]
pub fn track_host_flow<V: IpVersion>(tables: &impl Tables, l4: &ParsedL4<V>, slot: u16) {
    let info = &l4.info;
    if tables.config().reach & HOST_ACCESS_LIMITED == 0
        || info.kind != L4Kind::Ports
        || l4.protocol == 0
        || l4.protocol == TCP
        || tables.is_host_port_allowed(info.ports.source)
    {
        return;
    }
    let key = key(l4, slot, info.ports.destination, info.ports.source);
    tables.set_host_flow(&key, &HostFlow { seen: tables.now() });
}

#[inline(always)]
fn key<V: IpVersion>(l4: &ParsedL4<V>, slot: u16, container_port: u16, host_port: u16) -> HostFlowKey {
    #[expect(clippy::cast_possible_truncation, reason = "a protocol has eight bits")]
    let protocol = l4.protocol as u16;
    HostFlowKey { slot, container_port, host_port, protocol, version: V::NUMBER }
}

/// Returns whether a packet is a TCP segment that opens a connection, or is too short to exclude that.
#[inline(always)]
pub fn opens_connection<V: IpVersion>(frame: &impl Frame, ip: &IpHeader<V>, l4: &ParsedL4<V>) -> bool {
    tcp_flags(frame, ip, l4).is_some_and(|flags| flags & (SYN | ACK) == SYN)
}

/// Returns the flags of a TCP segment; [`SYN`] if it is too short to have them, and `None` for other packets.
#[inline(always)]
fn tcp_flags<V: IpVersion>(frame: &impl Frame, ip: &IpHeader<V>, l4: &ParsedL4<V>) -> Option<u32> {
    if l4.info.kind != L4Kind::Ports || l4.protocol != TCP {
        return None;
    }
    if l4.transport + TCP_FLAGS_END > ip.end {
        return Some(SYN);
    }
    Some(frame.load_be32s(l4.transport + TCP_FLAGS).map_or(SYN, |[word]| word & (FIN | SYN | RST | ACK)))
}

/// Returns whether a packet is a TCP segment that ends a connection.
#[inline(always)]
pub fn closes_connection<V: IpVersion>(frame: &impl Frame, ip: &IpHeader<V>, l4: &ParsedL4<V>) -> bool {
    tcp_flags(frame, ip, l4).is_some_and(|flags| flags & (FIN | RST) != 0)
}

/// Returns whether a packet is a TCP segment that aborts a connection.
#[inline(always)]
pub fn aborts_connection<V: IpVersion>(frame: &impl Frame, ip: &IpHeader<V>, l4: &ParsedL4<V>) -> bool {
    tcp_flags(frame, ip, l4).is_some_and(|flags| flags & RST != 0)
}

/// Returns whether a packet is one with which a stack only answers another one: a packet that accepts a connection or
/// refuses one.
#[inline(always)]
pub fn only_answers<V: IpVersion>(frame: &impl Frame, ip: &IpHeader<V>, l4: &ParsedL4<V>) -> bool {
    if l4.info.kind != L4Kind::Ports {
        return false;
    }
    let word = |offset: usize| {
        if l4.transport + offset + 4 > ip.end { None } else { frame.load_be32s(l4.transport + offset) }
    };
    match l4.protocol {
        TCP => {
            tcp_flags(frame, ip, l4).is_some_and(|flags| flags & RST != 0 || flags & (SYN | ACK) == SYN | ACK)
        }
        SCTP => word(SCTP_CHUNK).is_some_and(|[word]| SCTP_ANSWERS.contains(&(word >> 24))),
        DCCP => word(DCCP_TYPE).is_some_and(|[word]| DCCP_ANSWERS.contains(&(word >> DCCP_TYPE_SHIFT & 0xf))),
        _ => false,
    }
}
