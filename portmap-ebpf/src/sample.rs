//! The description of a dropped packet in a sample.

use portmap_common::event::DropEvent;

use crate::{
    frame::Frame,
    packet::{
        IpVersion, V4, V6, ethernet,
        l4::{has_ports, ports},
    },
};

/// Fills in length, interface, addresses, protocol and ports. Fields that cannot be parsed stay zero.
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
fn describe_ip<V: IpVersion>(frame: &impl Frame, event: &mut DropEvent) {
    let Ok(ip) = V::parse(frame) else { return };
    event.source = V::to_mapped(ip.source);
    event.destination = V::to_mapped(ip.destination);
    event.protocol = low_byte(ip.protocol);
    // Extension headers are not skipped here, because this program has little stack left.
    if has_ports(ip.protocol)
        && !V::is_subsequent_fragment(&ip)
        && let Some(ports) = ports(frame, &ip, ip.payload)
    {
        event.source_port = ports.source;
        event.destination_port = ports.destination;
    }
}

/// Returns a protocol number as eight bits.
#[inline(always)]
const fn low_byte(protocol: u32) -> u8 {
    let [low, ..] = protocol.to_le_bytes();
    low
}
