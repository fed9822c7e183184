//! Fragments and extension headers that no stack generates.

use portmap_tests::{packet_socket::PacketSocket, sandbox::Netns, wait};

use crate::{A, A_PORT, B, B_PORT, HOST_PORT, World, scapy::Frames};

/// Fragments are named by case and number. `first`, `more` and `last` build fragments of one packet.
const PIECES: &str = r#"
from itertools import count
ids = count(1000)
def datagram(sport, dport, text):
    # Fragments have the checksum of the whole datagram, which IPv6 requires.
    return UDP(sport=sport, dport=dport) / Raw(text)
def piece(version, ends, id, offset, more, bytes, protocol=17):
    source, destination = ends
    if version == 4:
        flags = "MF" if more else 0
        ip = IP(src=source, dst=destination, id=id, flags=flags, frag=offset // 8, proto=protocol)
        return ip / Raw(bytes)
    header = IPv6ExtHdrFragment(id=id, offset=offset // 8, m=int(more), nh=protocol)
    return IPv6(src=source, dst=destination) / header / Raw(bytes)
def whole(version, ends, sport, dport, text):
    ip = (IP if version == 4 else IPv6)(src=ends[0], dst=ends[1])
    return bytes(ip / datagram(sport, dport, text))[20 if version == 4 else 40:]
for version, host, outside in (4, HOST, OUTSIDE), (6, HOST6, OUTSIDE6):
    for side, ether, ends, sport, dport in (
        ("in", out, (outside, host), 5555, 31000), ("out", own, (host, outside), 31000, 8080),
    ):
        def case(what, *pieces):
            id = next(ids)
            for number, (offset, more, data, *protocol) in enumerate(pieces):
                frame = ether(piece(version, ends, id, offset, more, data, *protocol))
                name(f"{side}/{version}/{what}/{number}", frame)
        text = bytes(range(65, 65 + 24))
        mine = whole(version, ends, sport, dport, text)
        other = whole(version, ends, 5555, 31010, text) if side == "in" else whole(version, ends, 31010, dport, text)
        case("in order", (0, True, mine[:16]), (16, False, mine[16:]))
        case("tiny", *[(at, at + 8 < len(mine), mine[at:at + 8]) for at in range(0, len(mine), 8)])
        case("reverse", (16, False, mine[16:]), (0, True, mine[:16]))
        case("alone", (16, False, mine[16:]))
        case("overlap", (0, True, mine[:16]), (8, True, b"overlap!" * 2), (24, False, mine[24:]))
        # Linux treats contained data as a retransmission.
        case("contained", (0, True, mine[:16]), (8, True, b"overlap!"), (16, False, mine[16:]))
        # Two first fragments, the second with a foreign port: the last fragment matches neither.
        case("two first", (0, True, mine[:16]), (0, True, other[:16]), (16, False, mine[16:]))
        case("atomic", (0, False, mine))
        case("four bytes", (0, True, mine[:4]))
        tcp = bytes((IP if version == 4 else IPv6)(src=ends[0], dst=ends[1]) / TCP(sport=sport, dport=dport, flags="S"))
        tcp = tcp[20 if version == 4 else 40:]
        case("tiny TCP", (0, True, tcp[:8], 6), (8, False, tcp[8:], 6))
        case("rewritten TCP", (0, True, tcp[:16], 6), (8, False, tcp[8:], 6))
"#;

const TEXT: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWX";

/// The expected outcome of a case.
struct Case {
    name: &'static str,
    /// Whether the datagram arrives: from outside at `a`, from outside at `b`, from `a` at the outside.
    arrives: [bool; 3],
    /// The reason for which one fragment from outside is left to the host.
    left: Option<&'static str>,
    /// The reason for which one fragment from `a` is dropped.
    dropped: Option<&'static str>,
}

const fn case(
    name: &'static str,
    arrives: [bool; 3],
    left: Option<&'static str>,
    dropped: Option<&'static str>,
) -> Case {
    Case { name, arrives, left, dropped }
}

/// The last case arrives, so anything that the others should not have delivered has arrived by then.
const CASES: [Case; 11] = [
    case("in order", [true, false, true], None, None),
    case("tiny", [true, false, true], None, None),
    case("reverse", [false; 3], Some("fragment"), Some("fragment")),
    case("alone", [false; 3], Some("fragment"), Some("fragment")),
    case("overlap", [false; 3], None, None),
    case("contained", [true, false, true], None, None),
    case("two first", [false, false, true], Some("fragment"), Some("source_port")),
    case("four bytes", [false; 3], Some("malformed"), Some("malformed")),
    case("tiny TCP", [false; 3], None, None),
    case("rewritten TCP", [false; 3], None, None),
    case("atomic", [true, false, true], None, None),
];

#[test]
fn fragment_of_any_shape_reaches_its_owner_or_none() {
    let world = World::new();
    let sandbox = &world.sandbox;
    let frames = Frames::of(sandbox, PIECES);
    let receivers = [(A, A_PORT), (B, B_PORT), (Netns::Outside, HOST_PORT)]
        .map(|(netns, port)| world.receiver(netns, port));
    let from_outside = sandbox.inside(Netns::Outside, || PacketSocket::open("eth0"));
    let from_a = sandbox.inside(A, || PacketSocket::open("eth0"));
    let to_containers = || world.packets("a", "rx_outside") + world.packets("b", "rx_outside");
    let to_outside = || world.packets("a", "tx_outside");
    let left = |case: &Case| case.left.map_or(0, |reason| world.left_to_host(reason));
    let dropped = |case: &Case| {
        let drops = world.drops("a");
        case.dropped.and_then(|reason| drops.get(reason).copied()).unwrap_or_default()
    };
    let send_all = |socket: &PacketSocket, prefix: String| {
        let all = frames.iter().filter(|(name, _)| name.starts_with(&prefix));
        u64::try_from(all.map(|(_, frame)| socket.send(frame)).count()).expect("few")
    };
    for (version, case) in
        [4, 6].into_iter().flat_map(|version| CASES.iter().map(move |case| (version, case)))
    {
        let what = format!("IPv{version}, {}", case.name);
        // Replies of a stack may be counted as well, so the counters may be higher.
        let (carried, others) = (to_containers(), left(case));
        let pieces = send_all(&from_outside, format!("in/{version}/{}/", case.name));
        let strays = u64::from(case.left.is_some());
        wait::until(&what, || left(case) == others + strays && to_containers() >= carried + pieces - strays);
        let (carried, others) = (to_outside(), dropped(case));
        let pieces = send_all(&from_a, format!("out/{version}/{}/", case.name));
        let strays = u64::from(case.dropped.is_some());
        wait::until(&what, || dropped(case) == others + strays && to_outside() >= carried + pieces - strays);
        for (receiver, _) in receivers.iter().zip(case.arrives).filter(|(_, arrives)| *arrives) {
            let mut buffer = [0; 256];
            let length = wait::for_value(&what, || receiver.recv(&mut buffer).ok());
            assert_eq!(buffer[..length], *TEXT, "{what}");
        }
    }
    for (receiver, netns) in receivers.iter().zip([A, B, Netns::Outside]) {
        let mut buffer = [0; 256];
        let more =
            receiver.recv(&mut buffer).map(|length| String::from_utf8_lossy(&buffer[..length]).into_owned());
        assert!(more.is_err(), "{netns:?} got {more:?}");
    }
}

/// Named by the path or the reason, at the uplink or, for packets of `a`, at the host veth.
const CHAINS: &str = r#"
hop, options, routing = IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt(), IPv6ExtHdrRouting()
ah = AH(nh=17, payloadlen=4, spi=1, seq=1, icv=bytes(12), padding=b"")
def chain(*headers):
    chained = headers[0].copy()
    for header in headers[1:]:
        chained = chained / header.copy()
    return chained
chains = {
    "hop-by-hop": chain(hop), "options": chain(options), "routing": chain(routing),
    "hop-by-hop, options and routing": chain(hop, options, routing),
    "six": chain(hop, options, options, options, options, options),
}
too_many = {"seven": chain(hop, *[options] * 6), "twenty": chain(hop, *[options] * 19)}
def inward(content): return out(IPv6(src=OUTSIDE6, dst=HOST6) / content)
def outward(content): return own(IPv6(src=HOST6, dst=OUTSIDE6) / content)
udp_in = UDP(sport=5555, dport=31000) / Raw(b"hello")
udp_out = UDP(sport=31000, dport=8080) / Raw(b"hello")
stolen = UDP(sport=31010, dport=8080) / Raw(b"hello")
for what, headers in chains.items():
    name(f"rx_outside/{what}", inward(headers / udp_in))
    name(f"tx_outside/{what}", outward(headers / udp_out))
    name(f"source_port/{what}", outward(headers / stolen))
for what, headers in too_many.items():
    name(f"left extension_headers/{what}", inward(headers / udp_in))
    name(f"extension_headers/{what}", outward(headers / udp_out))
name("source_port/authentication", outward(ah / stolen))
name("protocol/none", outward(IPv6ExtHdrDestOpt(nh=59)))
name("protocol/encrypted", outward(ESP(spi=1, seq=1, data=bytes(16))))
name("malformed/options beyond the end", outward(IPv6ExtHdrDestOpt(nh=17, len=200)))
"#;

#[test]
fn extension_headers_hide_no_port() {
    let world = World::new();
    let sandbox = &world.sandbox;
    let frames = Frames::of(sandbox, CHAINS);
    let inside = world.receiver(A, A_PORT);
    let outside = world.receiver(Netns::Outside, HOST_PORT);
    let from_outside = sandbox.inside(Netns::Outside, || PacketSocket::open("eth0"));
    let from_a = sandbox.inside(A, || PacketSocket::open("eth0"));
    let arrives = |receiver: &std::net::UdpSocket, what: &str| {
        let mut buffer = [0; 16];
        let length = wait::for_value(what, || receiver.recv(&mut buffer).ok());
        assert_eq!(buffer[..length], *b"hello", "{what}");
    };
    for (name, frame) in frames.iter() {
        let end = name.split('/').next().expect("a name");
        match (end, end.strip_prefix("left ")) {
            ("rx_outside", _) => {
                from_outside.send(frame);
                arrives(&inside, name);
            }
            ("tx_outside", _) => {
                from_a.send(frame);
                arrives(&outside, name);
            }
            (_, Some(reason)) => {
                let before = world.left_to_host(reason);
                from_outside.send(frame);
                wait::until(name, || world.left_to_host(reason) == before + 1);
            }
            (reason, None) => world.expect_drop(&from_a, name, frame, reason),
        }
    }
    assert!(inside.recv(&mut [0; 16]).is_err() && outside.recv(&mut [0; 16]).is_err());
}
