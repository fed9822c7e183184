//! Ingress of a host veth: everything that a container sends arrives here, and what it may not send ends here.
//!
//! This is the only place where a container is held to its ports and its address. It relies on nothing that
//! lies inside the container.

use portmap_common::{reason::Reason, slot::slot_of_veth, tables::Config};

use crate::{
    frame::Frame,
    packet::{Ipv4, is_loopback},
    tables::Tables,
    verdict::{Origin, Verdict},
};

/// Decides on a frame that a container sent.
#[inline(always)]
pub fn decide(frame: &impl Frame, tables: &impl Tables) -> Verdict {
    let slot = slot_of_veth(frame.ifindex());
    match check(frame, tables, slot) {
        Ok(verdict) => verdict,
        Err(reason) => Verdict::Drop { slot, reason },
    }
}

#[inline(always)]
fn check(frame: &impl Frame, tables: &impl Tables, slot: u16) -> Result<Verdict, Reason> {
    let ip = Ipv4::parse(frame)?;
    let config = tables.config();
    let is_local = ip.destination == config.host_ip || is_loopback(ip.destination);
    // A loopback address is a fine source as long as the packet stays on the host.
    if ip.source != config.host_ip && !(is_local && is_loopback(ip.source)) {
        return Err(Reason::SourceAddress);
    }
    let ports = ip.ports(frame)?;
    if tables.port(ports.source).ifindex != frame.ifindex() {
        return Err(Reason::SourcePort);
    }
    if is_local {
        let owner = tables.port(ports.destination);
        return Ok(if owner.is_host() {
            Verdict::ToHost(slot)
        } else {
            Verdict::ToContainer { origin: Origin::Container(slot), owner }
        });
    }
    Ok(Verdict::ToOutside { slot, next_hop: next_hop(ip.destination, &config)? })
}

/// The neighbour that leads to a destination outside.
#[inline(always)]
fn next_hop(destination: [u8; 4], config: &Config) -> Result<[u8; 4], Reason> {
    // 0.0.0.0/8 is no destination; 224.0.0.0/4 and above are multicast, reserved and the limited broadcast.
    if destination[0] == 0 || destination[0] >= 224 {
        return Err(Reason::Destination);
    }
    let destination_bits = u32::from_be_bytes(destination);
    let mask = u32::from_be_bytes(config.netmask);
    let network = u32::from_be_bytes(config.host_ip) & mask;
    if destination_bits & mask != network {
        return if config.gateway == [0; 4] { Err(Reason::NoRoute) } else { Ok(config.gateway) };
    }
    // The lowest and the highest address of a network are broadcasts, except in networks of one or two.
    let host_bits = destination_bits & !mask;
    if !mask > 1 && (host_bits == 0 || host_bits == !mask) {
        return Err(Reason::Destination);
    }
    Ok(destination)
}
