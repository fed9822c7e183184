//! The table: frames, their hooks, and the expected verdicts.

use std::net::Ipv4Addr;

use portmap_common::{
    hook_point::HookPoint,
    reason::Reason,
    slot::{HOST_SLOT, loopback_mac},
    tables::{LOOPBACK_PRIVATE, PortEntry},
};
use portmap_ebpf::{
    Verdict,
    verdict::{IcmpIdRewrite, NextHop, Origin},
};
use portmap_tests::frames::{Frame, ICMP, TCP, UDP};

use crate::world::{
    A, A_PORT, ALSO_LOCAL, B, B_LOW_PORT, B_PORT, CLOSED, ETH0, FAR, FREE, GATEWAY, HOOKS, HOST, LISTENER,
    LOCAL, LONGEST, MAC, OTHER_BROADCAST, OTHER_MAC, P, P_PORT, PEER, UPLINK, VETH_OF_A, entry,
};

pub(crate) struct Fixture {
    pub(crate) name: String,
    pub(crate) hook: HookPoint,
    pub(crate) frame: Vec<u8>,
    pub(crate) verdict: Verdict,
}

pub(crate) fn from_outside(to: u16) -> Frame {
    Frame { to_mac: MAC, ..Frame::udp((PEER, 5555), (HOST, to)) }
}

