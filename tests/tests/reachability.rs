//! `--loopback`, `--host-access` and the listener, with real sockets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use portmap_tests::{
    sandbox::{DAEMON_FLAGS, HOST, HOST6, Netns, OUTSIDE, Sandbox, binary},
    service::{Service, Transport, ask, expect_no_reply},
    wait,
};

const A: Netns<'_> = Netns::Container("a");
const B: Netns<'_> = Netns::Container("b");
const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LOCALHOST6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
const ALSO_LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 9, 8, 7));
const SHARED: [IpAddr; 2] = [IpAddr::V4(HOST), IpAddr::V6(HOST6)];
const TRANSPORTS: [Transport; 2] = [Transport::Tcp, Transport::Udp];

const A_PORT: u16 = 31000;
const B_PORT: u16 = 31010;

/// Starts a daemon with these flags, and containers `a` (31000-31009) and `b` (31010-31019).
fn world(flags: &[&str]) -> (Sandbox, portmap_tests::daemon::Daemon) {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon_with(&[&DAEMON_FLAGS[..], flags].concat());
    sandbox.ok(&["add", "a", "--ports", "31000-31009"]);
    sandbox.ok(&["add", "b", "--ports", "31010-31019"]);
    (sandbox, daemon)
}

#[track_caller]
fn expect(sandbox: &Sandbox, from: Netns<'_>, transport: Transport, to: (IpAddr, u16), who: &str) {
    let to = SocketAddr::from(to);
    let answer =
        ask(sandbox, from, transport, to).unwrap_or_else(|error| panic!("{from:?} to {to}: {error}"));
    assert_eq!(answer.from, who, "{transport:?} {from:?} to {to}");
}

fn explained(sandbox: &Sandbox, question: &str) -> String {
    let mut arguments = vec!["explain"];
    arguments.extend(question.split_whitespace());
    let answer = sandbox.json(&arguments);
    assert_eq!(answer["agrees"], true, "{question}: {answer}");
    format!("{} {}", answer["verdict"].as_str().expect("text"), answer["reason"].as_str().unwrap_or("-"))
}

#[test]
fn loopback_private_is_the_containers_own() {
    let (sandbox, daemon) = world(&[]);
    sandbox.ok(&["update", "b", "--loopback", "private"]);
    let services = [
        Service::both(&sandbox, B, B_PORT, "b"),
        Service::both(&sandbox, A, A_PORT, "a"),
        Service::both(&sandbox, Netns::Host, 8080, "host"),
    ];
    for transport in TRANSPORTS {
        for address in [LOCALHOST, ALSO_LOCAL, LOCALHOST6] {
            for other in [A, Netns::Host] {
                expect_no_reply(&sandbox, other, transport, (address, B_PORT));
            }
            for port in [A_PORT, 8080] {
                expect_no_reply(&sandbox, B, transport, (address, port));
            }
            expect(&sandbox, B, transport, (address, B_PORT), "b");
            expect(&sandbox, A, transport, (address, 8080), "host");
            expect(&sandbox, Netns::Host, transport, (address, A_PORT), "a");
        }
        for address in SHARED {
            expect(&sandbox, A, transport, (address, B_PORT), "b");
            expect(&sandbox, B, transport, (address, A_PORT), "a");
            expect(&sandbox, B, transport, (address, 8080), "host");
            expect(&sandbox, Netns::Host, transport, (address, B_PORT), "b");
            expect(&sandbox, Netns::Outside, transport, (address, B_PORT), "b");
        }
    }
    for (question, verdict) in [
        ("--from b --to 127.0.0.1:31000", "own -"),
        ("--from a --to 127.0.0.1:31010", "own -"),
        ("--from host --to 127.0.0.1:31010", "continue loopback"),
        ("--from b --to 10.0.0.1:31000", "to_container -"),
    ] {
        assert_eq!(explained(&sandbox, question), verdict, "{question}");
    }
    // A container's own setting survives restarts, whatever the daemon's flag says.
    let loopback = |name: &str| sandbox.json(&["show", name])["loopback"].clone();
    assert_eq!((loopback("a"), loopback("b")), ("shared".into(), "private".into()));
    daemon.stop();
    let daemon = sandbox.daemon_with(&[&DAEMON_FLAGS[..], &["--loopback", "private"]].concat());
    assert_eq!((loopback("a"), loopback("b")), ("private".into(), "private".into()));
    expect_no_reply(&sandbox, Netns::Host, Transport::Tcp, (LOCALHOST, A_PORT));
    sandbox.ok(&["update", "b", "--loopback", "shared"]);
    daemon.stop();
    let _daemon = sandbox.daemon();
    assert_eq!((loopback("a"), loopback("b")), ("shared".into(), "shared".into()));
    expect(&sandbox, Netns::Host, Transport::Tcp, (LOCALHOST, A_PORT), "a");
    expect(&sandbox, A, Transport::Tcp, (LOCALHOST, B_PORT), "b");
    sandbox.ok(&["doctor"]);
    drop(services);
}

