//! Egress of the uplink: the host's own echo requests are noted, so that no container's echo takes an answer from
//! the host, and what the host sends gets its place in the uplink's queue. Nothing is refused here.

use portmap_common::{
    queue::{CONTROL_FLOW, HOST_FLOW, is_in_flow},
    reason::Reason,
    slot::HOST_SLOT,
};

use super::{Applied, Hook, VerdictSink};
use crate::{
    echo,
    frame::Frame,
    packet::{ParsePath, Version, content::Kind, ethernet},
    tables::Tables,
    verdict::Verdict,
};

/// The hook.
#[derive(Clone, Copy, Debug)]
pub struct UplinkEgress;

impl Hook for UplinkEgress {
    #[inline(always)]
    fn open(frame: &impl Frame, tables: &impl Tables) -> Result<ethernet::Kind, Verdict> {
        // What a container sends, or what the host forwards, came in by some interface first.
        if frame.ingress_ifindex() != 0 {
            return Err(in_flow(frame, tables, HOST_FLOW));
        }
        ethernet::kind(frame).map_err(|other| {
            in_flow(frame, tables, if other == Reason::Arp { CONTROL_FLOW } else { HOST_FLOW })
        })
    }

    #[inline(always)]
    fn decide_ip<V: Version, D: ParsePath, F: VerdictSink>(
        frame: &impl Frame,
        tables: &impl Tables,
        sink: &F,
    ) -> Applied<F> {
        // Whatever cannot be read is no echo request.
        let _noted = note::<V, D>(frame, tables);
        let is_control = V::parse(frame).is_ok_and(|ip| ip.protocol == V::ICMP);
        Ok(sink.apply(in_flow(frame, tables, if is_control { CONTROL_FLOW } else { HOST_FLOW })))
    }
}

/// Goes on in a flow, unless the frame has one, as a container's has, or the uplink's queue is not ours.
#[inline(always)]
fn in_flow(frame: &impl Frame, tables: &impl Tables, flow: u16) -> Verdict {
    if tables.config().uplink_flows == 0 || is_in_flow(frame.priority()) {
        Verdict::Decided
    } else {
        Verdict::InFlow(flow)
    }
}

#[inline(always)]
fn note<V: Version, D: ParsePath>(frame: &impl Frame, tables: &impl Tables) -> Result<(), Reason> {
    let ip = V::parse(frame)?;
    if V::shared(tables.config()) != Some(ip.source) {
        return Ok(());
    }
    let content = D::read(frame, tables, &ip, HOST_SLOT)?.content;
    if content.kind == Kind::EchoRequest && content.has_message {
        echo::reserve_for_host::<V>(tables, ip.destination, content.id);
    }
    Ok(())
}
