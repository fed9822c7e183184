//! Packets with a damaged checksum reach no socket.

use std::{io::ErrorKind, net::TcpListener};

use portmap_tests::{packet_socket::PacketSocket, sandbox::Netns, wait};

use crate::{A, A_PORT, B, B_PORT, HOST_PORT, World, scapy::Frames};

/// On every path a valid UDP packet, a damaged one, and a damaged SYN.
const SCRIPT: &str = r#"
paths = {
    "outside to a": (out, OUTSIDE, OUTSIDE6, 5555, HOST, HOST6, 31000),
    "a to outside": (own, HOST, HOST6, 31009, OUTSIDE, OUTSIDE6, 8080),
    "a to b": (own, HOST, HOST6, 31009, HOST, HOST6, 31010),
    "a to b by loopback": (own, "127.0.0.1", "::1", 31009, "127.0.0.1", "::1", 31010),
    "a to the host": (own, HOST, HOST6, 31009, HOST, HOST6, 8080),
    "the host to a": (lambda p: Ether(src="00:00:00:00:00:00", dst="00:00:00:00:00:00") / p,
                      HOST, HOST6, 5555, HOST, HOST6, 31000),
}
for path, (ether, source4, source6, sport, to4, to6, dport) in paths.items():
    for version, ip in ("4", IP(src=source4, dst=to4)), ("6", IPv6(src=source6, dst=to6)):
        udp = ether(ip / UDP(sport=sport, dport=dport) / Raw(b"sound"))
        name(f"{path}/{version}/sound", udp)
        damaged = bytes(udp)[:-5] + b"wrong"
        name(f"{path}/{version}/udp", damaged)
        tcp = bytearray(bytes(ether(ip / TCP(sport=sport, dport=dport, flags="S", seq=7))))
        tcp[-5] ^= 1
        name(f"{path}/{version}/tcp", bytes(tcp))
"#;

/// Returns the number of damaged packets of all protocols that a namespace's stack has counted.
fn noticed(world: &World, netns: Netns<'_>) -> u64 {
    let text = world.sandbox.sh(netns, "nstat -asz --json");
    let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    ["TcpInCsumErrors", "UdpInCsumErrors", "Udp6InCsumErrors"]
        .iter()
        .map(|name| json["kernel"][name].as_u64().expect("a counter"))
        .sum()
}

#[test]
fn checksum_errors_reach_no_socket() {
    let world = World::new();
    let sandbox = &world.sandbox;
    let frames = Frames::of(sandbox, SCRIPT);
    let sender = |netns, interface| sandbox.inside(netns, || PacketSocket::open(interface));
    let (outside, a, lo) = (sender(Netns::Outside, "eth0"), sender(A, "eth0"), sender(Netns::Host, "lo"));
    for (path, socket, to, port) in [
        ("outside to a", &outside, A, A_PORT),
        ("a to outside", &a, Netns::Outside, HOST_PORT),
        ("a to b", &a, B, B_PORT),
        ("a to b by loopback", &a, B, B_PORT),
        ("a to the host", &a, Netns::Host, HOST_PORT),
        ("the host to a", &lo, A, A_PORT),
    ] {
        let receiver = world.receiver(to, port);
        let listener = sandbox.inside(to, || TcpListener::bind(("::", port))).expect("the port is free");
        listener.set_nonblocking(true).expect("a socket");
        for version in [4, 6] {
            let before = noticed(&world, to);
            for damaged in ["udp", "tcp"] {
                socket.send(frames.get(&format!("{path}/{version}/{damaged}")));
            }
            // The receiving stack verifies the checksum, unless the packet claims that it was
            // verified already.
            let what = format!("both to be noticed, {path}, IPv{version}");
            wait::until(&what, || noticed(&world, to) == before + 2);
            socket.send(frames.get(&format!("{path}/{version}/sound")));
            let mut buffer = [0; 16];
            let length = wait::for_value(path, || receiver.recv(&mut buffer).ok());
            assert_eq!(buffer[..length], *b"sound", "{path}");
            let nothing = receiver.recv(&mut buffer).expect_err("one packet was sound");
            assert_eq!(nothing.kind(), ErrorKind::WouldBlock, "{path}");
            assert!(listener.accept().is_err(), "{path}");
            let half_open = sandbox.sh(to, &format!("ss -Htn state syn-recv 'sport = :{port}'"));
            assert_eq!(half_open, "", "{path}");
        }
    }
}
