//! Connections of the host and of its NAT from ports that containers own.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use portmap_tests::{
    packet_socket::PacketSocket,
    sandbox::{HOST, HOST_MAC, HOST6, Netns, OUTSIDE, OUTSIDE_MAC, OUTSIDE6, Sandbox},
    service::{Service, Transport, ask},
    wait,
};

use super::{A, BOX, BRIDGE, HOST_PORT, PORT, expect, world};

#[test]
fn masquerading_may_choose_ports_of_containers() {
    let nat = "iptables -t nat -A POSTROUTING -p tcp -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE \
               --to-ports 31000-31009";
    let (sandbox, _daemon, _services) = world(&format!("{BRIDGE}{nat}"));
    // Fewer than ports: Linux 6.1 does not use the port of a closed connection again for two minutes.
    for _ in 0..8 {
        let answer = ask(&sandbox, BOX, Transport::Tcp, (OUTSIDE, HOST_PORT))
            .expect("the reply belongs to the sender");
        assert_eq!(answer.client.ip(), IpAddr::V4(HOST), "it is translated");
        assert!((31000..=31009).contains(&answer.client.port()), "{}", answer.client);
        // The same port is still the container's for all other peers.
        expect(&sandbox, Netns::Outside, (HOST, PORT), "a");
    }
    assert_eq!(sandbox.ok(&["drops", "a"]).lines().count(), 1, "nothing is dropped");
}

#[test]
fn connection_of_the_host_outlives_the_change_of_its_ports_owner() {
    for to in [IpAddr::V4(OUTSIDE), OUTSIDE6.into()] {
        let sandbox = Sandbox::new();
        let _daemon = sandbox.daemon();
        let listener = sandbox.inside(Netns::Outside, || TcpListener::bind((to, 9000))).expect("free");
        // The port is one of the managed ones, as of a daemon of the host that was started before portmap.
        sandbox.sh(
            Netns::Host,
            "sysctl -qw net.ipv4.ip_local_port_range='31500 31501' net.ipv4.ip_local_reserved_ports=",
        );
        let mut client = sandbox.inside(Netns::Host, || TcpStream::connect((to, 9000))).expect("connected");
        sandbox.sh(Netns::Host, "sysctl -qw net.ipv4.ip_local_port_range='50000 60000'");
        let (mut server, peer) = listener.accept().expect("a connection");
        let ports = peer.port().to_string();
        sandbox.ok(&["add", "a", "--ports", &ports]);
        let _service = Service::both(&sandbox, A, peer.port(), "a");
        client.set_read_timeout(Some(Duration::from_secs(9))).expect("set");
        // The peer speaks first: nothing of the host has passed since the container owns the port.
        server.write_all(b"x").expect("sent");
        client.read_exact(&mut [0]).expect("the connection is the host's");
        client.write_all(b"y").expect("sent");
        server.read_exact(&mut [0]).expect("it lives in both directions");
        // The container cannot use the same ends meanwhile; for all other peers the port is its own.
        let ends = format!("--from a --sport {ports} --to {}", SocketAddr::from((to, 9000)));
        let explained = sandbox.json(&[&["explain"][..], &ends.split(' ').collect::<Vec<_>>()].concat());
        assert_eq!(explained["agrees"], true, "{explained}");
        assert_eq!(explained["reason"], "host_connection", "{explained}");
        expect(
            &sandbox,
            Netns::Outside,
            (if to.is_ipv4() { IpAddr::V4(HOST) } else { HOST6.into() }, peer.port()),
            "a",
        );
        // It also lives when the daemon rewrites the port map.
        sandbox.ok(&["update", "a", "--ports", &format!("{ports},31600")]);
        sandbox.ok(&["doctor", "--repair"]);
        server.write_all(b"x").expect("sent");
        client.read_exact(&mut [0]).expect("the connection is still the host's");
    }
}

#[test]
fn connection_through_nat_outlives_the_change_of_its_ports_owner() {
    let sandbox = Sandbox::new();
    let nat = "iptables -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE";
    sandbox.sh(Netns::Host, &format!("set -e\n{BRIDGE}{nat}"));
    let _daemon = sandbox.daemon();
    let (tcp, udp) = sandbox.inside(Netns::Outside, || {
        (TcpListener::bind((OUTSIDE, 9000)).expect("free"), UdpSocket::bind((OUTSIDE, 9000)).expect("free"))
    });
    // Masquerading keeps a port that is free.
    sandbox.sh(BOX, "sysctl -qw net.ipv4.ip_local_port_range='31005 31006'");
    let mut by_tcp = sandbox.inside(BOX, || TcpStream::connect((OUTSIDE, 9000))).expect("connected");
    let by_udp = sandbox.inside(BOX, || UdpSocket::bind(("172.17.0.2", 31007))).expect("free");
    by_udp.connect((OUTSIDE, 9000)).expect("connected");
    by_udp.send(b"x").expect("sent");
    let (mut server, tcp_peer) = tcp.accept().expect("a connection");
    let (_, udp_peer) = udp.recv_from(&mut [0; 8]).expect("a datagram");
    assert_eq!((tcp_peer.ip(), udp_peer), (IpAddr::V4(HOST), (HOST, 31007).into()), "translated");
    by_tcp.set_read_timeout(Some(Duration::from_secs(9))).expect("set");
    by_udp.set_read_timeout(Some(Duration::from_secs(9))).expect("set");
    let mut speak_first = || {
        // Nothing has passed from the guest of the bridge since the container owns the ports.
        server.write_all(b"x").expect("sent");
        by_tcp.read_exact(&mut [0]).expect("the connection is the guest's");
        udp.send_to(b"y", udp_peer).expect("sent");
        by_udp.recv(&mut [0; 8]).expect("the datagram is the guest's");
    };
    sandbox.ok(&["add", "a", "--ports", "31000-31006"]);
    // One port by an update.
    sandbox.ok(&["update", "a", "--ports", "31000-31009"]);
    speak_first();
    let _service = Service::both(&sandbox, A, 31007, "a");
    expect(&sandbox, Netns::Outside, (HOST, 31007), "a");
    speak_first();
}

