//! Ingress of a host veth: everything that a container sends arrives here, and what it may not send ends here.
//!
//! This is the only place where a container is held to its ports and its addresses. It relies on nothing that
//! lies inside the container.

use portmap_common::{
    reason::Reason,
    slot::{loopback_mac, slot_of_veth},
    tables::Mac,
};

use super::{Applied, Hook, VerdictSink};
use crate::{
    echo,
    frame::Frame,
    neighbours,
    packet::{Ip, ParsePath, Version, content::Kind, ethernet},
    rate, reach,
    segments::OnWire,
    tables::Tables,
    verdict::{IcmpIdRewrite, Origin, Verdict},
};

/// The hook.
#[derive(Clone, Copy, Debug)]
pub struct Veth;

impl Hook for Veth {
    #[inline(always)]
    fn open(frame: &impl Frame, tables: &impl Tables) -> Result<ethernet::Kind, Verdict> {
        let slot = slot_of_veth(frame.ifindex());
        open(frame, tables, slot).map_err(|reason| Verdict::Drop { slot, reason })
    }

    #[inline(always)]
    fn decide_ip<V: Version, D: ParsePath, F: VerdictSink>(
        frame: &impl Frame,
        tables: &impl Tables,
        sink: &F,
    ) -> Applied<F> {
        let slot = slot_of_veth(frame.ifindex());
        let stop = |reason| sink.apply(Verdict::Drop { slot, reason });
        if !D::linearize(frame) {
            return Err(stop(Reason::Malformed));
        }
        let config = tables.config();
        let shared = V::shared(config).ok_or(Reason::Ipv6).map_err(stop)?;
        let ip = V::parse(frame).map_err(stop)?;
        if !is_allowed_source(&ip, shared, ip.source) {
            return Err(stop(Reason::SourceAddress));
        }
        let reading = D::read(frame, tables, &ip, slot).map_err(stop)?;
        let on_wire = OnWire::of(frame, &reading).map_err(stop)?;
        let ip = D::again(frame, ip).ok_or(Reason::Malformed).map_err(stop)?;
        let is_own = |port| tables.port(port).ifindex == frame.ifindex();
        let content = &reading.content;
        let passes = match content.kind {
            Kind::Ports if is_own(content.ports.source) => Ok(()),
            Kind::Ports => Err(Reason::SourcePort),
            Kind::EchoRequest if !stays(&ip, shared) => Ok(()),
            Kind::EchoRequest | Kind::EchoReply => Err(Reason::Icmp),
            // It would speak of the path to the address that all containers share.
            Kind::IcmpErrorPorts | Kind::IcmpErrorEcho if content.by_router => Err(Reason::Icmp),
            // The container must be able to have got the packet, and the error must go to where that came from.
            Kind::IcmpErrorPorts
                if is_allowed_source(&ip, shared, content.inner_destination)
                    && content.inner_source == ip.destination
                    && is_own(content.ports.destination) =>
            {
                Ok(())
            }
            Kind::IcmpErrorPorts | Kind::IcmpErrorEcho => Err(Reason::Quoted),
        };
        passes.map_err(stop)?;
        // What leaves the machine must be what has been read here: at once, or after the host's stack or another container
        // has sent it on.
        if !frame.is_sound(reading.summed(), reading.is_sctp()) {
            return Err(stop(Reason::Malformed));
        }
        if !stays(&ip, shared) {
            let next_hop = V::next_hop(ip.destination, tables).map_err(stop)?;
            // A redirect passes by the checks of the kernel's own way out, and not every device has one of its own.
            if !frame.fits(config.uplink_ifindex, on_wire.longest) {
                return Err(stop(Reason::TooBig));
            }
            if !rate::admits(tables, on_wire.bytes, slot, false) {
                return Err(stop(Reason::Rate));
            }
            if !neighbours::admits::<V>(tables, ip.destination, slot) {
                return Err(stop(Reason::Neighbours));
            }
            // A later fragment of an echo request has no identifier that could be changed; the first one's is.
            let renumber = if content.kind == Kind::EchoRequest && content.has_message {
                let outside = echo::ask::<V>(tables, ip.destination, content.id, slot).map_err(stop)?;
                IcmpIdRewrite::new(content.message, content.id, outside)
            } else {
                IcmpIdRewrite::NONE
            };
            reading.remember(tables, &ip, slot);
            return Ok(sink.apply(Verdict::ToOutside { slot, next_hop, renumber }));
        }
        // An error goes to whoever sent what it quotes.
        let (own, target) = if content.kind == Kind::Ports {
            (content.ports.source, content.ports.destination)
        } else {
            (content.ports.destination, content.ports.source)
        };
        let owner = tables.port(target);
        if reach::is_by_loopback(&ip) && (reach::is_private(owner) || reach::is_private(tables.port(own))) {
            return Err(stop(Reason::Loopback));
        }
        if owner.is_host() {
            reach::check(frame, tables, &ip, &reading, slot).map_err(stop)?;
        }
        if !rate::admits(tables, on_wire.bytes, slot, true) {
            return Err(stop(Reason::Rate));
        }
        reading.remember(tables, &ip, slot);
        if owner.is_host() {
            return Ok(sink.apply(Verdict::ToHost(slot)));
        }
        let by_loopback = V::is_loopback_only(ip.source) || V::is_loopback_only(ip.destination);
        let origin = Origin::Container(slot);
        Ok(sink.apply(Verdict::ToContainer { origin, owner, by_loopback, renumber: IcmpIdRewrite::NONE }))
    }
}

/// The error is a reason to drop the frame.
#[inline(always)]
fn open(frame: &impl Frame, tables: &impl Tables, slot: u16) -> Result<ethernet::Kind, Reason> {
    let kind = ethernet::kind(frame)?;
    let source = ethernet::source(frame).ok_or(Reason::Malformed)?;
    // What comes from the container's loopback device has kept the address of that one.
    if source != tables.config().mac && source != Mac::new(loopback_mac(slot)) {
        return Err(Reason::SourceMac);
    }
    if ethernet::destination(frame).is_none_or(ethernet::is_group) {
        return Err(Reason::Destination);
    }
    Ok(kind)
}

/// Whether a packet stays on the host, whose shared address is given.
#[inline(always)]
fn stays<V: Version>(ip: &Ip<V>, shared: V::Address) -> bool {
    ip.destination == shared || V::is_loopback(ip.destination)
}

/// Whether a container may have an address, as far as this packet goes: a loopback address is fine as long as the
/// packet stays on the host.
#[inline(always)]
fn is_allowed_source<V: Version>(ip: &Ip<V>, shared: V::Address, address: V::Address) -> bool {
    address == shared || (stays(ip, shared) && V::is_loopback(address))
}
