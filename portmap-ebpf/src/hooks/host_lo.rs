//! Ingress of the host's loopback device: what the host sends to a container's port goes there; all else stays.

use portmap_common::{reason::Reason, slot::HOST_SLOT};

use super::{Applied, HANDLED_MARK, Hook, VerdictSink};
use crate::{
    frame::Frame,
    packet::{ParsePath, Version, content::Kind, ethernet},
    reach,
    tables::Tables,
    verdict::{IcmpIdRewrite, Origin, Verdict},
};

/// The hook.
#[derive(Clone, Copy, Debug)]
pub struct HostLo;

impl Hook for HostLo {
    #[inline(always)]
    fn open(frame: &impl Frame, _tables: &impl Tables) -> Result<ethernet::Kind, Verdict> {
        // A container's packet for the host passes here on its way from the hook at the host veth.
        if frame.mark() == HANDLED_MARK {
            return Err(Verdict::Decided);
        }
        ethernet::kind(frame).map_err(Verdict::Continue)
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
        let is_local = |address| address == shared || V::is_loopback(address);
        if !is_local(ip.destination) {
            return Err(stop(Reason::OtherAddress));
        }
        let reading = D::read(frame, tables, &ip, HOST_SLOT).map_err(stop)?;
        // Also for what stays, see the uplink's hook.
        reading.remember(tables, &ip, HOST_SLOT);
        let content = &reading.content;
        let target = match content.kind {
            Kind::Ports => content.ports.destination,
            Kind::IcmpErrorPorts if is_local(content.inner_source) => content.ports.source,
            Kind::IcmpErrorPorts | Kind::IcmpErrorEcho => return Err(stop(Reason::Quoted)),
            Kind::EchoRequest | Kind::EchoReply => return Err(stop(Reason::Icmp)),
        };
        let owner = tables.port(target);
        if owner.is_host() {
            return Err(stop(Reason::HostPort));
        }
        // A loopback address of the host's own, at which nobody listens: the owner's is in its own namespace.
        if reach::is_private(owner) && reach::is_by_loopback(&ip) {
            return Err(stop(Reason::Loopback));
        }
        reach::host_speaks(tables, &reading, owner.slot);
        let by_loopback = V::is_loopback_only(ip.source) || V::is_loopback_only(ip.destination);
        Ok(sink.apply(Verdict::ToContainer {
            origin: Origin::Host,
            owner,
            by_loopback,
            renumber: IcmpIdRewrite::NONE,
        }))
    }
}
