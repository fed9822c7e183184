//! Ingress of the uplink: packets from outside go to the container that owns the destination port. All other
//! packets are the host's.

use portmap_common::{reason::Reason, slot::HOST_SLOT, tables::PortEntry};

use super::hook::{Hook, VerdictSink};
use crate::{
    frame::Frame,
    host_connections::{self, Direction},
    icmp_id,
    packet::{
        IpVersion, L4Info, ParsePath,
        ethernet::{self, L3},
        frag_cache,
        l4::L4Kind,
    },
    route::Route,
    segments::WireSize,
    tables::Tables,
    verdict::{IcmpIdRewrite, Origin, Verdict},
};

/// The hook.
#[derive(Clone, Copy, Debug)]
pub struct Uplink;

impl Hook for Uplink {
    #[inline(always)]
    fn classify_frame(frame: &impl Frame, _tables: &impl Tables) -> Result<L3, Verdict> {
        ethernet::l3_ignoring_priority_tag(frame).map_err(Verdict::Continue)
    }

    #[inline(always)]
    fn decide_ip<V: Route, P: ParsePath, S: VerdictSink>(
        frame: &impl Frame,
        tables: &impl Tables,
        sink: &S,
    ) -> Result<S::Output, Reason> {
        if !V::is_shared_at_all(tables.config()) {
            return Err(Reason::Ipv6);
        }
        let ip = V::parse(frame)?;
        if !V::is_shared(ip.destination, tables) {
            // If the uplink allows routes to loopback addresses, the host's stack would accept the packet.
            return if V::is_loopback(ip.destination) {
                Ok(sink.apply(Verdict::Drop { slot: HOST_SLOT, reason: Reason::Destination }))
            } else {
                Err(Reason::OtherAddress)
            };
        }
        // A container accepts a shared address as a source, because other containers have it, too. So no
        // sender outside may use it; nor a mapped IPv4 address.
        if V::is_local(ip.source, tables) || V::is_v4_mapped(ip.source) {
            return Ok(sink.apply(Verdict::Drop { slot: HOST_SLOT, reason: Reason::SourceAddress }));
        }
        let l4 = P::parse_l4(frame, tables, &ip, HOST_SLOT)?;
        // Also for the host's own datagrams: their subsequent fragments must not match the entry of an
        // earlier datagram with the same identification.
        frag_cache::insert(tables, &ip, &l4, HOST_SLOT);
        let info = &l4.info;
        if matches!(info.kind, L4Kind::IcmpErrorPorts | L4Kind::IcmpErrorEcho)
            && (!V::is_shared(info.inner_source, tables) || V::is_local(info.inner_destination, tables))
        {
            // The inner packet cannot have left this machine.
            return Err(Reason::Quoted);
        }
        let (owner, rewrite) = match info.kind {
            L4Kind::Ports => (container_of_port(tables, info.ports.destination)?, IcmpIdRewrite::NONE),
            L4Kind::IcmpErrorPorts => (container_of_port(tables, info.ports.source)?, IcmpIdRewrite::NONE),
            L4Kind::EchoReply => container_of_id(tables, info, ip.source)?,
            L4Kind::IcmpErrorEcho => container_of_id(tables, info, info.inner_destination)?,
            L4Kind::EchoRequest => return Err(Reason::Icmp),
        };
        let has_ports = matches!(info.kind, L4Kind::Ports | L4Kind::IcmpErrorPorts);
        if has_ports && host_connections::is_hosts(tables, &ip, &l4, owner, Direction::In) {
            host_connections::note_abort(frame, tables, &ip, &l4);
            return Err(Reason::HostConnection);
        }
        let owner = owner.of_owner();
        // A redirect would make a frame that only a promiscuous interface receives one for the container.
        if !frame.is_packet_host() {
            return Err(Reason::OtherStation);
        }
        let verdict = Verdict::ToContainer { origin: Origin::Outside, owner, by_loopback: false, rewrite };
        Ok(sink.deliver(verdict, WireSize::counted(frame, &l4)))
    }
}

/// Returns the container that owns the ICMP identifier towards `peer`, and the rewrite to the container's own
/// identifier.
#[inline(always)]
fn container_of_id<V: IpVersion>(
    tables: &impl Tables,
    info: &L4Info<V>,
    peer: V::Address,
) -> Result<(PortEntry, IcmpIdRewrite), Reason> {
    let (owner, id) = icmp_id::lookup_owner::<V>(tables, peer, info.id).ok_or(Reason::Icmp)?;
    // A subsequent fragment contains no identifier.
    let to = if info.has_message { id } else { info.id };
    Ok((owner, IcmpIdRewrite::new(info.message, info.id, to)))
}

/// Returns the container that owns a port.
#[inline(always)]
fn container_of_port(tables: &impl Tables, port: u16) -> Result<PortEntry, Reason> {
    let owner = tables.port(port);
    if owner.is_host() { Err(Reason::HostPort) } else { Ok(owner) }
}