/// The host tracks a client's datagrams to a port that no process has. They are the container's as soon as it owns the
/// port.
#[test]
fn datagrams_before_a_container_owns_the_port_are_no_connection_of_the_hosts() {
    let sandbox = Sandbox::new();
    let nat = "iptables -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE";
    sandbox.sh(Netns::Host, &format!("set -e\n{BRIDGE}{nat}"));
    let _daemon = sandbox.daemon();
    let client =
        sandbox.inside(Netns::Outside, || UdpSocket::bind((OUTSIDE, 7777))).expect("the port is free");
    client.connect((HOST, PORT)).expect("connected");
    client.set_read_timeout(Some(Duration::from_secs(9))).expect("set");
    client.send(b"x").expect("sent");
    let refused = client.recv(&mut [0; 64]).expect_err("no process answers");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    sandbox.ok(&["add", "a", "--ports", "31000-31009"]);
    let _service = Service::both(&sandbox, A, PORT, "a");
    client.send(b"x").expect("sent");
    client.recv(&mut [0; 64]).expect("the container answers");
}

/// The host's stack answers packets that the programs leave to it because they cannot be parsed, from any port. Such
/// an answer is no connection of the host's.
#[test]
fn answers_of_the_host_to_forged_packets_take_no_port_away() {
    let (sandbox, _daemon, _services) = world("");
    let listener = sandbox.inside(A, || TcpListener::bind((HOST6, 31001))).expect("free");
    let mut client =
        sandbox.inside(Netns::Outside, || TcpStream::connect((HOST6, 31001))).expect("connected");
    let (mut server, peer) = listener.accept().expect("a connection");
    let socket = sandbox.inside(Netns::Outside, || PacketSocket::open("eth0"));
    let frame = with_many_headers(SocketAddr::from((OUTSIDE6, peer.port())), (HOST6, 31001).into());
    let answers = || -> u64 {
        let snmp = sandbox.sh(Netns::Host, "cat /proc/net/snmp");
        let values = snmp.lines().filter(|line| line.starts_with("Tcp:")).nth(1).expect("counters");
        values.split_whitespace().nth(14).expect("OutRsts").parse().expect("a number")
    };
    let before = answers();
    for _ in 0..3 {
        socket.send(&frame);
    }
    wait::until("the host to answer the forged packets", || answers() >= before + 3);
    client.set_read_timeout(Some(Duration::from_secs(9))).expect("set");
    server.set_read_timeout(Some(Duration::from_secs(9))).expect("set");
    for _ in 0..3 {
        client.write_all(b"x").expect("sent");
        server.read_exact(&mut [0]).expect("the connection is still the container's");
        server.write_all(b"y").expect("sent");
        client.read_exact(&mut [0]).expect("it lives in both directions");
    }
}

/// A TCP segment that opens a connection, behind more IPv6 extension headers than the programs follow.
fn with_many_headers(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    const HEADERS: usize = 7;
    let (IpAddr::V6(source), IpAddr::V6(destination)) = (from.ip(), to.ip()) else { panic!("IPv6") };
    let mut segment = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    // Sequence number, offset 5, SYN, window.
    segment.extend([0, 0, 0, 9, 0, 0, 0, 0, 0x50, 0x02, 0x40, 0, 0, 0, 0, 0]);
    let pseudo = [&source.octets()[..], &destination.octets(), &[0, 0, 0, 20, 0, 0, 0, 6], &segment].concat();
    let sum: u32 = pseudo.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).expect("folded twice");
    segment[16..18].copy_from_slice(&checksum.to_be_bytes());
    let length = u16::try_from(8 * HEADERS + segment.len()).expect("short");
    let mut frame = [&HOST_MAC[..], &OUTSIDE_MAC, &[0x86, 0xdd, 0x60, 0, 0, 0]].concat();
    frame.extend(length.to_be_bytes());
    // Destination options, hop limit.
    frame.extend([60, 64]);
    frame.extend(source.octets());
    frame.extend(destination.octets());
    for number in 1..=HEADERS {
        // The next header, and padding (PadN).
        frame.extend([if number == HEADERS { 6 } else { 60 }, 0, 1, 4, 0, 0, 0, 0]);
    }
    frame.extend(segment);
    frame
}
