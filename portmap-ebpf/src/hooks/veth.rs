//! Ingress of a host veth: every packet that a container sends arrives here.
//!
//! This is the only hook that holds a container to its ports and addresses. It relies on nothing inside the
//! container.

use portmap_common::{
    reason::Reason,
    slot::{loopback_mac, slot_of_veth},
    tables::Mac,
};

use super::hook::{Hook, VerdictSink};
use crate::{
    frame::Frame,
    host_connections::{self, Direction},
    icmp_id, neighbours,
    packet::{
        IpVersion, ParsePath,
        ethernet::{self, L3},
        frag_cache,
        l4::L4Kind,
    },
    policer, reach,
    route::{self, Exit, Route},
    segments::WireSize,
    tables::Tables,
    verdict::{IcmpIdRewrite, Origin, Verdict},
};

/// The hook.
#[derive(Clone, Copy, Debug)]
pub struct Veth;

impl Hook for Veth {
    #[inline(always)]
    fn classify_frame(frame: &impl Frame, tables: &impl Tables) -> Result<L3, Verdict> {
        let slot = slot_of_veth(frame.ifindex());
        check_ethernet(frame, tables, slot).map_err(|reason| Verdict::Drop { slot, reason })
    }

    #[inline(always)]
    fn stop(frame: &impl Frame, reason: Reason) -> Verdict {
        Verdict::Drop { slot: slot_of_veth(frame.ifindex()), reason }
    }

