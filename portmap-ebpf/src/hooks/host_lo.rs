//! Ingress of the host's loopback device: packets from the host to a container's port go to that container.
//! All other packets stay with the host.

use portmap_common::{marks::HANDLED_MARK, reason::Reason, slot::HOST_SLOT};

use super::hook::{Hook, VerdictSink};
use crate::{
    frame::Frame,
    packet::{
        ParsePath,
        ethernet::{self, L3},
        frag_cache,
        l4::L4Kind,
    },
    reach,
    route::Route,
    segments::WireSize,
    tables::Tables,
    verdict::{IcmpIdRewrite, Origin, Verdict},
};

/// The hook.
#[derive(Clone, Copy, Debug)]
pub struct HostLo;

impl Hook for HostLo {
    #[inline(always)]
    fn classify_frame(frame: &impl Frame, _tables: &impl Tables) -> Result<L3, Verdict> {
        // The hook at a host veth has redirected a container's packet here.
        if frame.mark() == HANDLED_MARK {
            return Err(Verdict::AlreadyHandled);
        }
        ethernet::l3(frame).map_err(Verdict::Continue)
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
        if !V::is_local(ip.destination, tables) {
            return Err(Reason::OtherAddress);
        }
        let l4 = P::parse_l4(frame, tables, &ip, HOST_SLOT)?;
        // Also for packets that stay with the host, as at the uplink's hook.
        frag_cache::insert(tables, &ip, &l4, HOST_SLOT);
        let info = &l4.info;
        let port = match info.kind {
            L4Kind::Ports => info.ports.destination,
            L4Kind::IcmpErrorPorts if V::is_local(info.inner_source, tables) => info.ports.source,
            L4Kind::IcmpErrorPorts | L4Kind::IcmpErrorEcho => return Err(Reason::Quoted),
            L4Kind::EchoRequest | L4Kind::EchoReply => return Err(Reason::Icmp),
        };
        let owner = tables.port(port).of_owner();
        if owner.is_host() {
            return Err(Reason::HostPort);
        }
        // The owner's loopback addresses are in its own namespace, so this is an unused port of the host's.
        if reach::is_private(owner) && reach::is_by_loopback(&ip) {
            return Err(Reason::Loopback);
        }
        reach::track_host_flow(tables, &l4, owner.slot);
        let by_loopback = V::is_loopback_only(ip.source) || V::is_loopback_only(ip.destination);
        let verdict =
            Verdict::ToContainer { origin: Origin::Host, owner, by_loopback, rewrite: IcmpIdRewrite::NONE };
        Ok(sink.deliver(verdict, WireSize::counted(frame, &l4)))
    }
}
