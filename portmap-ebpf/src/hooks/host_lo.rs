//! Ingress of the host's loopback device: what the host sends to a container's port goes there; all else stays.

use portmap_common::reason::Reason;

use crate::{
    frame::Frame,
    packet::{Ipv4, is_loopback},
    tables::Tables,
    verdict::{Origin, Verdict},
};

/// Decides on a frame on the host's loopback device.
#[inline(always)]
pub fn decide(frame: &impl Frame, tables: &impl Tables) -> Verdict {
    let ip = match Ipv4::parse(frame) {
        Ok(ip) => ip,
        Err(reason) => return Verdict::Continue(reason),
    };
    if ip.destination != tables.config().host_ip && !is_loopback(ip.destination) {
        return Verdict::Continue(Reason::OtherAddress);
    }
    let ports = match ip.ports(frame) {
        Ok(ports) => ports,
        Err(reason) => return Verdict::Continue(reason),
    };
    let owner = tables.port(ports.destination);
    if !owner.is_host() {
        return Verdict::ToContainer { origin: Origin::Host, owner };
    }
    // A container's packet for the host passes here on its way from the hook at the host veth.
    if !tables.port(ports.source).is_host() {
        return Verdict::Decided;
    }
    Verdict::Continue(Reason::HostPort)
}
