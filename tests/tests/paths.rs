//! Every packet path, with real sockets: the receiver, the source address that it sees, and the counters.

#[path = "paths/wire_packets.rs"]
mod wire_packets;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use portmap_tests::{
    sandbox::{FAR, FAR6, HOST, HOST6, Netns, OUTSIDE, OUTSIDE6, Sandbox},
    service::{Service, Transport, any, ask, ask_from, expect_no_reply, send_from},
    wait,
};

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LOCALHOST6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
/// Another address of 127.0.0.0/8.
const ALSO_LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 9, 8, 7));
/// The shared addresses; the last one is the first as an IPv4-mapped address.
const SHARED: [IpAddr; 3] = [IpAddr::V4(HOST), IpAddr::V6(HOST6), IpAddr::V6(HOST.to_ipv6_mapped())];
/// Every address by which the host and its containers reach each other.
const LOCAL: [IpAddr; 7] = [
    SHARED[0],
    SHARED[1],
    SHARED[2],
    LOCALHOST,
    ALSO_LOCAL,
    LOCALHOST6,
    IpAddr::V6(Ipv4Addr::LOCALHOST.to_ipv6_mapped()),
];
const TRANSPORTS: [Transport; 2] = [Transport::Tcp, Transport::Udp];

const A: Netns<'_> = Netns::Container("a");
const B: Netns<'_> = Netns::Container("b");

/// Static ports of the two containers, a port of the host, and a managed port without an owner.
const A_PORT: u16 = 31000;
const B_PORT: u16 = 31010;
const HOST_PORT: u16 = 8080;
const FREE_PORT: u16 = 31999;
/// Offset of the port of a service that has an IPv4 socket only.
const IPV4_ONLY: u16 = 8;

/// A daemon with containers `a` and `b`, and services everywhere.
struct World {
    _services: Vec<[Service; 2]>,
    _daemon: portmap_tests::daemon::Daemon,
    sandbox: Sandbox,
}

impl World {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        let daemon = sandbox.daemon();
        sandbox.ok(&["add", "a", "--ports", "31000-31009"]);
        sandbox.ok(&["add", "b", "--ports", "31010-31019"]);
        let services = [
            (A, A_PORT, "a"),
            (B, B_PORT, "b"),
            (Netns::Host, HOST_PORT, "host"),
            (Netns::Outside, HOST_PORT, "outside"),
            (Netns::Outside, A_PORT, "outside"),
        ];
        let services =
            services.into_iter().flat_map(|(netns, port, name)| serve(&sandbox, netns, port, name)).collect();
        Self { _services: services, _daemon: daemon, sandbox }
    }

    /// Sends requests and checks the responder, that both ends agree on the client's address, and the
    /// client's port range.
    fn expect(&self, from: Netns<'_>, to: (impl Into<IpAddr>, u16), who: &str, ports: (u16, u16)) {
        let to = SocketAddr::from(to);
        let mut services = vec![to];
        if to.ip().to_canonical().is_ipv4() {
            services.push((to.ip(), to.port() + IPV4_ONLY).into());
        }
        for to in services {
            for transport in TRANSPORTS {
                let what = format!("{transport:?} {from:?} to {to}");
                let answer =
                    ask(&self.sandbox, from, transport, to).unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_eq!(answer.from, who, "{what}");
                assert_eq!(answer.client, answer.own, "{what}");
                let port = answer.client.port();
                assert!((ports.0..=ports.1).contains(&port), "{what} from {}", answer.client);
            }
        }
    }
}

/// Starts the services of a namespace: dual-stack at the port, IPv4 only at an offset.
fn serve(sandbox: &Sandbox, netns: Netns<'_>, port: u16, name: &str) -> [[Service; 2]; 2] {
    let plain = (Ipv4Addr::UNSPECIFIED, port + IPV4_ONLY);
    [
        Service::both(sandbox, netns, port, name),
        TRANSPORTS.map(|transport| Service::start_on(sandbox, netns, transport, plain, name)),
    ]
}

/// Ephemeral ports of the host and of the two containers.
const HOST_RANGE: (u16, u16) = (50000, 60000);
const A_RANGE: (u16, u16) = (61440, 62463);
const B_RANGE: (u16, u16) = (62464, 63487);
const ANY: (u16, u16) = (1024, 65535);

#[test]
fn outside_reaches_the_port_owner() {
    let world = World::new();
    for address in SHARED {
        world.expect(Netns::Outside, (address, A_PORT), "a", ANY);
        world.expect(Netns::Outside, (address, B_PORT), "b", ANY);
        world.expect(Netns::Outside, (address, HOST_PORT), "host", ANY);
    }
}