#[test]
fn loopback_is_a_choice_of_each_container() {
    let (sandbox, daemon) = world(&["--loopback", "private"]);
    let program = binary("portmap");
    let command = ["--", program.to_str().expect("a path"), "show", "job"];
    for scope in ["shared", "private"] {
        let shown = sandbox.ok(&[&["run", "--name", "job", "--loopback", scope], &command[..]].concat());
        assert!(shown.contains(&format!("loopback           {scope}\n")), "{shown}");
    }
    sandbox.ok(&["add", "shared", "--ports", "31020", "--loopback", "shared"]);
    sandbox.ok(&["add", "private", "--ports", "31030", "--loopback", "private"]);
    let services = [
        Service::both(&sandbox, Netns::Container("shared"), 31020, "shared"),
        Service::both(&sandbox, Netns::Container("private"), 31030, "private"),
        Service::both(&sandbox, Netns::Host, 8080, "host"),
    ];
    let check = || {
        for transport in TRANSPORTS {
            for address in [LOCALHOST, LOCALHOST6] {
                expect(&sandbox, Netns::Container("shared"), transport, (address, 8080), "host");
                expect(&sandbox, Netns::Container("private"), transport, (address, 31030), "private");
                expect(&sandbox, Netns::Host, transport, (address, 31020), "shared");
                for to in [31020, 8080] {
                    expect_no_reply(&sandbox, Netns::Container("private"), transport, (address, to));
                }
                for from in [Netns::Container("shared"), Netns::Host, A] {
                    expect_no_reply(&sandbox, from, transport, (address, 31030));
                }
            }
        }
    };
    check();
    daemon.kill();
    let _daemon = sandbox.daemon();
    check();
    sandbox.ok(&["doctor"]);
    drop(services);
}

#[test]
fn loopback_private_source_cannot_leave_by_eth0() {
    use portmap_tests::{frames::Frame, packet_socket::PacketSocket, sandbox::HOST_MAC};
    let (sandbox, _daemon) = world(&["--loopback", "private"]);
    let socket = sandbox.inside(A, || PacketSocket::open("eth0"));
    let good = Frame { from_mac: HOST_MAC, to_mac: HOST_MAC, ..Frame::udp((HOST, A_PORT), (HOST, B_PORT)) };
    let local = Ipv4Addr::LOCALHOST;
    let cases = [(local, local, B_PORT), (HOST, local, B_PORT), (local, HOST, B_PORT), (local, local, 8080)];
    for (number, (from, to, to_port)) in (1..).zip(cases) {
        socket.send(&Frame { from, to, to_port, ..good.clone() }.bytes());
        wait::until("the drop to be counted", || sandbox.dropped("a", "loopback") == number);
    }
    let receiver = sandbox.inside(B, || UdpSocket::bind("0.0.0.0:31010")).expect("the port is free");
    receiver.set_read_timeout(Some(wait::LIMIT)).expect("a socket");
    socket.send(&good.bytes());
    assert_eq!(receiver.recv_from(&mut [0; 64]).expect("received").1, (HOST, A_PORT).into());
}

