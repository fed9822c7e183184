//! Egress of the uplink: the hook reserves the identifiers of the host's own echo requests, so that no
//! container receives the replies, and assigns the host's packets to a flow of the uplink's qdisc. It drops
//! nothing.

use portmap_common::{
    queue::{CONTROL_FLOW, HOST_FLOW, is_in_flow},
    reason::Reason,
    slot::HOST_SLOT,
};

use super::hook::{Applied, Hook, VerdictSink};
use crate::{
    frame::Frame,
    icmp_id,
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
        // A packet of a container, or one that the host forwards, has entered by another interface.
        if frame.ingress_ifindex() != 0 {
            return Err(assign_flow(frame, tables, HOST_FLOW));
        }
        ethernet::l3(frame).map_err(|other| {
            assign_flow(frame, tables, if other == Reason::Arp { CONTROL_FLOW } else { HOST_FLOW })
        })
    }

    #[inline(always)]
    fn decide_ip<V: Route, P: ParsePath, S: VerdictSink>(
        frame: &impl Frame,
        tables: &impl Tables,
        sink: &S,
    ) -> Applied<S> {
        // Packets that cannot be parsed are not echo requests.
        let _reserved = reserve_icmp_id::<V, P>(frame, tables);
        let is_control = V::parse(frame).is_ok_and(|ip| ip.protocol == V::ICMP);
        Ok(sink.apply(assign_flow(frame, tables, if is_control { CONTROL_FLOW } else { HOST_FLOW })))
    }
}

/// Returns the verdict that assigns a frame to a flow. A frame that has a flow, as a container's has, keeps
/// it; if the uplink's qdisc is not portmap's, there are no flows.
#[inline(always)]
fn assign_flow(frame: &impl Frame, tables: &impl Tables, flow: u16) -> Verdict {
    if tables.config().uplink_flows == 0 || is_in_flow(frame.priority()) {
        Verdict::AlreadyHandled
    } else {
        Verdict::AssignFlow(flow)
    }
}

/// Reserves the identifier of an echo request that the host sends from the shared address.
#[inline(always)]
fn reserve_icmp_id<V: IpVersion, P: ParsePath>(
    frame: &impl Frame,
    tables: &impl Tables,
) -> Result<(), Reason> {
    let ip = V::parse(frame)?;
    if V::host_addr(tables.config()) != Some(ip.source) {
        return Ok(());
    }
    let info = P::parse_l4(frame, tables, &ip, HOST_SLOT)?.info;
    if info.kind == L4Kind::EchoRequest && info.has_message {
        icmp_id::reserve_for_host::<V>(tables, ip.destination, info.id);
    }
    Ok(())
}
