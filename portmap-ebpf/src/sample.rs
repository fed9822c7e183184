//! What people want to know of a dropped packet, as far as it can be read.

use portmap_common::event::DropEvent;

use crate::{
    frame::Frame,
    packet::{
        V4, V6, Version,
        content::{has_ports, ports},
        ethernet,
    },
};

/// Fills in addresses, protocol and ports; what cannot be read stays zero.
#[inline(always)]
pub fn describe(frame: &impl Frame, event: &mut DropEvent) {
    event.length = frame.length();
    event.ifindex = frame.ifindex();
    let Some(ether_type) = ethernet::ether_type(frame) else { return };
    event.ether_type = ether_type;
    match ether_type {
        ethernet::IPV4 => describe_ip::<V4>(frame, event),
        ethernet::IPV6 => describe_ip::<V6>(frame, event),
        _ => {}
    }
}

#[inline(always)]
fn describe_ip<V: Version>(frame: &impl Frame, event: &mut DropEvent) {
    let Ok(ip) = V::parse(frame) else { return };
    event.source = V::mapped(ip.source);
    event.destination = V::mapped(ip.destination);
    event.protocol = low_byte(ip.protocol);
    // Behind extension headers nothing is looked for: the verdict has done that, and this has little stack.
    if has_ports(ip.protocol)
        && !V::is_later(&ip)
        && let Some(ports) = ports(frame, &ip, ip.payload)
    {
        event.source_port = ports.source;
        event.destination_port = ports.destination;
    }
}

/// A protocol's number as it is in a header.
#[inline(always)]
const fn low_byte(protocol: u32) -> u8 {
    let [low, ..] = protocol.to_le_bytes();
    low
}
