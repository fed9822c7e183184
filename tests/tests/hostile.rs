//! Attacks by root in a container: raw frames, own addresses, settings and interfaces.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use portmap_tests::{
    frames::{Frame, ICMP, TCP},
    packet_socket::PacketSocket,
    sandbox::{FAR, HOST, HOST_MAC, Netns, OUTSIDE, OUTSIDE_MAC, Sandbox},
    service::{Service, Transport, ask, expect_no_reply},
    wait,
};

const A: Netns<'_> = Netns::Container("a");
const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// Starts a daemon with containers `a` (31000-31009) and `b` (31010-31019).
fn world() -> (Sandbox, portmap_tests::daemon::Daemon) {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    sandbox.ok(&["add", "a", "--ports", "31000-31009"]);
    sandbox.ok(&["add", "b", "--ports", "31010-31019"]);
    (sandbox, daemon)
}

fn total_dropped(sandbox: &Sandbox) -> u64 {
    let stats = sandbox.json(&["stats", "a"]);
    stats["drops"]["tx"].as_object().expect("reasons").values().filter_map(serde_json::Value::as_u64).sum()
}

#[test]
fn forged_frames_are_dropped_with_a_reason() {
    let (sandbox, _daemon) = world();
    // Sockets that receive any forged packet that escapes.
    let witness = |netns, port| {
        let socket = sandbox
            .inside(netns, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)))
            .expect("the port is free");
        socket.set_nonblocking(true).expect("a socket");
        socket
    };
    let witnesses = [
        ("outside", witness(Netns::Outside, 8080)),
        ("the host", witness(Netns::Host, 8080)),
        ("b", witness(Netns::Container("b"), 31010)),
    ];
    let socket = sandbox.inside(A, || PacketSocket::open("eth0"));
    let good = Frame { from_mac: HOST_MAC, to_mac: HOST_MAC, ..Frame::udp((HOST, 31000), (OUTSIDE, 8080)) };
    let stolen = Frame { from_port: 31010, ..good.clone() };
    let cases = [
        ("another's port", stolen.clone(), "source_port"),
        ("the host's port", Frame { from_port: 22, ..good.clone() }, "source_port"),
        ("another's port by TCP", stolen.clone().protocol(TCP), "source_port"),
        ("another's port behind options", Frame { options: vec![1; 8], ..stolen.clone() }, "source_port"),
        ("another's port to the host", Frame { to: HOST, ..stolen.clone() }, "source_port"),
        ("another's port to its owner", Frame { to: HOST, to_port: 31010, ..stolen.clone() }, "source_port"),
        (
            "another's port by 127.0.0.1",
            Frame { to: LOCALHOST, from: LOCALHOST, ..stolen.clone() },
            "source_port",
        ),
        ("an outside address", Frame { from: FAR, ..good.clone() }, "source_address"),
        (
            "an outside address to the host",
            Frame { from: OUTSIDE, to: HOST, ..good.clone() },
            "source_address",
        ),
        ("127.0.0.1 to the outside", Frame { from: LOCALHOST, ..good.clone() }, "source_address"),
        ("another's port in a first fragment", Frame { fragment: 0x2000, ..stolen.clone() }, "source_port"),
        ("a later fragment of nothing", Frame { fragment: 1, ..good.clone() }, "fragment"),
        ("a timestamp request", Frame { icmp: [13, 0], ..good.clone().protocol(ICMP) }, "icmp"),
        ("an ICMP error about nothing", Frame { icmp: [3, 3], ..good.clone().protocol(ICMP) }, "quoted"),
        ("GRE", good.clone().protocol(47), "protocol"),
        ("ports in the padding", Frame { total_length: Some(20), ..good.clone() }, "malformed"),
        ("version 6", Frame { version: 6, ..good.clone() }, "malformed"),
        ("ARP", Frame { ether_type: 0x0806, to_mac: [0xff; 6], ..good.clone() }, "arp"),
        ("a VLAN", Frame { vlan: Some(1), ..good.clone() }, "vlan"),
        ("a priority tag", Frame { vlan: Some(0xe000), ..good.clone() }, "vlan"),
        ("another MAC address", Frame { from_mac: OUTSIDE_MAC, ..good.clone() }, "source_mac"),
        ("LLDP", Frame { ether_type: 0x88cc, ..good.clone() }, "ether_type"),
        ("multicast", Frame { to: Ipv4Addr::new(224, 0, 0, 251), ..good.clone() }, "destination"),
        ("broadcast", Frame { to: Ipv4Addr::BROADCAST, ..good.clone() }, "destination"),
        (
            "the network's broadcast",
            Frame { to: Ipv4Addr::new(10, 0, 0, 255), ..good.clone() },
            "destination",
        ),
    ];
    for (what, frame, reason) in cases {
        let (before, all_before) = (sandbox.dropped("a", reason), total_dropped(&sandbox));
        socket.send(&frame.bytes());
        wait::until(what, || total_dropped(&sandbox) > all_before);
        assert_eq!(sandbox.dropped("a", reason), before + 1, "{what}: {}", sandbox.json(&["stats", "a"]));
        assert_eq!(total_dropped(&sandbox), all_before + 1, "{what}");
    }
    for (who, socket) in &witnesses {
        assert!(socket.recv(&mut [0; 64]).is_err(), "{who} has received something");
    }
    // Control: the unmodified frame does arrive.
    socket.send(&good.bytes());
    witnesses[0].1.set_nonblocking(false).expect("a socket");
    witnesses[0].1.set_read_timeout(Some(wait::LIMIT)).expect("a socket");
    let (_, from) = witnesses[0].1.recv_from(&mut [0; 64]).expect("received");
    assert_eq!(from, (HOST, 31000).into());
}

