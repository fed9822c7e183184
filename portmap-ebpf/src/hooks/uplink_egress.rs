//! Egress of the host's interfaces that lead outside: the hook remembers the host's connections from ports of
//! containers, and reserves the identifiers of the host's echo requests, so that no container receives the
//! replies. At the uplinks it assigns the host's packets to a flow of the qdisc. It drops nothing.
//!
//! A packet of the host's is one that its stack has sent or forwarded. A container's packets have entered by a
//! host veth, which is in `skb->skb_iif`, a field that no sender can set.

use portmap_common::{
    queue::{CONTROL_FLOW, HOST_FLOW, is_in_flow},
    reason::Reason,
    slot::{HOST_SLOT, slot_of_veth},
};

use super::hook::{Hook, VerdictSink};
use crate::{
    frame::Frame,
    host_connections, icmp_id,
    packet::{
        IpVersion, ParsePath,
        ethernet::{self, L3},
        l4::L4Kind,
    },
    route::Route,
    tables::Tables,
    verdict::Verdict,
};

/// The hook.
#[derive(Clone, Copy, Debug)]
pub struct UplinkEgress;

impl Hook for UplinkEgress {
    #[inline(always)]
    fn classify_frame(frame: &impl Frame, tables: &impl Tables) -> Result<L3, Verdict> {
        if slot_of_veth(frame.ingress_ifindex()) != HOST_SLOT {
            return Err(assign_flow(frame, tables, HOST_FLOW));
        }
        ethernet::l3(frame)
            .map_err(|other| assign_flow(frame, tables, control_if(frame, other == Reason::Arp)))
    }

    #[inline(always)]
    fn decide_ip<V: Route, P: ParsePath, S: VerdictSink>(
        frame: &impl Frame,
        tables: &impl Tables,
        sink: &S,
    ) -> Result<S::Output, Reason> {
        // A packet that cannot be parsed belongs to no connection.
        let _tracked = track::<V, P>(frame, tables);
        let is_icmp = V::parse(frame).is_ok_and(|ip| ip.protocol == V::ICMP);
        Ok(sink.apply(assign_flow(frame, tables, control_if(frame, is_icmp))))
    }
}

/// Returns the flow of the host's control packets, or that of all others.
#[inline(always)]
fn control_if(frame: &impl Frame, is_control: bool) -> u16 {
    // What the host forwards is not its own.
    if is_control && frame.ingress_ifindex() == 0 { CONTROL_FLOW } else { HOST_FLOW }
}

/// Returns the verdict that assigns a frame to a flow. A frame that has a flow, as a container's has, keeps
/// it; if the interface's qdisc is not portmap's, there are no flows.
#[inline(always)]
fn assign_flow(frame: &impl Frame, tables: &impl Tables, flow: u16) -> Verdict {
    if !tables.config().has_flows(frame.ifindex()) || is_in_flow(frame.priority()) {
        Verdict::AlreadyHandled
    } else {
        Verdict::AssignFlow(flow)
    }
}

/// Records what containers must not receive: the replies to a packet that the host sends from a shared address.
#[inline(always)]
fn track<V: IpVersion, P: ParsePath>(frame: &impl Frame, tables: &impl Tables) -> Result<(), Reason> {
    let ip = V::parse(frame)?;
    if !V::is_shared_at_all(tables.config()) || !V::is_shared(ip.source, tables) {
        return Ok(());
    }
    let l4 = P::parse_l4(frame, tables, &ip, HOST_SLOT)?;
    let info = &l4.info;
    if info.kind == L4Kind::Ports {
        let entry = tables.port(info.ports.source);
        if !entry.is_host() {
            host_connections::track(frame, tables, &ip, &l4, entry);
        }
    }
    if info.kind == L4Kind::EchoRequest && info.has_message {
        icmp_id::reserve_for_host::<V>(tables, ip.destination, info.id);
    }
    Ok(())
}