    #[inline(always)]
    fn decide_ip<V: Route, P: ParsePath, S: VerdictSink>(
        frame: &impl Frame,
        tables: &impl Tables,
        sink: &S,
    ) -> Result<S::Output, Reason> {
        #[expect(clippy::cast_possible_truncation, reason = "a slot has sixteen bits")]
        let slot = P::forget(frame, u32::from(slot_of_veth(frame.ifindex()))) as u16;
        if !P::linearize(frame) {
            return Err(Reason::Malformed);
        }
        let config = tables.config();
        if !V::is_shared_at_all(config) {
            return Err(Reason::Ipv6);
        }
        let ip = V::parse(frame)?;
        let is_local = V::is_local(ip.destination, tables);
        if !is_allowed_source::<V>(tables, is_local, ip.source) {
            return Err(Reason::SourceAddress);
        }
        let l4 = P::parse_l4(frame, tables, &ip, slot)?;
        let wire_size = WireSize::of(frame, &l4)?;
        // The verifier must not take each way to compute them for a path of its own.
        let wire_size = WireSize {
            max_frame_len: P::forget(frame, wire_size.max_frame_len),
            packets: P::forget(frame, wire_size.packets),
            bytes: P::forget(frame, wire_size.bytes),
        };
        let ip = P::reload_ip_header(frame, ip).ok_or(Reason::Malformed)?;
        let is_own = |port| tables.port(port).ifindex == frame.ifindex();
        let info = &l4.info;
        let permission = match info.kind {
            L4Kind::Ports if is_own(info.ports.source) => Ok(()),
            L4Kind::Ports => Err(Reason::SourcePort),
            L4Kind::EchoRequest if !is_local => Ok(()),
            L4Kind::EchoRequest | L4Kind::EchoReply => Err(Reason::Icmp),
            // It would describe the path to the address that all containers share.
            L4Kind::IcmpErrorPorts | L4Kind::IcmpErrorEcho if info.by_router => Err(Reason::Icmp),
            // The container must be able to have received the inner packet, and the error must go to that
            // packet's source.
            L4Kind::IcmpErrorPorts
                if is_allowed_source::<V>(tables, is_local, info.inner_destination)
                    && info.inner_source == ip.destination
                    && is_own(info.ports.destination) =>
            {
                Ok(())
            }
            L4Kind::IcmpErrorPorts | L4Kind::IcmpErrorEcho => Err(Reason::Quoted),
        };
        permission?;
        // The packet that leaves the machine must be the one that was parsed here, whether it leaves now or
        // after the host's stack or another container has forwarded it.
        if !frame.has_valid_offloads(l4.offloadable_transport(), l4.is_sctp()) {
            return Err(Reason::Malformed);
        }
        if !is_local {
            let known = neighbours::known::<V>(tables, ip.destination, slot);
            let opens = || reach::opens_connection(frame, &ip, &l4);
            let exit = route::exit(tables, &ip, &l4, known, opens)?;
            // A redirect bypasses the MTU check of the kernel's output path, and not every driver has one.
            if !frame.mtu_allows(exit.ifindex, wire_size.max_frame_len) {
                return Err(Reason::TooBig);
            }
            if matches!(info.kind, L4Kind::Ports | L4Kind::IcmpErrorPorts) {
                let port =
                    if info.kind == L4Kind::Ports { info.ports.source } else { info.ports.destination };
                if host_connections::is_hosts(tables, &ip, &l4, tables.port(port), Direction::Out) {
                    return Err(Reason::HostConnection);
                }
            }
            if !policer::conforms(tables, wire_size.bytes, slot, false) {
                return Err(Reason::Rate);
            }
            if !neighbours::conforms::<V>(tables, ip.destination, slot, known, &exit) {
                return Err(Reason::Neighbours);
            }
            // A subsequent fragment of an echo request contains no identifier; the first one's is rewritten.
            let rewrite = if info.kind == L4Kind::EchoRequest && info.has_message {
                let on_wire = icmp_id::allocate_id::<V>(tables, ip.destination, info.id, slot)?;
                IcmpIdRewrite::new(info.message, info.id, on_wire)
            } else {
                IcmpIdRewrite::NONE
            };
            frag_cache::insert(tables, &ip, &l4, slot);
            let Exit { ifindex, next_hop, .. } = exit;
            return Ok(sink.deliver(Verdict::ToOutside { slot, ifindex, next_hop, rewrite }, wire_size));
        }
        // An error goes to the sender of its inner packet.
        let (own, target) = if info.kind == L4Kind::Ports {
            (info.ports.source, info.ports.destination)
        } else {
            (info.ports.destination, info.ports.source)
        };
        let owner = tables.port(target);
        if reach::is_by_loopback(&ip) && (reach::is_private(owner) || reach::is_private(tables.port(own))) {
            return Err(Reason::Loopback);
        }
        if owner.is_host() {
            reach::check_host_access(frame, tables, &ip, &l4, slot)?;
        }
        if !policer::conforms(tables, wire_size.bytes, slot, true) {
            return Err(Reason::Rate);
        }
        frag_cache::insert(tables, &ip, &l4, slot);
        if owner.is_host() {
            return Ok(sink.deliver(Verdict::ToHost(slot), wire_size));
        }
        let owner = owner.of_owner();
        let by_loopback = V::is_loopback_only(ip.source) || V::is_loopback_only(ip.destination);
        let origin = Origin::Container(slot);
        let verdict = Verdict::ToContainer { origin, owner, by_loopback, rewrite: IcmpIdRewrite::NONE };
        Ok(sink.deliver(verdict, wire_size))
    }
}

/// Returns the L3 protocol of a frame with valid MAC addresses. The error is the reason to drop the frame.
#[inline(always)]
fn check_ethernet(frame: &impl Frame, tables: &impl Tables, slot: u16) -> Result<L3, Reason> {
    let l3 = ethernet::l3(frame)?;
    let source = ethernet::source(frame).ok_or(Reason::Malformed)?;
    // A packet from the container's loopback device still has that device's address.
    if source != tables.config().mac && source != Mac::new(loopback_mac(slot)) {
        return Err(Reason::SourceMac);
    }
    if ethernet::destination(frame).is_none_or(ethernet::is_group) {
        return Err(Reason::Destination);
    }
    Ok(l3)
}

/// Returns whether a container may use an address as the source of a packet: a shared address, or, for a
/// packet that stays on this machine, a loopback address.
#[inline(always)]
fn is_allowed_source<V: IpVersion>(tables: &impl Tables, is_local: bool, address: V::Address) -> bool {
    V::is_shared(address, tables) || (is_local && V::is_loopback(address))
}