#[test]
fn forged_host_address_from_outside_is_dropped() {
    let (sandbox, _daemon) = world();
    let victim = sandbox.inside(A, || UdpSocket::bind("0.0.0.0:31000")).expect("the port is free");
    let socket = sandbox.inside(Netns::Outside, || PacketSocket::open("eth0"));
    let good =
        Frame { from_mac: OUTSIDE_MAC, to_mac: HOST_MAC, ..Frame::udp((OUTSIDE, 5555), (HOST, 31000)) };
    let dropped =
        || sandbox.json(&["stats"])["host"]["drops"]["rx"]["source_address"].as_u64().unwrap_or_default();
    for (number, from) in [(1, HOST), (2, LOCALHOST), (3, Ipv4Addr::new(127, 1, 2, 3))] {
        socket.send(&Frame { from, ..good.clone() }.bytes());
        wait::until("the drop to be counted", || dropped() == number);
    }
    socket.send(&good.bytes());
    victim.set_read_timeout(Some(wait::LIMIT)).expect("a socket");
    let (_, from) = victim.recv_from(&mut [0; 64]).expect("received");
    assert_eq!(from, (OUTSIDE, 5555).into(), "only the honest packet arrives");
    victim.set_read_timeout(Some(Duration::from_millis(1))).expect("a socket");
    assert!(victim.recv_from(&mut [0; 64]).is_err());
}

#[test]
fn other_host_frame_is_not_delivered() {
    let (sandbox, _daemon) = world();
    let victim = sandbox.inside(A, || UdpSocket::bind("0.0.0.0:31000")).expect("the port is free");
    sandbox.sh(Netns::Host, "ip link set uplink promisc on");
    let socket = sandbox.inside(Netns::Outside, || PacketSocket::open("eth0"));
    let frame = Frame {
        from_mac: OUTSIDE_MAC,
        to_mac: [2, 0, 0, 0, 1, 77],
        ..Frame::udp((OUTSIDE, 5555), (HOST, 31000))
    };
    socket.send(&frame.bytes());
    wait::until("the frame to be left to the host", || {
        sandbox.json(&["stats"])["host"]["passed"]["uplink"]["other_station"] == 1
    });
    victim.set_nonblocking(true).expect("a socket");
    assert!(victim.recv_from(&mut [0; 64]).is_err());
}

#[test]
fn container_settings_gain_nothing() {
    let (sandbox, _daemon) = world();
    let _outside = Service::both(&sandbox, Netns::Outside, 8080, "outside");
    // Another port range, address and MAC address, forwarding, no program on lo, another qdisc.
    sandbox.sh(
        A,
        "echo 31010 31019 > /proc/sys/net/ipv4/ip_local_port_range; \
         ip address add 10.0.0.77/24 dev eth0; ip link set eth0 address 02:00:00:00:01:77; \
         echo 1 > /proc/sys/net/ipv4/ip_forward; ip link set lo address 02:50:4d:00:00:02; \
         tc qdisc replace dev eth0 root pfifo limit 10; tc qdisc add dev lo clsact 2>/dev/null || true",
    );
    for (reason, repair) in [
        ("source_mac", "ip link set eth0 address 02:00:00:00:01:01"),
        ("source_port", "echo 31000 31009 > /proc/sys/net/ipv4/ip_local_port_range"),
    ] {
        let before = sandbox.dropped("a", reason);
        expect_no_reply(&sandbox, A, Transport::Udp, (OUTSIDE, 8080));
        assert_eq!(sandbox.dropped("a", reason), before + 1, "{reason}");
        sandbox.sh(A, repair);
    }
    // With its own MAC address and an own port the container works as before, whatever else it has
    // changed.
    sandbox.sh(A, "ip address del 10.0.0.77/24 dev eth0");
    assert_eq!(ask(&sandbox, A, Transport::Udp, (OUTSIDE, 8080)).expect("an answer").from, "outside");
}