#[test]
fn host_access_reaches_open_ports_only() {
    let (sandbox, daemon) = world(&["--host-access", "ports", "53"]);
    let services = [
        Service::both(&sandbox, Netns::Host, 53, "dns"),
        Service::both(&sandbox, Netns::Host, 8080, "host"),
        Service::both(&sandbox, Netns::Outside, 8080, "outside"),
        Service::both(&sandbox, A, A_PORT, "a"),
        Service::both(&sandbox, B, B_PORT, "b"),
    ];
    for transport in TRANSPORTS {
        for address in [LOCALHOST, LOCALHOST6, SHARED[0], SHARED[1]] {
            let before = sandbox.dropped("a", "host_access");
            expect_no_reply(&sandbox, A, transport, (address, 8080));
            assert!(sandbox.dropped("a", "host_access") > before, "{transport:?} to {address}");
            expect(&sandbox, A, transport, (address, 53), "dns");
            // Replies to connections from the host pass, and so does traffic between
            // containers.
            expect(&sandbox, Netns::Host, transport, (address, A_PORT), "a");
            expect(&sandbox, A, transport, (address, B_PORT), "b");
        }
        expect(&sandbox, A, transport, (OUTSIDE.into(), 8080), "outside");
    }
    // A reply passes only to the port that sent the request, from the port that received it.
    let host = sandbox.inside(Netns::Host, || UdpSocket::bind((HOST, 9000))).expect("the port is free");
    let asked = sandbox.inside(A, || UdpSocket::bind((HOST, 31001))).expect("the port is free");
    let other = sandbox.inside(A, || UdpSocket::bind((HOST, 31002))).expect("the port is free");
    for socket in [&host, &asked] {
        socket.set_read_timeout(Some(wait::LIMIT)).expect("a socket");
    }
    let refused = sandbox.dropped("a", "host_access");
    asked.send_to(b"early", (HOST, 9000)).expect("sent");
    wait::until("an unsolicited packet to be dropped", || sandbox.dropped("a", "host_access") == refused + 1);
    host.send_to(b"question", (HOST, 31001)).expect("sent");
    asked.recv_from(&mut [0; 64]).expect("received");
    other.send_to(b"forged", (HOST, 9000)).expect("sent");
    wait::until("the forged answer to be dropped", || sandbox.dropped("a", "host_access") == refused + 2);
    asked.send_to(b"answer", (HOST, 9000)).expect("sent");
    let mut answer = [0; 64];
    let (length, from) = host.recv_from(&mut answer).expect("received");
    assert_eq!((&answer[..length], from), (&b"answer"[..], (HOST, 31001).into()));
    for (question, verdict) in [
        ("--from a --to 127.0.0.1:8080", "drop host_access"),
        ("--from a --to 10.0.0.1:53", "to_host -"),
        ("--from a --to 10.0.0.1:31010", "to_container -"),
    ] {
        assert_eq!(explained(&sandbox, question), verdict, "{question}");
    }
    daemon.stop();
    let daemon = sandbox.daemon_with(&[&DAEMON_FLAGS[..], &["--host-access", "none"]].concat());
    expect_no_reply(&sandbox, A, Transport::Udp, (SHARED[0], 53));
    daemon.stop();
    let _daemon = sandbox.daemon();
    expect(&sandbox, A, Transport::Tcp, (LOCALHOST, 8080), "host");
    sandbox.ok(&["doctor"]);
    drop(services);
}

#[test]
fn listener_is_closed_to_containers() {
    let sandbox = Sandbox::new();
    let flags = |more: &[&'static str]| [&DAEMON_FLAGS[..], more].concat();
    let reaches = |address: &str| {
        sandbox.inside(A, || {
            let to: SocketAddr = address.parse().expect("an address");
            std::net::TcpStream::connect_timeout(&to, std::time::Duration::from_millis(500)).is_ok()
        })
    };
    let daemon = sandbox.daemon_with(&flags(&["--listen", "[::]:5051"]));
    sandbox.ok(&["add", "a", "--ports", "31000-31009"]);
    for address in ["127.0.0.1:5051", "127.3.2.1:5051", "10.0.0.1:5051", "[::1]:5051"] {
        let before = sandbox.dropped("a", "listener");
        assert!(!reaches(address), "{address}");
        assert!(sandbox.dropped("a", "listener") > before, "{address}");
    }
    assert_eq!(explained(&sandbox, "--from a --to 10.0.0.1:5051"), "drop listener");
    daemon.stop();
    // For containers, this port belongs to another process.
    let daemon = sandbox.daemon_with(&flags(&["--listen", "127.0.0.1:5051"]));
    assert!(!reaches("127.0.0.1:5051"));
    assert_eq!(explained(&sandbox, "--from a --to 10.0.0.1:5051"), "to_host -");
    daemon.stop();
    let _daemon = sandbox.daemon_with(&flags(&["--listen", "127.0.0.1:5051", "--listen-to-containers"]));
    assert!(reaches("127.0.0.1:5051"));
}
