//! The rows of the specification (`docs/datapath.md`), hook by hook, in its order and in its words.
//!
//! A row has a text and a function that returns the verdict if the row matches.

use std::net::IpAddr;

use portmap_common::{
    hook_point::HookPoint,
    marks::HANDLED_MARK,
    reason::Reason,
    slot::{HOST_SLOT, loopback_mac},
};
use portmap_ebpf::{
    Verdict,
    verdict::{IcmpIdRewrite, NextHop, Origin},
};

use crate::{
    situation::{Situation, TCP, Way},
    spec_parser::{Content, InnerContent, InnerPacket},
    world,
};

/// One row.
pub(crate) struct Row {
    pub(crate) packet: &'static str,
    verdict: fn(&Situation<'_>) -> Option<Verdict>,
}

const fn row(packet: &'static str, verdict: fn(&Situation<'_>) -> Option<Verdict>) -> Row {
    Row { packet, verdict }
}

/// Returns the verdict on a packet, and the index of the matching row.
pub(crate) fn decide(situation: &Situation<'_>) -> (usize, Verdict) {
    let mut rows = rows(situation.case.hook).iter().enumerate();
    rows.find_map(|(number, row)| (row.verdict)(situation).map(|verdict| (number, verdict)))
        .expect("the last row matches every packet")
}

/// Returns the table of a hook.
pub(crate) const fn rows(hook: HookPoint) -> &'static [Row] {
    match hook {
        HookPoint::UplinkIngress => UPLINK,
        HookPoint::VethIngress(_) => VETH,
        HookPoint::HostLoIngress => HOST_LO,
        HookPoint::ContainerLoEgress => CONTAINER_LO,
        HookPoint::UplinkEgress => UPLINK_EGRESS,
        HookPoint::ContainerEth0Ingress => CONTAINER_ETH0,
    }
}

const UPLINK: &[Row] = &[
    row("parse error (1-4)", |s| s.packet.error_1_to_4().map(Verdict::Continue)),
    row("to a loopback address", |s| {
        s.packet.destination.is_loopback().then(|| drop_from_outside(Reason::Destination))
    }),
    row("not to a shared address", |s| {
        (!s.world.is_shared(s.packet.destination)).then_some(Verdict::Continue(Reason::OtherAddress))
    }),
    row("from a shared address, a loopback address or a mapped IPv4 address", |s| {
        let is_v4_mapped = matches!(s.packet.source, IpAddr::V6(source) if source.to_ipv4_mapped().is_some());
        (s.world.is_local(s.packet.source) || is_v4_mapped).then(|| drop_from_outside(Reason::SourceAddress))
    }),
    row("parse error (5, 6)", |s| s.packet.error_content.map(Verdict::Continue)),
    row("the destination port is the host's", |s| {
        let Content::Ports { destination, .. } = s.packet.content else { return None };
        s.is_hosts(destination).then_some(Verdict::Continue(Reason::HostPort))
    }),
    row("an echo request", |s| {
        matches!(s.packet.content, Content::EchoRequest { .. }).then_some(Verdict::Continue(Reason::Icmp))
    }),
    row("an echo reply whose request no container has sent", |s| {
        let Content::EchoReply { id, .. } = s.packet.content else { return None };
        s.owner_of_id(s.packet.source, id).is_none().then_some(Verdict::Continue(Reason::Icmp))
    }),
    row("an error: the inner source is not a shared address", |s| {
        let inner = s.packet.inner()?;
        (!s.world.is_shared(inner.source)).then_some(Verdict::Continue(Reason::Quoted))
    }),
    row("an error: the inner destination is local", |s| {
        let inner = s.packet.inner()?;
        s.world.is_local(inner.destination).then_some(Verdict::Continue(Reason::Quoted))
    }),
    row("an error: the inner source port is the host's", |s| {
        let (source, _) = s.packet.inner()?.ports()?;
        s.is_hosts(source).then_some(Verdict::Continue(Reason::HostPort))
    }),
    row("an error: the inner packet is an echo request that no container has sent", |s| {
        let inner = s.packet.inner()?;
        let InnerContent::EchoRequest { id, .. } = inner.content else { return None };
        s.owner_of_id(inner.destination, id).is_none().then_some(Verdict::Continue(Reason::Icmp))
    }),
    row("of a connection of the host's", |s| {
        s.is_of_host_connection(true).then_some(Verdict::Continue(Reason::HostConnection))
    }),
    row("the frame is to another MAC address", |s| {
        (s.packet.to_mac != s.world.config.mac.octets()).then_some(Verdict::Continue(Reason::OtherStation))
    }),
    row("all others", |s| {
        let (slot, rewrite) = match s.packet.content {
            Content::EchoReply { id, at } => s.reply_to(s.packet.source, id, at),
            Content::Error { inner: InnerPacket { destination, content, .. }, .. } => match content {
                InnerContent::EchoRequest { id, at } => s.reply_to(destination, id, Some(at)),
                InnerContent::Ports { source, .. } => (s.world.owner(source), IcmpIdRewrite::NONE),
            },
            _ => (s.owner_of_target()?, IcmpIdRewrite::NONE),
        };
        let (origin, owner) = (Origin::Outside, s.world.entry(slot));
        Some(Verdict::ToContainer { origin, owner, by_loopback: false, rewrite })
    }),
];