#[test]
fn arp_of_a_container_never_leaves() {
    let (sandbox, _daemon) = world();
    sandbox.sh(A, "ip link set eth0 arp on; ip neigh flush dev eth0");
    expect_no_reply(&sandbox, A, Transport::Udp, (OUTSIDE, 8080));
    assert_ne!(sandbox.dropped("a", "arp"), 0);
    // The outside neighbour table contains the host's address only.
    assert!(!sandbox.sh(Netns::Outside, "ip neigh").contains("10.0.0.77"));
}

#[test]
fn mtu_of_the_uplink_is_enforced() {
    let (sandbox, _daemon) = world();
    // A GSO packet with the segment size that the container has negotiated.
    sandbox.sh(A, "ip link set eth0 mtu 9000");
    sandbox.sh(Netns::Outside, "ip link set eth0 mtu 9000");
    let listener = sandbox.inside(Netns::Outside, || TcpListener::bind((OUTSIDE, 8080))).expect("a listener");
    let mut stream = sandbox.inside(A, || TcpStream::connect((OUTSIDE, 8080))).expect("a connection");
    stream.set_nonblocking(true).expect("a socket");
    stream.write_all(&vec![0; 60_000]).expect("room in the buffer");
    wait::until("the segments to be dropped", || sandbox.dropped("a", "too_big") > 0);
    let (mut accepted, _) = listener.accept().expect("a connection");
    accepted.set_nonblocking(true).expect("a socket");
    assert!(accepted.read(&mut [0; 1]).is_err(), "a segment has arrived");
    // A frame that was valid until the uplink changed.
    let socket = sandbox.inside(A, || PacketSocket::open("eth0"));
    let frame = Frame {
        from_mac: HOST_MAC,
        to_mac: HOST_MAC,
        payload: vec![0; 1400],
        ..Frame::udp((HOST, 31000), (OUTSIDE, 8080))
    };
    let witness =
        sandbox.inside(Netns::Outside, || UdpSocket::bind((OUTSIDE, 8080))).expect("the port is free");
    witness.set_read_timeout(Some(wait::LIMIT)).expect("a socket");
    socket.send(&frame.bytes());
    assert_eq!(witness.recv(&mut [0; 2000]).expect("received"), 1400);
    sandbox.sh(Netns::Host, "ip link set uplink mtu 1300");
    // The container is notified and ignores it; its interface, whose MTU would make the kernel drop the
    // packet, is restored.
    wait::until("the MTU to be followed", || sandbox.sh(A, "ip link show eth0").contains("mtu 1300"));
    sandbox.sh(A, "ip link set eth0 mtu 9000");
    sandbox.sh(Netns::Host, "ip link set pm1 mtu 9000");
    let before = sandbox.dropped("a", "too_big");
    socket.send(&frame.bytes());
    wait::until("the frame to be dropped", || sandbox.dropped("a", "too_big") > before);
}

#[test]
fn port_reassigned_reaches_new_owner_only() {
    let (sandbox, _daemon) = world();
    let old = Service::start(&sandbox, A, Transport::Tcp, 31000, "a");
    assert_eq!(ask(&sandbox, Netns::Outside, Transport::Tcp, (HOST, 31000)).expect("an answer").from, "a");
    drop(old);
    sandbox.ok(&["del", "a"]);
    sandbox.ok(&["add", "c", "--ports", "31000-31009"]);
    let _new = Service::start(&sandbox, Netns::Container("c"), Transport::Tcp, 31000, "c");
    assert_eq!(ask(&sandbox, Netns::Outside, Transport::Tcp, (HOST, 31000)).expect("an answer").from, "c");
    // The slot is reused; its counters restart at zero.
    let stats = sandbox.json(&["stats", "c"]);
    assert_eq!(stats["slot"], 1);
    assert_eq!(stats["traffic"]["own"]["packets"], 0);
}

