//! Egress of a container's loopback device: packets to ports of other owners leave by `eth0`, unless they use
//! a loopback address that the sender or the owner keeps private. All other packets stay inside.
//!
//! The container's stack takes the host's addresses for its own, so it sends packets to them, as to loopback
//! addresses, through its loopback device, regardless of the port's owner. This hook is not a security
//! boundary: the hook at the host veth checks every packet that leaves.

use portmap_common::{
    flow_state::SCOPE_LOOPBACK, reason::Reason, slot::slot_of_loopback, tables::LOOPBACK_PRIVATE,
};

use super::hook::{Hook, VerdictSink};
use crate::{
    frame::Frame,
    packet::{
        IpHeader, ParsePath, ParsedL4,
        ethernet::{self, L3},
        frag_cache,
        l4::L4Kind,
    },
    reach,
    route::Route,
    segments::WireSize,
    tables::Tables,
    verdict::Verdict,
};

/// The hook.
#[derive(Clone, Copy, Debug)]
pub struct ContainerLo;

impl Hook for ContainerLo {
    #[inline(always)]
    fn classify_frame(frame: &impl Frame, _tables: &impl Tables) -> Result<L3, Verdict> {
        ethernet::l3(frame).map_err(|_other| Verdict::DeliverLocal(slot_of(frame)))
    }

    #[inline(always)]
    fn stop(frame: &impl Frame, _reason: Reason) -> Verdict {
        Verdict::DeliverLocal(slot_of(frame))
    }

    #[inline(always)]
    fn decide_ip<V: Route, P: ParsePath, S: VerdictSink>(
        frame: &impl Frame,
        tables: &impl Tables,
        sink: &S,
    ) -> Result<S::Output, Reason> {
        let slot = slot_of(frame);
        let ip = V::parse(frame)?;
        let l4 = P::parse_l4(frame, tables, &ip, slot | SCOPE_LOOPBACK)?;
        if has_other_owner(tables, &ip, &l4, slot) == Some(true) {
            let eth0 = tables.endpoint(slot).eth0_ifindex;
            if eth0 != 0 {
                return Ok(sink.apply(Verdict::ToEth0(eth0)));
            }
        }
        Ok(sink.deliver(Verdict::DeliverLocal(slot), WireSize::counted(frame, &l4)))
    }
}

/// Returns the container's slot. If the container has changed its loopback device's address it is 0, and no
/// packet leaves.
#[inline(always)]
fn slot_of(frame: &impl Frame) -> u16 {
    ethernet::source(frame).and_then(|mac| slot_of_loopback(mac.octets())).unwrap_or_default()
}

/// Returns whether the destination port has another owner than the container in `slot`; `None` if the packet
/// has no destination port.
#[inline(always)]
fn has_other_owner<V: Route>(
    tables: &impl Tables,
    ip: &IpHeader<V>,
    l4: &ParsedL4<V>,
    slot: u16,
) -> Option<bool> {
    if !V::is_shared_at_all(tables.config()) || !V::is_local(ip.destination, tables) {
        return None;
    }
    frag_cache::insert(tables, ip, l4, slot | SCOPE_LOOPBACK);
    let info = &l4.info;
    let port = match info.kind {
        L4Kind::Ports => info.ports.destination,
        L4Kind::IcmpErrorPorts if V::is_local(info.inner_source, tables) => info.ports.source,
        _ => return None,
    };
    let owner = tables.port(port);
    // If the sender or the owner keeps loopback addresses private, such an address means this namespace.
    let is_private = || reach::is_private(owner) || tables.endpoint(slot).flags & LOOPBACK_PRIVATE != 0;
    Some(owner.slot != slot && !(reach::is_by_loopback(ip) && is_private()))
}