const VETH: &[Row] = &[
    row("parse error (1, 2)", |s| s.packet.error_frame.map(|reason| s.drop(reason))),
    row("the source MAC address is neither the host's nor that of the sender's loopback device", |s| {
        let allowed = [s.world.config.mac.octets(), loopback_mac(s.sender())];
        (!allowed.contains(&s.packet.from_mac)).then(|| s.drop(Reason::SourceMac))
    }),
    row("to a multicast or broadcast MAC address", |s| {
        (s.packet.to_mac[0] & 1 != 0).then(|| s.drop(Reason::Destination))
    }),
    row("parse error (3, 4)", |s| s.packet.error_header.map(|reason| s.drop(reason))),
    row(
        "the source is not a shared address, nor a loopback address of a packet to a local destination",
        |s| {
            let source = s.packet.source;
            let allowed = s.world.is_shared(source) || (s.is_to_local() && source.is_loopback());
            (!allowed).then(|| s.drop(Reason::SourceAddress))
        },
    ),
    row("parse error (5, 6)", |s| s.packet.error_content.map(|reason| s.drop(reason))),
    row("GSO frame that cannot be segmented, or has too many segments", |s| {
        s.gso_error().map(|reason| s.drop(reason))
    }),
    row("the source port is not the sender's", |s| {
        let Content::Ports { source, .. } = s.packet.content else { return None };
        (!s.is_senders(source)).then(|| s.drop(Reason::SourcePort))
    }),
    row("an echo reply", |s| {
        matches!(s.packet.content, Content::EchoReply { .. }).then(|| s.drop(Reason::Icmp))
    }),
    row("an echo request to a local address", |s| {
        let is_request = matches!(s.packet.content, Content::EchoRequest { .. });
        (is_request && s.is_to_local()).then(|| s.drop(Reason::Icmp))
    }),
    row("an error that only routers send", |s| {
        let Content::Error { kind, code, .. } = s.packet.content else { return None };
        let is_routers = match s.packet.source {
            IpAddr::V4(_) => (kind, code) == (3, 4) || (kind == 11 && code != 1),
            IpAddr::V6(_) => kind == 2 || (kind == 3 && code != 1),
        };
        is_routers.then(|| s.drop(Reason::Icmp))
    }),
    row(
        "an error: the inner destination is not a shared address, or a loopback one to a local destination",
        |s| {
            let destination = s.packet.inner()?.destination;
            let allowed = s.world.is_shared(destination) || (s.is_to_local() && destination.is_loopback());
            (!allowed).then(|| s.drop(Reason::Quoted))
        },
    ),
    row("an error: the inner source is not the error's destination", |s| {
        (s.packet.inner()?.source != s.packet.destination).then(|| s.drop(Reason::Quoted))
    }),
    row("an error: the inner packet has no ports", |s| {
        s.packet.inner()?.ports().is_none().then(|| s.drop(Reason::Quoted))
    }),
    row("an error: the inner destination port is not the sender's", |s| {
        let (_, destination) = s.packet.inner()?.ports()?;
        (!s.is_senders(destination)).then(|| s.drop(Reason::Quoted))
    }),
    row("local, by a loopback address, and the sender or the port's owner is private", |s| {
        let is_private = s.world.is_private(s.sender()) || s.world.is_private(s.owner_of_target()?);
        (s.is_to_local() && s.is_by_loopback() && is_private).then(|| s.drop(Reason::Loopback))
    }),
    row("local, TCP, and the destination port is the daemon's listener", |s| {
        let (Content::Ports { destination, .. }, TCP) = (s.packet.content, s.packet.ports_header?.protocol)
        else {
            return None;
        };
        let is_listener = s.is_hosts(destination) && s.world.is_listener(s.packet.destination, destination);
        (s.is_to_local() && is_listener).then(|| s.drop(Reason::Listener))
    }),
    row("local, the destination port is the host's and not open, and the packet is not a reply", |s| {
        let Content::Ports { destination, .. } = s.packet.content else { return None };
        let is_refused = s.is_hosts(destination) && !s.world.is_open(destination) && !s.is_reply_to_host()?;
        (s.is_to_local() && is_refused).then(|| s.drop(Reason::HostAccess))
    }),
    row("local, and exceeds the container's rate limit", |s| {
        (s.is_to_local() && s.exceeds_limit()).then(|| s.drop(Reason::Rate))
    }),
    row("local, and the port is the host's", |s| {
        (s.is_to_local() && s.owner_of_target()? == HOST_SLOT).then(|| Verdict::ToHost(s.sender()))
    }),
    row("local, and the port is a container's", |s| {
        let (origin, owner) = (Origin::Container(s.sender()), s.world.entry(s.owner_of_target()?));
        let by_loopback = s.is_by_loopback6();
        s.is_to_local().then_some(Verdict::ToContainer {
            origin,
            owner,
            by_loopback,
            rewrite: IcmpIdRewrite::NONE,
        })
    }),
    row("the destination is not a unicast address", |s| {
        s.world.is_not_unicast(s.packet.destination).then(|| s.drop(Reason::Destination))
    }),
    row("there is no route", |s| s.way().is_none().then(|| s.drop(Reason::NoRoute))),
    row("exceeds the MTU of the route's interface", |s| s.is_too_big().then(|| s.drop(Reason::TooBig))),
    row("of a connection of the host's", |s| {
        s.is_of_host_connection(false).then(|| s.drop(Reason::HostConnection))
    }),
    row("exceeds the container's rate limit", |s| s.exceeds_limit().then(|| s.drop(Reason::Rate))),
    row("to a new neighbour, and the container has used too many", |s| {
        let has_enough = s.world.neighbour_limited.contains(&s.sender());
        (has_enough && s.is_for_new_neighbour()).then(|| s.drop(Reason::Neighbours))
    }),
    row("an echo request, and all candidate identifiers are taken", |s| {
        // A subsequent fragment contains no identifier.
        let Content::EchoRequest { id, at: Some(_) } = s.packet.content else { return None };
        s.allocated_id(id).is_none().then(|| s.drop(Reason::EchoBusy))
    }),
    row("all others", |s| {
        let next_hop = match s.way()? {
            Way::Known(IpAddr::V4(address)) => NextHop::v4(address.octets()),
            Way::Known(IpAddr::V6(address)) => NextHop::v6(address.octets()),
            Way::Asked => NextHop::KERNEL,
        };
        let rewrite = match s.packet.content {
            Content::EchoRequest { id, at: Some(at) } => IcmpIdRewrite::new(at, id, s.allocated_id(id)?),
            _ => IcmpIdRewrite::NONE,
        };
        Some(Verdict::ToOutside { slot: s.sender(), ifindex: world::UPLINK, next_hop, rewrite })
    }),
];

