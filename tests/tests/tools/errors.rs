//! Hand-made ICMP errors: from outside they reach the sender of the embedded packet; from a container only
//! valid ones pass.

use portmap_tests::{packet_socket::PacketSocket, sandbox::Netns, service::Service, wait};

use crate::{A, B, HOST_PORT, World, background::Background, scapy::Frames};

/// Named by the receiving container, or by the reason why they are left to the host.
const FROM_OUTSIDE: &str = r#"
def quote(version, protocol, source, sport, destination, dport=53):
    ip = IP(src=source, dst=destination) if version == 4 else IPv6(src=source, dst=destination)
    return ip / {"udp": UDP, "tcp": TCP}[protocol](sport=sport, dport=dport)
def errors(version):
    if version == 4:
        return {
            "port": ICMP(type=3, code=3), "host": ICMP(type=3, code=1), "mtu": ICMP(type=3, code=4, nexthopmtu=1400),
            "time": ICMP(type=11, code=0), "parameter": ICMP(type=12, code=0),
        }
    return {
        "port": ICMPv6DestUnreach(code=4), "host": ICMPv6DestUnreach(code=3), "mtu": ICMPv6PacketTooBig(mtu=1400),
        "time": ICMPv6TimeExceeded(), "parameter": ICMPv6ParamProblem(),
    }
for version, host, outside, far, loopback in (
    (4, HOST, OUTSIDE, FAR, "127.0.0.1"), (6, HOST6, OUTSIDE6, FAR6, "::1"),
):
    ip = IP(src=outside, dst=host) if version == 4 else IPv6(src=outside, dst=host)
    for what, error in errors(version).items():
        for protocol in "udp", "tcp":
            for port, owner in (31000, "a"), (31010, "b"), (22, "host_port"):
                quoted = quote(version, protocol, host, port, far)
                name(f"{owner}/{version} {what} {protocol}", out(ip / error / quoted))
    def unowned(reason, what, quoted):
        name(f"{reason}/{version} {what}", out(ip / errors(version)["port"] / quoted))
    unowned("quoted", "foreign source", quote(version, "udp", far, 31000, outside))
    unowned("quoted", "shared destination", quote(version, "udp", host, 31000, host, 31010))
    unowned("quoted", "loopback destination", quote(version, "udp", host, 31000, loopback, 31010))
    unowned("quoted", "loopback source", quote(version, "udp", loopback, 31000, far))
    unowned("quoted", "nothing", Raw(b""))
    unowned("quoted", "half a header", Raw(bytes(quote(version, "udp", host, 31000, far))[:12]))
    unowned("quoted", "no port", Raw(bytes(quote(version, "udp", host, 31000, far))[:20 if version == 4 else 40]))
    unowned("quoted", "an error", (IP if version == 4 else IPv6)(src=host, dst=far) / errors(version)["port"])
"#;

#[test]
fn icmp_error_reaches_the_sender_it_is_about() {
    let world = World::new();
    let sandbox = &world.sandbox;
    let frames = Frames::of(sandbox, FROM_OUTSIDE);
    let captures = [A, B].map(|netns| Background::capture(sandbox, netns, "icmp or icmp6"));
    let outside = sandbox.inside(Netns::Outside, || PacketSocket::open("eth0"));
    let (mut to_a, mut to_b) = (0, 0);
    for (name, frame) in frames.iter() {
        let owner = name.split('/').next().expect("a name");
        match owner {
            "a" | "b" => {
                let before = world.packets(owner, "rx_outside");
                outside.send(frame);
                wait::until(name, || world.packets(owner, "rx_outside") == before + 1);
                *(if owner == "a" { &mut to_a } else { &mut to_b }) += 1;
            }
            reason => {
                let before = world.left_to_host(reason);
                outside.send(frame);
                wait::until(name, || world.left_to_host(reason) == before + 1);
            }
        }
    }
    assert_eq!((to_a, to_b), (20, 20));
    // Each container has received the errors about its own port and nothing else. tcpdump prints the
    // embedded source ports, 31000 and 31010, and the destination port.
    for (capture, own, other) in
        [(&captures[0], "7918 0035", "7922 0035"), (&captures[1], "7922 0035", "7918 0035")]
    {
        wait::until("all errors", || capture.count("ICMP") >= 20);
        let text = capture.lines().join("\n");
        assert_eq!(capture.count("ICMP"), 20, "{text}");
        assert!(text.contains(own) && !text.contains(other), "{text}");
    }
}

/// Named by their path, or by the reason for the drop.
const FROM_A: &str = r#"
def quote(version, source, sport, destination, dport, protocol=UDP):
    ip = IP(src=source, dst=destination) if version == 4 else IPv6(src=source, dst=destination)
    return ip / protocol(sport=sport, dport=dport)
