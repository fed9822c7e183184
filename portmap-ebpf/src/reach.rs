//! What containers may reach of the host: its ports, and the daemon's own.

use portmap_common::{
    memory::{HOST_FLOW_LIFETIME, HostFlow, HostFlowKey},
    reason::Reason,
    tables::{HOST_ACCESS_LIMITED, LOOPBACK_PRIVATE, PortEntry},
};

use crate::{
    frame::Frame,
    packet::{
        Ip, Reading, Version,
        content::{Kind, TCP},
    },
    tables::Tables,
};

/// Where the word with the flags is in a TCP header, and where it ends.
const TCP_FLAGS: usize = 12;
const TCP_FLAGS_END: usize = 16;
const SYN: u32 = 0x02 << 16;
const ACK: u32 = 0x10 << 16;

/// Whether a packet is from or for a loopback address.
#[inline(always)]
pub fn is_by_loopback<V: Version>(ip: &Ip<V>) -> bool {
    V::is_loopback(ip.source) || V::is_loopback(ip.destination)
}

/// Whether the owner of a port keeps loopback addresses to itself.
#[inline(always)]
pub const fn is_private(owner: PortEntry) -> bool {
    owner.flags & LOOPBACK_PRIVATE != 0
}

/// Refuses what the container in `slot` may not send to a port of the host.
///
/// An error speaks of what the host has sent, and a later fragment is nothing without its first.
#[inline(always)]
pub fn check<V: Version>(
    frame: &impl Frame,
    tables: &impl Tables,
    ip: &Ip<V>,
    reading: &Reading<V>,
    slot: u16,
) -> Result<(), Reason> {
    let (config, content) = (tables.config(), &reading.content);
    if content.kind != Kind::Ports || reading.protocol == 0 {
        return Ok(());
    }
    let (port, is_tcp) = (content.ports.destination, reading.protocol == TCP);
    let listener = &config.listener;
    if is_tcp
        && listener.port != 0
        && listener.port == u32::from(port)
        && V::is_listener(ip.destination, listener)
    {
        return Err(Reason::Listener);
    }
    if config.reach & HOST_ACCESS_LIMITED == 0 || tables.is_open(port) {
        return Ok(());
    }
    let is_answer = if is_tcp {
        !opens(frame, ip, reading.transport)
    } else {
        let flow = tables.host_flow(&key(reading, slot, content.ports.source, port));
        flow.is_some_and(|flow| tables.now().wrapping_sub(flow.seen) <= HOST_FLOW_LIFETIME)
    };
    if is_answer { Ok(()) } else { Err(Reason::HostAccess) }
}

/// Writes down that the host has sent a packet to the container in `slot`, which may answer then.
///
/// TCP says by itself what is an answer. To a port that containers reach anyway they need no leave; and what answers
/// them from there must not fill the map.
#[inline(always)]
pub fn host_speaks<V: Version>(tables: &impl Tables, reading: &Reading<V>, slot: u16) {
    let content = &reading.content;
    if tables.config().reach & HOST_ACCESS_LIMITED == 0
        || content.kind != Kind::Ports
        || reading.protocol == 0
        || reading.protocol == TCP
        || tables.is_open(content.ports.source)
    {
        return;
    }
    let key = key(reading, slot, content.ports.destination, content.ports.source);
    tables.set_host_flow(&key, &HostFlow { seen: tables.now() });
}

#[inline(always)]
fn key<V: Version>(reading: &Reading<V>, slot: u16, container_port: u16, host_port: u16) -> HostFlowKey {
    #[expect(clippy::cast_possible_truncation, reason = "a protocol has eight bits")]
    let protocol = reading.protocol as u16;
    HostFlowKey { slot, container_port, host_port, protocol, version: V::NUMBER }
}

/// Whether a TCP segment opens a connection, or does not say that it does not.
#[inline(always)]
fn opens<V: Version>(frame: &impl Frame, ip: &Ip<V>, transport: usize) -> bool {
    if transport + TCP_FLAGS_END > ip.end {
        return true;
    }
    frame.words(transport + TCP_FLAGS).is_none_or(|[word]| word & (SYN | ACK) == SYN)
}