#[test]
fn broadcast_on_any_host_network_is_dropped() {
    let (sandbox, _daemon) = world();
    // A network inside the shared one, one beside it, one of another interface, and one with two
    // addresses.
    sandbox.sh(
        Netns::Host,
        "ip addr add 10.0.0.17/28 dev uplink; ip addr add 10.9.9.1/24 broadcast 10.9.9.127 dev uplink; \
         ip addr add 10.0.0.40/31 dev uplink; ip link add br0 type bridge; ip addr add 10.8.8.1/24 dev br0",
    );
    let others = ["10.0.0.16", "10.0.0.31", "10.9.9.0", "10.9.9.127", "10.9.9.255", "10.8.8.255"];
    let hosts = ["10.0.0.30", "10.0.0.41", "10.9.9.2", "10.8.8.2"];
    let is_refused = |to: &str| {
        let explained = sandbox.json(&["explain", "--from", "a", "--to", &format!("{to}:9")]);
        explained["reason"] == "destination"
    };
    for broadcast in others {
        wait::until(broadcast, || is_refused(broadcast));
    }
    for host in hosts {
        assert!(!is_refused(host), "{host}");
    }
    let before = total_dropped(&sandbox);
    let socket = sandbox.inside(A, || PacketSocket::open("eth0"));
    for (number, broadcast) in (1..).zip(others) {
        let to = broadcast.parse().expect("an address");
        let frame = Frame { from_mac: HOST_MAC, to_mac: HOST_MAC, ..Frame::udp((HOST, 31000), (to, 9)) };
        socket.send(&frame.bytes());
        wait::until(broadcast, || total_dropped(&sandbox) >= before + number);
    }
    sandbox.ok(&["doctor"]);
    // The host handles a broadcast frame from outside by itself.
    let socket = sandbox.inside(Netns::Outside, || PacketSocket::open("eth0"));
    let left =
        || sandbox.json(&["stats"])["host"]["passed"]["uplink"]["other_address"].as_u64().unwrap_or_default();
    let before = left();
    for to in [Ipv4Addr::new(10, 0, 0, 31), Ipv4Addr::new(10, 9, 9, 255)] {
        let frame =
            Frame { from_mac: OUTSIDE_MAC, to_mac: [0xff; 6], ..Frame::udp((OUTSIDE, 9), (to, 31000)) };
        socket.send(&frame.bytes());
    }
    wait::until("both are left to the host", || left() >= before + 2);
    let arrived = sandbox.json(&["stats", "a"])["traffic"]["rx_outside"]["packets"].as_u64();
    assert_eq!(arrived, Some(0));
    // After the network is removed, its broadcast address is a valid destination again.
    sandbox.sh(
        Netns::Host,
        "ip link del br0; ip addr del 10.0.0.17/28 dev uplink; ip addr del 10.9.9.1/24 dev uplink",
    );
    for broadcast in others {
        wait::until(broadcast, || !is_refused(broadcast));
    }
}

#[test]
fn neighbour_lookups_are_rate_limited() {
    let (sandbox, _daemon) = world();
    let socket = sandbox.inside(A, || PacketSocket::open("eth0"));
    let to =
        |to| Frame { from_mac: HOST_MAC, to_mac: HOST_MAC, ..Frame::udp((HOST, 31000), (to, 9)) }.bytes();
    // The uplink's network has this many unused addresses. Repeated attempts are not charged again.
    for _ in 0..2 {
        for number in 3..=40 {
            socket.send(&to(Ipv4Addr::new(10, 0, 0, number)));
        }
    }
    let sent = || sandbox.json(&["stats", "a"])["traffic"]["tx_outside"]["packets"].as_u64();
    wait::until("76 packets are sent", || sent() == Some(76));
    let dropped = || {
        let stats = sandbox.json(&["stats", "a"]);
        stats["drops"]["tx"]["neighbours"].as_u64().unwrap_or_default()
    };
    assert_eq!(dropped(), 0);
    for number in 41..=254 {
        socket.send(&to(Ipv4Addr::new(10, 0, 0, number)));
    }
    wait::until("all are decided on", || sent().is_some_and(|sent| sent + dropped() == 76 + 214));
    assert_ne!(dropped(), 0, "of 214 neighbours at once");
    // Known neighbours, hosts behind the gateway, and all peers of other containers remain reachable.
    let before = dropped();
    socket.send(&to(Ipv4Addr::new(10, 0, 0, 3)));
    socket.send(&to(OUTSIDE));
    socket.send(&to(FAR));
    wait::until("three more are sent", || sent().is_some_and(|sent| sent + before == 76 + 214 + 3));
    assert_eq!(dropped(), before);
    let other = sandbox.inside(Netns::Container("b"), || PacketSocket::open("eth0"));
    let from_b = |to| Frame { from_mac: HOST_MAC, to_mac: HOST_MAC, ..Frame::udp((HOST, 31010), (to, 9)) };
    other.send(&from_b(Ipv4Addr::new(10, 0, 0, 200)).bytes());
    wait::until("b's is sent", || {
        sandbox.json(&["stats", "b"])["traffic"]["tx_outside"]["packets"].as_u64() == Some(1)
    });
}