pub(crate) fn on_host_lo(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> Frame {
    Frame { from_mac: [0; 6], ..Frame::udp(from, to) }
}

pub(crate) fn from_a(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> Frame {
    Frame { from_mac: MAC, to_mac: MAC, ..Frame::udp(from, to) }
}

pub(crate) fn on_lo_of_a(to: (Ipv4Addr, u16)) -> Frame {
    Frame { from_mac: loopback_mac(A), to_mac: loopback_mac(A), ..Frame::udp((HOST, A_PORT), to) }
}

/// Returns frames without valid IPv4 ports, derived from a valid packet, with their reasons.
pub(crate) fn unfit(good: &Frame) -> Vec<(String, Vec<u8>, Reason)> {
    let other = |name: &str, frame: Frame, reason| (name.to_owned(), frame.bytes(), reason);
    let mut frames = vec![
        other("802.1Q", Frame { vlan: Some(5), ..good.clone() }, Reason::Vlan),
        other("802.1ad", Frame { ether_type: 0x88a8, ..good.clone() }, Reason::Vlan),
        other("the older stacked tag", Frame { ether_type: 0x9100, ..good.clone() }, Reason::Vlan),
        other("ARP", Frame { ether_type: 0x0806, ..good.clone() }, Reason::Arp),
        other("an unknown type", Frame { ether_type: 0x88b5, ..good.clone() }, Reason::EtherType),
        other("a length in place of a type", Frame { ether_type: 60, ..good.clone() }, Reason::EtherType),
        other("an echo reply without a request", icmp(good, 0, 0), Reason::Icmp),
        other("a timestamp request", icmp(good, 13, 0), Reason::Icmp),
        other("a redirect", icmp(good, 5, 1), Reason::Icmp),
        other("an error without an inner packet", icmp(good, 3, 3), Reason::Quoted),
        other("GRE", good.clone().protocol(47), Reason::Protocol),
        other("protocol 0", good.clone().protocol(0), Reason::Protocol),
        other("protocol 255", good.clone().protocol(255), Reason::Protocol),
        other(
            "a first fragment that is too short",
            Frame { fragment: 0x2000, total_length: Some(27), ..good.clone() },
            Reason::Malformed,
        ),
        other(
            "the first fragment of an error",
            Frame { fragment: 0x2000, ..icmp(good, 3, 3) },
            Reason::Fragment,
        ),
        other("a subsequent fragment", Frame { fragment: 0x2001, ..good.clone() }, Reason::Fragment),
        other(
            "the highest offset with more fragments",
            Frame { fragment: 0x3fff, ..good.clone() },
            Reason::Fragment,
        ),
        other("the highest offset", Frame { fragment: 0x1fff, ..good.clone() }, Reason::Fragment),
        other("version 6 in IPv4", Frame { version: 6, ..good.clone() }, Reason::Malformed),
        other("version 0 in IPv4", Frame { version: 0, ..good.clone() }, Reason::Malformed),
        other("ports in the padding", Frame { total_length: Some(27), ..good.clone() }, Reason::Malformed),
        other("a packet of 20 bytes", Frame { total_length: Some(20), ..good.clone() }, Reason::Malformed),
        other("a packet of 1 byte", Frame { total_length: Some(1), ..good.clone() }, Reason::Malformed),
    ];
    let mut short_header = good.bytes();
    short_header[14] = 0x44;
    frames.push(("a header of 16 bytes".to_owned(), short_header, Reason::Malformed));
    // A test run of an IPv4 frame needs a complete IPv4 header.
    for length in 34..38 {
        frames.push((
            format!("truncated to {length} bytes"),
            good.bytes()[..length].to_vec(),
            Reason::Malformed,
        ));
    }
    let options = Frame { options: vec![1; 40], total_length: Some(68), ..good.clone() };
    for length in [42, 60, 77] {
        let bytes = options.bytes()[..length].to_vec();
        frames.push((format!("options, truncated to {length} bytes"), bytes, Reason::Malformed));
    }
    frames
}

/// Returns an ICMP message with eight bytes behind its header.
fn icmp(good: &Frame, kind: u8, code: u8) -> Frame {
    Frame { protocol: ICMP, icmp: [kind, code], ..good.clone() }
}

/// The fixtures of one hook.
struct Table {
    hook: HookPoint,
    fixtures: Vec<Fixture>,
}

impl Table {
    const fn of(hook: HookPoint) -> Self {
        Self { hook, fixtures: Vec::new() }
    }

    fn add(&mut self, name: &str, frame: &Frame, verdict: Verdict) {
        self.add_bytes(name, frame.bytes(), verdict);
    }

    fn add_bytes(&mut self, name: &str, frame: Vec<u8>, verdict: Verdict) {
        self.fixtures.push(Fixture { name: name.to_owned(), hook: self.hook, frame, verdict });
    }
}

const fn to(origin: Origin, slot: u16) -> Verdict {
    Verdict::ToContainer { origin, owner: entry(slot), by_loopback: false, rewrite: IcmpIdRewrite::NONE }
}

/// To the outside by a gateway, or to a neighbour that the kernel resolves.
fn outside(gateway: Option<Ipv4Addr>) -> Verdict {
    let next_hop = gateway.map_or(NextHop::KERNEL, |gateway| NextHop::v4(gateway.octets()));
    Verdict::ToOutside { slot: A, ifindex: UPLINK, next_hop, rewrite: IcmpIdRewrite::NONE }
}

const fn drop_a(reason: Reason) -> Verdict {
    Verdict::Drop { slot: A, reason }
}

/// Returns all fixtures.
pub(crate) fn fixtures() -> Vec<Fixture> {
    [at_uplink(), at_host_lo(), at_veth_of_a(), at_lo_of_a(), without_ports()].into_iter().flatten().collect()
}

fn at_uplink() -> Vec<Fixture> {
    let mut table = Table::of(HookPoint::UplinkIngress);
    for (protocol, name) in [(UDP, "UDP"), (TCP, "TCP")] {
        let packet = |port| from_outside(port).protocol(protocol);
        table.add(&format!("{name} to a"), &packet(A_PORT), to(Origin::Outside, A));
        table.add(&format!("{name} to b"), &packet(B_PORT), to(Origin::Outside, B));
        table.add(&format!("{name} to port 1 of b"), &packet(B_LOW_PORT), to(Origin::Outside, B));
        table.add(
            &format!("{name} to a port of the host"),
            &packet(FREE),
            Verdict::Continue(Reason::HostPort),
        );
        table.add(&format!("{name} to port 0"), &packet(0), Verdict::Continue(Reason::HostPort));
    }
    for options in [4, 20, 40] {
        let frame = Frame { options: vec![1; options], ..from_outside(A_PORT) };
        table.add(&format!("{options} bytes of options"), &frame, to(Origin::Outside, A));
    }
    table.add("no payload", &Frame { payload: Vec::new(), ..from_outside(A_PORT) }, to(Origin::Outside, A));
    // The "don't fragment" bit and the reserved bit do not mark a fragment.
    for flags in [0x4000, 0x8000, 0xc000] {
        table.add("flags", &Frame { fragment: flags, ..from_outside(A_PORT) }, to(Origin::Outside, A));
    }
    table.add(
        "the sender's port is a's",
        &Frame { from_port: A_PORT, ..from_outside(FREE) },
        Verdict::Continue(Reason::HostPort),
    );
    table.add(
        "length 0 of a super-packet",
        &Frame { total_length: Some(0), ..from_outside(A_PORT) },
        to(Origin::Outside, A),
    );
    table.add(
        "another address",
        &Frame { to: PEER, ..from_outside(A_PORT) },
        Verdict::Continue(Reason::OtherAddress),
    );
    table.add(
        "127.0.0.1 from outside",
        &Frame { to: LOCAL, ..from_outside(A_PORT) },
        Verdict::Drop { slot: HOST_SLOT, reason: Reason::Destination },
    );
    table.add(
        "multicast",
        &Frame { to: Ipv4Addr::new(224, 0, 0, 1), ..from_outside(A_PORT) },
        Verdict::Continue(Reason::OtherAddress),
    );
    table.add(
        "another MAC address",
        &Frame { to_mac: OTHER_MAC, ..from_outside(A_PORT) },
        Verdict::Continue(Reason::OtherStation),
    );
    table.add(
        "a broadcast frame",
        &Frame { to_mac: [0xff; 6], ..from_outside(A_PORT) },
        Verdict::Continue(Reason::OtherStation),
    );
    for source in [HOST, LOCAL, ALSO_LOCAL] {
        for port in [A_PORT, FREE] {
            let frame = Frame { from: source, ..from_outside(port) };
            table.add(
                &format!("from {source} to {port}"),
                &frame,
                Verdict::Drop { slot: HOST_SLOT, reason: Reason::SourceAddress },
            );
        }
    }
    table.fixtures
}

fn at_host_lo() -> Vec<Fixture> {
    let mut table = Table::of(HookPoint::HostLoIngress);
    for address in [HOST, LOCAL, ALSO_LOCAL] {
        for source in [HOST, LOCAL] {
            let frame = |from, to| on_host_lo((source, from), (address, to));
            table.add(&format!("{address} to a"), &frame(50000, A_PORT), to(Origin::Host, A));
            table.add(
                &format!("{address} to a by TCP"),
                &frame(50000, A_PORT).protocol(TCP),
                to(Origin::Host, A),
            );
            table.add(&format!("{address} to b"), &frame(50000, B_PORT), to(Origin::Host, B));
            table.add(
                &format!("{address} to the host"),
                &frame(50000, FREE),
                Verdict::Continue(Reason::HostPort),
            );
            table.add(
                &format!("{address} from a's port to the host"),
                &frame(A_PORT, FREE),
                Verdict::Continue(Reason::HostPort),
            );
        }
    }
    table.add(
        "another address of the host",
        &on_host_lo((HOST, 50000), (PEER, A_PORT)),
        Verdict::Continue(Reason::OtherAddress),
    );
    table.fixtures
}

/// Adds a packet of exactly the uplink's MTU, and a longer one.
fn lengths(table: &mut Table, name: &str, short: Frame) {
    let rest = LONGEST as usize - short.bytes().len();
    let longest = Frame { payload: [&short.payload[..], &vec![0; rest]].concat(), ..short };
    let too_long = Frame { payload: [&longest.payload[..], &[0]].concat(), ..longest.clone() };
    table.add(&format!("{name} of exactly the MTU"), &longest, outside(None));
    table.add(&format!("longer {name}"), &too_long, drop_a(Reason::TooBig));
    table.add(
        &format!("longer {name} beyond"),
        &Frame { to: FAR, ..too_long.clone() },
        drop_a(Reason::TooBig),
    );
    table.add(&format!("longer {name} to the host"), &Frame { to: HOST, ..too_long }, Verdict::ToHost(A));
}

#[expect(clippy::too_many_lines, reason = "a row per rule of the specification")]
fn at_veth_of_a() -> Vec<Fixture> {
    let mut table = Table::of(VETH_OF_A);
    for (protocol, name) in [(UDP, "UDP"), (TCP, "TCP")] {
        let packet = |from, to| from_a(from, to).protocol(protocol);
        let own = (HOST, A_PORT);
        table.add(&format!("{name} on the link"), &packet(own, (PEER, FREE)), outside(None));
        table.add(&format!("{name} beyond"), &packet(own, (FAR, FREE)), outside(Some(GATEWAY)));
        // A remote port is independent of the local owner of that port.
        table.add(&format!("{name} to b's port beyond"), &packet(own, (FAR, B_PORT)), outside(Some(GATEWAY)));
        lengths(&mut table, name, packet(own, (PEER, FREE)));
        for address in [HOST, LOCAL, ALSO_LOCAL] {
            table.add(
                &format!("{name} to the host by {address}"),
                &packet(own, (address, FREE)),
                Verdict::ToHost(A),
            );
            table.add(
                &format!("{name} to b by {address}"),
                &packet(own, (address, B_PORT)),
                to(Origin::Container(A), B),
            );
            table.add(
                &format!("{name} to itself by {address}"),
                &packet(own, (address, A_PORT)),
                to(Origin::Container(A), A),
            );
            let from_local = packet((LOCAL, A_PORT), (address, FREE));
            table.add(&format!("{name} from 127.0.0.1 to {address}"), &from_local, Verdict::ToHost(A));
        }
        for port in [B_PORT, B_LOW_PORT, FREE, 0, A_PORT + 1] {
            for target in [(PEER, FREE), (FAR, FREE), (HOST, FREE), (HOST, B_PORT), (LOCAL, B_PORT)] {
                let frame = packet((HOST, port), target);
                table.add(
                    &format!("{name} from port {port} to {target:?}"),
                    &frame,
                    drop_a(Reason::SourcePort),
                );
            }
        }
        for source in [PEER, FAR, Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST] {
            for target in [(PEER, FREE), (FAR, FREE), (HOST, FREE), (LOCAL, B_PORT)] {
                let frame = packet((source, A_PORT), target);
                table.add(
                    &format!("{name} from {source} to {target:?}"),
                    &frame,
                    drop_a(Reason::SourceAddress),
                );
            }
        }
        table.add(
            &format!("{name} from 127.0.0.1 to the outside"),
            &packet((LOCAL, A_PORT), (PEER, FREE)),
            drop_a(Reason::SourceAddress),
        );
    }
    for target in [
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::new(0, 1, 2, 3),
        Ipv4Addr::new(224, 0, 0, 1),
        Ipv4Addr::new(239, 255, 255, 250),
        Ipv4Addr::new(240, 0, 0, 1),
        Ipv4Addr::BROADCAST,
        Ipv4Addr::new(10, 0, 0, 0),
        Ipv4Addr::new(10, 0, 0, 255),
        OTHER_BROADCAST,
    ] {
        table.add(
            &format!("to {target}"),
            &from_a((HOST, A_PORT), (target, FREE)),
            drop_a(Reason::Destination),
        );
    }
    let to_peer = from_a((HOST, A_PORT), (PEER, FREE));
    table.add(
        "a forged source",
        &Frame { from_mac: OTHER_MAC, ..to_peer.clone() },
        drop_a(Reason::SourceMac),
    );
    table.add(
        "the source of b's loopback device",
        &Frame { from_mac: loopback_mac(B), ..to_peer.clone() },
        drop_a(Reason::SourceMac),
    );
    table.add("a broadcast", &Frame { to_mac: [0xff; 6], ..to_peer.clone() }, drop_a(Reason::Destination));
    for (name, flags, verdict) in [
        ("opens a connection", 0x02, drop_a(Reason::HostAccess)),
        ("opens a connection, with further flags", 0xe2, drop_a(Reason::HostAccess)),
        ("accepts a connection", 0x12, Verdict::ToHost(A)),
        ("continues a connection", 0x10, Verdict::ToHost(A)),
        ("resets a connection", 0x04, Verdict::ToHost(A)),
    ] {
        let segment = |to| {
            let mut frame = from_a((HOST, A_PORT), (HOST, to)).protocol(TCP).bytes();
            frame[14 + 20 + 13] = flags;
            frame
        };
        table.add_bytes(&format!("to a closed port of the host: {name}"), segment(CLOSED), verdict);
        table.add_bytes(&format!("to an open port of the host: {name}"), segment(FREE), Verdict::ToHost(A));
    }
    table.add(
        "to a closed port of the host, without a packet from there",
        &from_a((HOST, A_PORT), (HOST, CLOSED)),
        drop_a(Reason::HostAccess),
    );
    for (to, verdict) in [(LOCAL, drop_a(Reason::Listener)), (HOST, Verdict::ToHost(A))] {
        let tcp = Frame { protocol: TCP, ..from_a((HOST, A_PORT), (to, LISTENER)) };
        table.add(&format!("to the daemon's port at {to} by TCP"), &tcp, verdict);
        let udp = from_a((HOST, A_PORT), (to, LISTENER));
        table.add(&format!("to the daemon's port at {to} by UDP"), &udp, Verdict::ToHost(A));
    }
    for (from, to) in [(LOCAL, LOCAL), (HOST, ALSO_LOCAL), (LOCAL, HOST)] {
        let frame = from_a((from, A_PORT), (to, P_PORT));
        table.add(&format!("to a private loopback from {from} to {to}"), &frame, drop_a(Reason::Loopback));
    }
    let by_host_ip = Verdict::ToContainer {
        origin: Origin::Container(A),
        owner: PortEntry { flags: LOOPBACK_PRIVATE, ..entry(P) },
        by_loopback: false,
        rewrite: IcmpIdRewrite::NONE,
    };
    table.add(
        "to a private container by the host's address",
        &from_a((HOST, A_PORT), (HOST, P_PORT)),
        by_host_ip,
    );
    table.add("to another MAC address", &Frame { to_mac: OTHER_MAC, ..to_peer.clone() }, outside(None));
    table.add(
        "from its own loopback device",
        &Frame { from_mac: loopback_mac(A), to_mac: [0; 6], ..to_peer },
        outside(None),
    );
    let optional = Frame { options: vec![1; 40], ..from_a((HOST, B_PORT), (PEER, FREE)) };
    table.add("options before a foreign port", &optional, drop_a(Reason::SourcePort));
    table.fixtures
}

fn at_lo_of_a() -> Vec<Fixture> {
    let mut table = Table::of(HookPoint::ContainerLoEgress);
    for address in [HOST, LOCAL, ALSO_LOCAL] {
        table.add(
            &format!("own port by {address}"),
            &on_lo_of_a((address, A_PORT)),
            Verdict::DeliverLocal(A),
        );
        table.add(&format!("b's port by {address}"), &on_lo_of_a((address, B_PORT)), Verdict::ToEth0(ETH0));
        table.add(
            &format!("the host's port by {address}"),
            &on_lo_of_a((address, FREE)),
            Verdict::ToEth0(ETH0),
        );
    }
    table.add("a remote address", &on_lo_of_a((PEER, FREE)), Verdict::DeliverLocal(A));
    for (to, verdict) in [(HOST, Verdict::ToEth0(ETH0)), (LOCAL, Verdict::DeliverLocal(A))] {
        table.add(&format!("a private container's port by {to}"), &on_lo_of_a((to, P_PORT)), verdict);
    }
    let nameless = Frame { from_mac: [0; 6], ..on_lo_of_a((HOST, B_PORT)) };
    table.add("a loopback device without a slot", &nameless, Verdict::DeliverLocal(HOST_SLOT));
    let unknown = Frame { from_mac: loopback_mac(B), ..on_lo_of_a((HOST, FREE)) };
    table.add("the slot of a container without eth0", &unknown, Verdict::DeliverLocal(B));
    table.fixtures
}

/// Returns fixtures without valid IPv4 ports, for every hook.
fn without_ports() -> Vec<Fixture> {
    let mut fixtures = Vec::new();
    for hook in HOOKS {
        let (good, verdict): (Frame, fn(Reason) -> Verdict) = match hook {
            HookPoint::UplinkIngress => (from_outside(A_PORT), Verdict::Continue),
            HookPoint::HostLoIngress => (on_host_lo((HOST, 50000), (HOST, A_PORT)), Verdict::Continue),
            VETH_OF_A => (from_a((HOST, A_PORT), (PEER, FREE)), |reason| Verdict::Drop { slot: A, reason }),
            _ => (on_lo_of_a((HOST, B_PORT)), |_| Verdict::DeliverLocal(A)),
        };
        fixtures.extend(unfit(&good).into_iter().map(|(name, frame, reason)| Fixture {
            name,
            hook,
            frame,
            verdict: verdict(reason),
        }));
        // A test run of an IPv6 frame needs a complete IPv6 header.
        let ipv6 = Frame { ether_type: 0x86dd, payload: vec![0; 40], ..good }.bytes();
        fixtures.push(Fixture { name: "IPv6".to_owned(), hook, frame: ipv6, verdict: verdict(Reason::Ipv6) });
    }
    fixtures
}
