//! Ingress of a container's `eth0`: packets to or from `::1` go on to its loopback device, because Linux drops them
//! everywhere else. All others pass. Nothing here is a defence, and nothing is counted.

use super::{Applied, Hook, VerdictSink};
use crate::{
    frame::Frame,
    packet::{ParsePath, Version, ethernet},
    tables::Tables,
    verdict::Verdict,
};

/// The hook.
#[derive(Clone, Copy, Debug)]
pub struct ContainerEth0;

impl Hook for ContainerEth0 {
    #[inline(always)]
    fn open(frame: &impl Frame, _tables: &impl Tables) -> Result<ethernet::Kind, Verdict> {
        match ethernet::kind(frame) {
            Ok(ethernet::Kind::V6) => Ok(ethernet::Kind::V6),
            Ok(ethernet::Kind::V4) | Err(_) => Err(Verdict::Decided),
        }
    }

    #[inline(always)]
    fn decide_ip<V: Version, D: ParsePath, F: VerdictSink>(
        frame: &impl Frame,
        _tables: &impl Tables,
        sink: &F,
    ) -> Applied<F> {
        Ok(match V::parse(frame) {
            Ok(ip) if V::is_loopback_only(ip.source) || V::is_loopback_only(ip.destination) => {
                sink.apply(Verdict::ToLoopback)
            }
            _ => sink.apply(Verdict::Decided),
        })
    }
}