const HOST_LO: &[Row] = &[
    row("redirected here by the program at the host veth", |s| {
        (s.case.mark == HANDLED_MARK).then_some(Verdict::AlreadyHandled)
    }),
    row("parse error (1-4)", |s| s.packet.error_1_to_4().map(Verdict::Continue)),
    row("not to a local address", |s| (!s.is_to_local()).then_some(Verdict::Continue(Reason::OtherAddress))),
    row("parse error (5, 6)", |s| s.packet.error_content.map(Verdict::Continue)),
    row("the destination port is the host's", |s| {
        let Content::Ports { destination, .. } = s.packet.content else { return None };
        s.is_hosts(destination).then_some(Verdict::Continue(Reason::HostPort))
    }),
    row("an echo message", |s| s.packet.is_echo().then_some(Verdict::Continue(Reason::Icmp))),
    row("an error: the inner source is not a local address", |s| {
        let inner = s.packet.inner()?;
        (!s.world.is_local(inner.source)).then_some(Verdict::Continue(Reason::Quoted))
    }),
    row("an error: the inner packet has no ports", |s| {
        s.packet.inner()?.ports().is_none().then_some(Verdict::Continue(Reason::Quoted))
    }),
    row("an error: the inner source port is the host's", |s| {
        let (source, _) = s.packet.inner()?.ports()?;
        s.is_hosts(source).then_some(Verdict::Continue(Reason::HostPort))
    }),
    row("by a loopback address, and the port's owner is private", |s| {
        let is_private = s.world.is_private(s.owner_of_target()?);
        (s.is_by_loopback() && is_private).then_some(Verdict::Continue(Reason::Loopback))
    }),
    row("all others", |s| {
        let (origin, owner) = (Origin::Host, s.world.entry(s.owner_of_target()?));
        let by_loopback = s.is_by_loopback6();
        Some(Verdict::ToContainer { origin, owner, by_loopback, rewrite: IcmpIdRewrite::NONE })
    }),
];

