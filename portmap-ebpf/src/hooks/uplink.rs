//! Ingress of the uplink: packets from outside go to the container that owns the destination port; everything
//! else is the host's.

use portmap_common::{reason::Reason, slot::HOST_SLOT, tables::PortEntry};

use super::{Applied, Hook, VerdictSink};
use crate::{
    echo,
    frame::Frame,
    packet::{Content, ParsePath, Version, content::Kind, ethernet},
    tables::Tables,
    verdict::{IcmpIdRewrite, Origin, Verdict},
};

/// The hook.
#[derive(Clone, Copy, Debug)]
pub struct Uplink;

impl Hook for Uplink {
    #[inline(always)]
    fn open(frame: &impl Frame, _tables: &impl Tables) -> Result<ethernet::Kind, Verdict> {
        ethernet::kind_or_priority_tagged(frame).map_err(Verdict::Continue)
    }

    #[inline(always)]
    fn decide_ip<V: Version, D: ParsePath, F: VerdictSink>(
        frame: &impl Frame,
        tables: &impl Tables,
        sink: &F,
    ) -> Applied<F> {
        let stop = |reason| sink.apply(Verdict::Continue(reason));
        let shared = V::shared(tables.config()).ok_or(Reason::Ipv6).map_err(stop)?;
        let ip = V::parse(frame).map_err(stop)?;
        if ip.destination != shared {
            // The host's stack would take it for its own if routes to loopback addresses were allowed on the uplink.
            return if V::is_loopback(ip.destination) {
                Ok(sink.apply(Verdict::Drop { slot: HOST_SLOT, reason: Reason::Destination }))
            } else {
                Err(stop(Reason::OtherAddress))
            };
        }
        // A container accepts its own address as a source, because other containers have the same one; so nobody
        // outside may claim it; nor, by IPv6, any IPv4 address.
        if ip.source == shared || V::is_loopback(ip.source) || V::is_disguised(ip.source) {
            return Ok(sink.apply(Verdict::Drop { slot: HOST_SLOT, reason: Reason::SourceAddress }));
        }
        let reading = D::read(frame, tables, &ip, HOST_SLOT).map_err(stop)?;
        // Also for the host's own datagrams: what an earlier one with the same identification carried must not speak
        // for their later fragments.
        reading.remember(tables, &ip, HOST_SLOT);
        let content = &reading.content;
        if matches!(content.kind, Kind::IcmpErrorPorts | Kind::IcmpErrorEcho)
            && (content.inner_source != shared
                || content.inner_destination == shared
                || V::is_loopback(content.inner_destination))
        {
            // What an error quotes must have left by this uplink.
            return Err(stop(Reason::Quoted));
        }
        let (owner, renumber) = match content.kind {
            Kind::Ports => (owned(tables, content.ports.destination).map_err(stop)?, IcmpIdRewrite::NONE),
            Kind::IcmpErrorPorts => (owned(tables, content.ports.source).map_err(stop)?, IcmpIdRewrite::NONE),
            Kind::EchoReply => lookup_owner(tables, content, ip.source).map_err(stop)?,
            Kind::IcmpErrorEcho => lookup_owner(tables, content, content.inner_destination).map_err(stop)?,
            Kind::EchoRequest => return Err(stop(Reason::Icmp)),
        };
        // A redirect would turn a frame that only a promiscuous interface sees into one for the container.
        if !frame.is_packet_host() {
            return Err(stop(Reason::OtherStation));
        }
        Ok(sink.apply(Verdict::ToContainer { origin: Origin::Outside, owner, by_loopback: false, renumber }))
    }
}

/// The container that has asked `peer` for an echo, and how its message gets its own identifier back.
#[inline(always)]
fn lookup_owner<V: Version>(
    tables: &impl Tables,
    content: &Content<V>,
    peer: V::Address,
) -> Result<(PortEntry, IcmpIdRewrite), Reason> {
    let (owner, id) = echo::lookup_owner::<V>(tables, peer, content.id).ok_or(Reason::Icmp)?;
    // A later fragment has no identifier.
    let to = if content.has_message { id } else { content.id };
    Ok((owner, IcmpIdRewrite::new(content.message, content.id, to)))
}

/// The container that owns a port.
#[inline(always)]
fn owned(tables: &impl Tables, port: u16) -> Result<PortEntry, Reason> {
    let owner = tables.port(port);
    if owner.is_host() { Err(Reason::HostPort) } else { Ok(owner) }
}