#[test]
fn outside_gets_the_refusal_of_the_port_owner() {
    let world = World::new();
    // Without a listener, the container's stack refuses for its port, and the host's for a port without
    // an owner.
    for address in SHARED {
        for port in [A_PORT + 1, FREE_PORT] {
            let error = expect_no_reply(&world.sandbox, Netns::Outside, Transport::Tcp, (address, port));
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{address} {port}");
        }
    }
    let stats = world.sandbox.json(&["stats", "a"]);
    assert_eq!(stats["traffic"]["rx_outside"]["packets"], SHARED.len());
    assert_eq!(stats["traffic"]["tx_outside"]["packets"], SHARED.len());
}

#[test]
fn container_to_outside_from_ephemeral_ports() {
    let world = World::new();
    for address in [IpAddr::V4(OUTSIDE), OUTSIDE6.into(), OUTSIDE.to_ipv6_mapped().into()] {
        world.expect(A, (address, HOST_PORT), "outside", A_RANGE);
        world.expect(B, (address, HOST_PORT), "outside", B_RANGE);
        // A port outside that equals an own port inside is still outside.
        world.expect(A, (address, A_PORT), "outside", A_RANGE);
    }
}

#[test]
fn container_to_outside_beyond_the_gateway() {
    let world = World::new();
    world.expect(A, (FAR, HOST_PORT), "outside", A_RANGE);
    world.expect(A, (FAR6, HOST_PORT), "outside", A_RANGE);
}

#[test]
fn container_to_outside_from_a_static_port() {
    let world = World::new();
    for address in [IpAddr::V4(OUTSIDE), OUTSIDE6.into()] {
        let answer = ask_from(&world.sandbox, A, A_PORT + 5, (address, HOST_PORT)).expect("an answer");
        assert_eq!(answer.client.port(), A_PORT + 5);
    }
}

#[test]
fn container_to_container_by_every_local_address() {
    let world = World::new();
    for address in LOCAL {
        world.expect(A, (address, B_PORT), "b", A_RANGE);
        world.expect(B, (address, A_PORT), "a", B_RANGE);
    }
}

#[test]
fn container_to_host_by_every_local_address() {
    let world = World::new();
    for address in LOCAL {
        world.expect(A, (address, HOST_PORT), "host", A_RANGE);
    }
}

#[test]
fn host_to_container_by_every_local_address() {
    let world = World::new();
    for address in LOCAL {
        world.expect(Netns::Host, (address, A_PORT), "a", HOST_RANGE);
        world.expect(Netns::Host, (address, B_PORT), "b", HOST_RANGE);
    }
}

#[test]
fn container_to_itself_stays_inside() {
    let world = World::new();
    for address in LOCAL {
        world.expect(A, (address, A_PORT), "a", A_RANGE);
    }
    let traffic = &world.sandbox.json(&["stats", "a"])["traffic"];
    for path in ["rx_outside", "rx_host", "rx_container", "tx_outside", "tx_host", "tx_container"] {
        assert_eq!(traffic[path]["packets"], 0, "{path}");
    }
    assert_ne!(traffic["own"]["packets"], 0);
}

#[test]
fn host_to_outside_is_undisturbed() {
    let world = World::new();
    world.expect(Netns::Host, (OUTSIDE, HOST_PORT), "outside", HOST_RANGE);
    world.expect(Netns::Host, (OUTSIDE6, HOST_PORT), "outside", HOST_RANGE);
    for address in LOCAL {
        world.expect(Netns::Host, (address, HOST_PORT), "host", HOST_RANGE);
    }
}

#[test]
fn rp_filter_of_every_mode_is_supported() {
    let world = World::new();
    for (number, mode) in ["0", "1", "2"].into_iter().enumerate() {
        let set = "for f in all default uplink lo pm1 pm2; do echo MODE > /proc/sys/net/ipv4/conf/$f/rp_filter; done";
        world.sandbox.sh(Netns::Host, &set.replace("MODE", mode));
        // A new container inherits the setting.
        let (name, port) = (format!("c{mode}"), 31020 + 10 * u16::try_from(number).expect("few"));
        world.sandbox.ok(&[
            "add",
            &name,
            "--ports",
            &format!("{port}-{}", port + 9),
            "--ephemeral-ports-per-container",
            "16",
        ]);
        let netns = Netns::Container(&name);
        let _services = serve(&world.sandbox, netns, port, &name);
        for address in LOCAL {
            world.expect(A, (address, HOST_PORT), "host", A_RANGE);
            world.expect(Netns::Host, (address, port), &name, HOST_RANGE);
            world.expect(A, (address, port), &name, A_RANGE);
            world.expect(netns, (address, A_PORT), "a", ANY);
        }
        world.expect(Netns::Outside, (HOST, port), &name, ANY);
    }
}