const CONTAINER_LO: &[Row] = &[
    row("from a loopback device of no container", |s| {
        s.world.eth0(s.sender()).is_none().then(|| s.deliver_local())
    }),
    row("parse error (1-6)", |s| {
        s.packet.error_1_to_4().or(s.packet.error_content).map(|_reason| s.deliver_local())
    }),
    row("an echo message", |s| s.packet.is_echo().then(|| s.deliver_local())),
    row("not to a local address", |s| (!s.is_to_local()).then(|| s.deliver_local())),
    row("an error: the inner source is not a local address", |s| {
        let inner = s.packet.inner()?;
        (!s.world.is_local(inner.source)).then(|| s.deliver_local())
    }),
    row("an error: the inner packet has no ports", |s| {
        s.packet.inner()?.ports().is_none().then(|| s.deliver_local())
    }),
    row("the port is the container's", |s| (s.owner_of_target()? == s.sender()).then(|| s.deliver_local())),
    row("by a loopback address, and the sender or the port's owner is private", |s| {
        let is_private = s.world.is_private(s.sender()) || s.world.is_private(s.owner_of_target()?);
        (s.is_by_loopback() && is_private).then(|| s.deliver_local())
    }),
    row("all others", |s| s.world.eth0(s.sender()).map(Verdict::ToEth0)),
];

const UPLINK_EGRESS: &[Row] = &[
    row("the uplink's qdisc is not portmap's", |s| {
        (s.world.config.uplink_flows == 0).then_some(Verdict::AlreadyHandled)
    }),
    row("in a flow of that qdisc already", |s| {
        (s.case.priority >> 16 == 0x504d).then_some(Verdict::AlreadyHandled)
    }),
    row("ARP or ICMP of the host's own", |s| {
        (s.case.ingress == 0 && s.packet.is_control()).then_some(Verdict::AssignFlow(2))
    }),
    row("all others", |_| Some(Verdict::AssignFlow(1))),
];

const CONTAINER_ETH0: &[Row] = &[
    row("to or from ::1", |s| s.is_by_loopback6().then_some(Verdict::ToLoopback)),
    row("all others", |_| Some(Verdict::AlreadyHandled)),
];

const fn drop_from_outside(reason: Reason) -> Verdict {
    Verdict::Drop { slot: HOST_SLOT, reason }
}