for version, host, outside, far, loopback in (
    (4, HOST, OUTSIDE, FAR, "127.0.0.1"), (6, HOST6, OUTSIDE6, FAR6, "::1"),
):
    def ip(source, destination):
        return IP(src=source, dst=destination) if version == 4 else IPv6(src=source, dst=destination)
    if version == 4:
        port, mtu = ICMP(type=3, code=3), ICMP(type=3, code=4, nexthopmtu=600)
        time, reassembly = ICMP(type=11, code=0), ICMP(type=11, code=1)
        others = {"redirect": ICMP(type=5, code=1, gw="10.0.0.77"), "router's advertisement": ICMP(type=9),
                  "timestamp": ICMP(type=13), "quench": ICMP(type=4)}
    else:
        port, mtu = ICMPv6DestUnreach(code=4), ICMPv6PacketTooBig(mtu=1280)
        time, reassembly = ICMPv6TimeExceeded(code=0), ICMPv6TimeExceeded(code=1)
        others = {"node information": ICMPv6NIQueryNOOP(), "listener report": ICMPv6MLReport()}
    mine = quote(version, outside, 8080, host, 31000)
    def frame(reason, what, message, source=host, destination=outside):
        name(f"{reason}/{version} {what}", own(ip(source, destination) / message))
    # Errors that the container's stack would send about a received packet.
    frame("tx_outside", "port unreachable", port / mine)
    frame("tx_outside", "reassembly", reassembly / mine)
    frame("tx_outside", "about TCP", port / quote(version, outside, 8080, host, 31000, TCP))
    frame("tx_host", "to the host", port / quote(version, host, 8080, host, 31000), destination=host)
    frame("tx_container", "to b", port / quote(version, host, 31010, host, 31000), destination=host)
    by_loopback = port / quote(version, loopback, 31010, loopback, 31000)
    frame("tx_container", "to b by loopback", by_loopback, loopback, loopback)
    frame("icmp", "too big", mtu / mine)
    frame("icmp", "too big for the host", mtu / quote(version, host, 8080, host, 31000), destination=host)
    frame("icmp", "too big for b", mtu / quote(version, host, 31010, host, 31000), destination=host)
    frame("icmp", "time", time / mine)
    frame("quoted", "port of b", port / quote(version, outside, 8080, host, 31010))
    frame("quoted", "port of the host", port / quote(version, outside, 8080, host, 22))
    frame("quoted", "port of b to the host", port / quote(version, host, 8080, host, 31010), destination=host)
    frame("quoted", "another's connection", port / quote(version, outside, 8080, far, 31000))
    frame("quoted", "source that is not the receiver", port / quote(version, far, 8080, host, 31000))
    frame("quoted", "nothing", port)
    frame("source_address", "from outside", port / mine, far)
    frame("source_address", "from loopback", port / mine, loopback)
    for what, message in others.items():
        frame("icmp", what, message / mine if what in ("redirect", "quench") else message)
    request, reply = (ICMP(type=8, id=7), ICMP(type=0, id=7)) if version == 4 else (
        ICMPv6EchoRequest(id=7), ICMPv6EchoReply(id=7))
    frame("icmp", "echo reply", reply)
    frame("icmp", "echo request to the host", request, destination=host)
    frame("icmp", "echo request to loopback", request, loopback, loopback)
    name(f"protocol/{version} the other's ICMP", own(
        IP(src=HOST, dst=OUTSIDE, proto=58) / Raw(bytes(8)) if version == 4 else
        IPv6(src=HOST6, dst=OUTSIDE6, nh=1) / Raw(bytes(8))))
"#;

#[test]
fn icmp_error_about_a_foreign_packet_is_dropped() {
    let world = World::new();
    let sandbox = &world.sandbox;
    let _host = Service::both(sandbox, Netns::Host, HOST_PORT, "host");
    let frames = Frames::of(sandbox, FROM_A);
    let a = sandbox.inside(A, || PacketSocket::open("eth0"));
    for (name, frame) in frames.iter() {
        let end = name.split('/').next().expect("a name");
        if end.starts_with("tx_") {
            let before = world.packets("a", end);
            a.send(frame);
            wait::until(name, || world.packets("a", end) == before + 1);
            continue;
        }
        world.expect_drop(&a, name, frame, end);
    }
    // The host has processed none of them.
    for to in ["10.0.0.2", "192.0.2.1", "2001:db8:0:1::2", "2001:db8:f::1"] {
        let route = sandbox.sh(Netns::Host, &format!("ip route get {to}"));
        assert!(!route.contains("mtu") && !route.contains("10.0.0.77"), "{route}");
    }
}
