//! Ingress of a container's `eth0`: packets from or to `::1` continue in the container's loopback device,
//! because Linux drops them everywhere else. All other packets pass. This hook is not a security boundary,
//! and it counts nothing.

use portmap_common::reason::Reason;

use super::hook::{Hook, VerdictSink};
use crate::{
    frame::Frame,
    packet::{
        ParsePath,
        ethernet::{self, L3},
    },
    route::Route,
    tables::Tables,
    verdict::Verdict,
};

/// The hook.
#[derive(Clone, Copy, Debug)]
pub struct ContainerEth0;

impl Hook for ContainerEth0 {
    #[inline(always)]
    fn classify_frame(frame: &impl Frame, _tables: &impl Tables) -> Result<L3, Verdict> {
        match ethernet::l3(frame) {
            Ok(L3::V6) => Ok(L3::V6),
            Ok(L3::V4) | Err(_) => Err(Verdict::AlreadyHandled),
        }
    }

    #[inline(always)]
    fn decide_ip<V: Route, P: ParsePath, S: VerdictSink>(
        frame: &impl Frame,
        _tables: &impl Tables,
        sink: &S,
    ) -> Result<S::Output, Reason> {
        Ok(match V::parse(frame) {
            Ok(ip) if V::is_loopback_only(ip.source) || V::is_loopback_only(ip.destination) => {
                sink.apply(Verdict::ToLoopback)
            }
            _ => sink.apply(Verdict::AlreadyHandled),
        })
    }
}
