//! Egress of the uplink: the host's own echo requests are noted, so that no container's echo takes an answer from
//! the host. Nothing is decided here.

use portmap_common::{reason::Reason, slot::HOST_SLOT};

use super::{Finish, Finished, Hook};
use crate::{
    echo,
    frame::Frame,
    packet::{Depth, Version, content::Kind, ethernet},
    tables::Tables,
    verdict::Verdict,
};

/// The hook.
#[derive(Clone, Copy, Debug)]
pub struct UplinkEgress;

impl Hook for UplinkEgress {
    #[inline(always)]
    fn open(frame: &impl Frame, _tables: &impl Tables) -> Result<ethernet::Kind, Verdict> {
        // What a container sends, or what the host forwards, came in by some interface first.
        if frame.ingress_ifindex() != 0 {
            return Err(Verdict::Decided);
        }
        ethernet::kind(frame).map_err(|_other| Verdict::Decided)
    }

    #[inline(always)]
    fn decide_ip<V: Version, D: Depth, F: Finish>(
        frame: &impl Frame,
        tables: &impl Tables,
        finish: &F,
    ) -> Finished<F> {
        // Whatever cannot be read is no echo request.
        let _noted = note::<V, D>(frame, tables);
        Ok(finish.finish(Verdict::Decided))
    }
}

#[inline(always)]
fn note<V: Version, D: Depth>(frame: &impl Frame, tables: &impl Tables) -> Result<(), Reason> {
    let ip = V::parse(frame)?;
    if V::shared(tables.config()) != Some(ip.source) {
        return Ok(());
    }
    let content = D::read(frame, tables, &ip, HOST_SLOT)?.content;
    if content.kind == Kind::EchoRequest && content.has_message {
        echo::host_asks::<V>(tables, ip.destination, content.id);
    }
    Ok(())
}