#[test]
fn datagrams_of_every_size_arrive() {
    let world = World::new();
    let receivers = [A, Netns::Outside].map(|netns| {
        let receiver = world.sandbox.inside(netns, || UdpSocket::bind((Ipv6Addr::UNSPECIFIED, A_PORT + 2)));
        let receiver = receiver.expect("the port is free");
        receiver.set_read_timeout(Some(wait::LIMIT)).expect("a socket");
        receiver
    });
    // A loopback device carries large packets; on all other paths a datagram above the MTU of 1500 is
    // fragmented.
    for (netns, to, receiver) in [
        (Netns::Host, SHARED, &receivers[0]),
        (B, SHARED, &receivers[0]),
        (A, SHARED, &receivers[0]),
        (Netns::Outside, SHARED, &receivers[0]),
        (A, [OUTSIDE.into(), OUTSIDE6.into(), FAR6.into()], &receivers[1]),
    ] {
        for (to, size) in to.into_iter().flat_map(|to| [1, 1452, 1473, 4000, 60_000].map(|size| (to, size))) {
            let (to, payload) = (SocketAddr::new(to, A_PORT + 2), vec![7; size]);
            world.sandbox.inside(netns, || {
                UdpSocket::bind(any(to, 0)).expect("a port").send_to(&payload, to).expect("sent");
            });
            let mut buffer = vec![0; 65_536];
            let length = receiver
                .recv(&mut buffer)
                .unwrap_or_else(|error| panic!("{size} bytes from {netns:?} to {to}: {error}"));
            assert_eq!(buffer[..length], payload, "{size} bytes from {netns:?} to {to}");
        }
    }
    // The host received no copies.
    assert_eq!(
        world.sandbox.json(&["stats"])["host"]["passed"]["uplink"]["fragment"],
        serde_json::Value::Null
    );
}

#[test]
fn stream_arrives_whole_on_every_path() {
    use std::{
        io::{Read as _, Write as _},
        net::{TcpListener, TcpStream},
        thread,
    };

    const LENGTH: usize = 4 << 20;
    let world = World::new();
    let port = A_PORT + 3;
    let listener = world
        .sandbox
        .inside(A, || TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)))
        .expect("the port is free");
    let pattern = |offset: usize| u8::try_from(offset % 251).expect("less than 256");
    let paths = [Netns::Outside, Netns::Host, B, A].into_iter().flat_map(|netns| {
        let addresses = if netns == Netns::Outside { &SHARED[..] } else { &LOCAL[..] };
        addresses.iter().map(move |address| (netns, *address))
    });
    for (netns, address) in paths {
        let mut sender =
            world.sandbox.inside(netns, || TcpStream::connect((address, port))).expect("connected");
        let (mut receiver, _) = listener.accept().expect("a connection");
        let sending = thread::spawn(move || {
            let bytes: Vec<u8> = (0..LENGTH).map(pattern).collect();
            sender.write_all(&bytes).expect("sent");
        });
        let mut bytes = Vec::new();
        receiver.read_to_end(&mut bytes).expect("received");
        sending.join().expect("sent");
        assert_eq!(bytes.len(), LENGTH, "{netns:?} by {address}");
        assert!(
            bytes.iter().enumerate().all(|(offset, byte)| *byte == pattern(offset)),
            "{netns:?} by {address}"
        );
    }
}

#[test]
fn source_port_not_owned_is_dropped_and_counted() {
    let world = World::new();
    let sandbox = &world.sandbox;
    for (from, to) in [
        (B_PORT + 1, (IpAddr::V4(OUTSIDE), HOST_PORT)),
        (FREE_PORT, (OUTSIDE6.into(), HOST_PORT)),
        (HOST_PORT, (HOST.into(), B_PORT)),
        (HOST_PORT, (HOST6.into(), B_PORT)),
        (B_PORT + 1, (LOCALHOST, HOST_PORT)),
        (B_PORT + 1, (LOCALHOST6, HOST_PORT)),
    ] {
        let before = sandbox.dropped("a", "source_port");
        send_from(sandbox, A, from, to);
        wait::until("the drop to be counted", || sandbox.dropped("a", "source_port") == before + 1);
    }
    // No other namespace has received any of these packets.
    assert_eq!(sandbox.json(&["stats", "b"])["traffic"]["rx_container"]["packets"], 0);
    assert_eq!(sandbox.json(&["stats", "a"])["traffic"]["tx_host"]["packets"], 0);
}

#[test]
fn port_of_deleted_container_returns_to_host() {
    let world = World::new();
    world.expect(Netns::Outside, (HOST, B_PORT), "b", ANY);
    world.sandbox.ok(&["del", "b"]);
    let error = expect_no_reply(&world.sandbox, Netns::Outside, Transport::Tcp, (HOST, B_PORT));
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    let _services = serve(&world.sandbox, Netns::Host, B_PORT, "host");
    world.expect(Netns::Outside, (HOST, B_PORT), "host", ANY);
    world.expect(A, (LOCALHOST, B_PORT), "host", A_RANGE);
}
