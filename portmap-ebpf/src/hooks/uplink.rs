//! Ingress of the uplink: packets from outside go to the container that owns the destination port; everything
//! else is the host's.

use portmap_common::{reason::Reason, slot::HOST_SLOT};

use crate::{
    frame::Frame,
    packet::{Ipv4, is_loopback},
    tables::Tables,
    verdict::{Origin, Verdict},
};

/// Decides on a frame that came in on the uplink.
#[inline(always)]
pub fn decide(frame: &impl Frame, tables: &impl Tables) -> Verdict {
    let ip = match Ipv4::parse(frame) {
        Ok(ip) => ip,
        Err(reason) => return Verdict::Continue(reason),
    };
    let config = tables.config();
    if ip.destination != config.host_ip {
        return Verdict::Continue(Reason::OtherAddress);
    }
    // A container accepts its own address as a source, because other containers have the same one; so nobody
    // outside may claim it.
    if ip.source == config.host_ip || is_loopback(ip.source) {
        return Verdict::Drop { slot: HOST_SLOT, reason: Reason::SourceAddress };
    }
    let ports = match ip.ports(frame) {
        Ok(ports) => ports,
        Err(reason) => return Verdict::Continue(reason),
    };
    let owner = tables.port(ports.destination);
    if owner.is_host() {
        return Verdict::Continue(Reason::HostPort);
    }
    // A redirect would turn a frame that only a promiscuous interface sees into one for the container.
    if !frame.is_for_this_station() {
        return Verdict::Continue(Reason::OtherStation);
    }
    Verdict::ToContainer { origin: Origin::Outside, owner }
}
