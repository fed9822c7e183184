//! Egress of a container's loopback device: packets to ports of others leave by `eth0`, the rest stays inside.
//!
//! The container's own stack believes that it has the host's address to itself, so what it sends to that address
//! or to 127.0.0.0/8 ends up on its loopback device, whoever owns the port. Nothing here is a defence: the hook
//! at the host veth checks what leaves.

use portmap_common::slot::slot_of_loopback;

use crate::{
    frame::Frame,
    packet::{Ipv4, is_loopback, source_mac},
    tables::Tables,
    verdict::Verdict,
};

/// Decides on a frame on a container's loopback device.
#[inline(always)]
pub fn decide(frame: &impl Frame, tables: &impl Tables) -> Verdict {
    // Without a slot (the container has changed its loopback device's address) nothing can leave.
    let slot = source_mac(frame).and_then(slot_of_loopback).unwrap_or_default();
    let Ok(ip) = Ipv4::parse(frame) else {
        return Verdict::Own(slot);
    };
    if ip.destination != tables.config().host_ip && !is_loopback(ip.destination) {
        return Verdict::Own(slot);
    }
    let Ok(ports) = ip.ports(frame) else {
        return Verdict::Own(slot);
    };
    if tables.port(ports.destination).slot == slot {
        return Verdict::Own(slot);
    }
    let eth0 = tables.endpoint(slot).eth0_ifindex;
    if eth0 == 0 { Verdict::Own(slot) } else { Verdict::ToEth0(eth0) }
}
