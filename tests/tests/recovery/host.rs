//! Reconciliation after changes of the host.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    process::Stdio,
};

use portmap::{
    kernel::{
        netlink::Netlink,
        programs::{self, AttachMode, AttachPoint},
    },
    paths::Pins,
};
use portmap_common::names::PROG_UPLINK_INGRESS;
use portmap_tests::{
    sandbox::{FAR, HOST, HOST6, Netns, OUTSIDE, OUTSIDE6, Sandbox},
    service::{Service, Transport, ask},
    wait,
};
use serde_json::json;

use crate::{A, check_traffic, is_healthy, served};

/// Replaces an address of the uplink, together with the default route that depends on it.
fn readdress(sandbox: &Sandbox, old: Ipv4Addr, new: Ipv4Addr) {
    // The kernel may remove the new address with the old one, to which it is secondary.
    sandbox.sh(
        Netns::Host,
        &format!(
            "ip address add {new}/24 dev uplink; ip address del {old}/24 dev uplink; \
             ip address replace {new}/24 dev uplink; ip route replace default via {OUTSIDE}"
        ),
    );
}

#[test]
fn host_change_reaches_containers() {
    let (sandbox, daemon, _services) = served(&[]);
    let expect = |what: &str, script: &str| {
        wait::until(what, || {
            sandbox.command(A, "sh").args(["-ec", script]).status().expect("a shell").success()
        });
        wait::until(what, || is_healthy(&sandbox));
    };
    // Another address, as DHCP may assign; the old default route disappears with the old address.
    let host = Ipv4Addr::new(10, 0, 0, 9);
    readdress(&sandbox, HOST, host);
    expect("the new address", "ip -4 address show dev eth0 | grep -q 10.0.0.9/24");
    check_traffic(&sandbox, host);
    // Another IPv6 address, while the old one is deprecated.
    sandbox.sh(
        Netns::Host,
        "ip address change 2001:db8:0:1::1/64 dev uplink preferred_lft 0 valid_lft 1000; \
         ip address add 2001:db8:0:1::9/64 dev uplink nodad",
    );
    expect("the new IPv6 address", "ip -6 address show dev eth0 | grep -q 2001:db8:0:1::9/64");
    expect("the deprecated one", &format!("ip -6 address show dev eth0 deprecated | grep -q {HOST6}/64"));
    let _outside = Service::start(&sandbox, Netns::Outside, Transport::Udp, 7001, "outside");
    ask(&sandbox, A, Transport::Udp, (OUTSIDE6, 7001)).expect("an answer");
    // Another MTU and another MAC address.
    sandbox.sh(Netns::Host, "ip link set uplink mtu 1400; ip link set uplink address 02:00:00:00:01:99");
    expect("the new MTU", "ip link show eth0 | grep -q 'mtu 1400'; ip link show lo | grep -q 'mtu 1400'");
    expect("the new MAC address", "ip link show eth0 | grep -q 02:00:00:00:01:99");
    // Peers that know the old one update their neighbour tables over time.
    sandbox.sh(Netns::Outside, "ip neigh flush dev eth0");
    check_traffic(&sandbox, host);
    // Another gateway.
    sandbox.sh(Netns::Outside, "ip address add 10.0.0.3/24 dev eth0");
    sandbox.sh(Netns::Host, "ip route replace default via 10.0.0.3");
    wait::until("the new gateway", || {
        let doctor = sandbox.portmap(&["doctor"]);
        doctor.status.success()
            && String::from_utf8_lossy(&doctor.stdout).contains("default gateway 10.0.0.3")
    });
    check_traffic(&sandbox, host);
    // Another name.
    sandbox.sh(Netns::Host, "ip link set uplink down; ip link set uplink name wan0; ip link set wan0 up");
    sandbox.sh(
        Netns::Host,
        "ip route replace default via 10.0.0.3; \
        ip -6 address add 2001:db8:0:1::9/64 dev wan0 nodad 2>/dev/null || true",
    );
    wait::until("the new name", || daemon.log().contains("of wan0"));
    wait::until("health", || is_healthy(&sandbox));
    check_traffic(&sandbox, host);
}

#[test]
fn netlink_overrun_causes_full_resync() {
    let (sandbox, daemon, _services) = served(&[]);
    daemon.pause();
    // Several times the capacity of the socket's receive buffer.
    sandbox.sh(
        Netns::Host,
        "for i in $(seq 1000); do echo address add 10.9.9.9/32 dev lo; echo address del 10.9.9.9/32 dev lo; done | \
         ip -batch -",
    );
    let (first, second) = (Ipv4Addr::new(10, 0, 0, 9), Ipv4Addr::new(10, 0, 0, 8));
    readdress(&sandbox, HOST, first);
    daemon.resume();
    let has = |address: Ipv4Addr| sandbox.sh(A, "ip -4 address show dev eth0").contains(&address.to_string());
    wait::until("the new address", || has(first));
    wait::until("the overrun to be logged", || daemon.log().contains("netlink event buffer overrun"));
    // The daemon still receives events.
    readdress(&sandbox, first, second);
    wait::until("the next address", || has(second));
    wait::until("health", || is_healthy(&sandbox));
    check_traffic(&sandbox, second);
}

#[test]
fn uplink_that_returns_is_attached_again() {
    let (sandbox, _daemon, _services) = served(&[]);
    sandbox.sh(Netns::Host, "ip link del uplink");
    // Local traffic continues.
    let answer = ask(&sandbox, Netns::Host, Transport::Udp, (Ipv4Addr::LOCALHOST, 31000)).expect("an answer");
    assert_eq!(answer.from, "a");
    assert!(!is_healthy(&sandbox));
    sandbox.sh(
        Netns::Host,
        "ip link add uplink address 02:00:00:00:01:01 type veth \
             peer name eth0 address 02:00:00:00:01:02 netns outside; \
         ip address add 10.0.0.1/24 dev uplink; ip address add 2001:db8:0:1::1/64 dev uplink nodad; \
         ip -n outside address add 10.0.0.2/24 dev eth0; ip link set uplink up; ip -n outside link set eth0 up; \
         ip route add default via 10.0.0.2",
    );
    wait::until("health", || is_healthy(&sandbox));
    check_traffic(&sandbox, HOST);
}

#[test]
fn uplink_without_carrier_is_kept() {
    let (sandbox, _daemon, _services) = served(&[]);
    let listener = sandbox.inside(Netns::Outside, || TcpListener::bind((OUTSIDE, 8080))).expect("free");
    let mut client = sandbox.inside(A, || TcpStream::connect((OUTSIDE, 8080))).expect("connected");
    let (mut server, _) = listener.accept().expect("a connection");
    let before = sandbox.inventory();
    sandbox.sh(Netns::Outside, "ip link set eth0 down");
    wait::until("no carrier", || sandbox.sh(Netns::Host, "ip link show uplink").contains("NO-CARRIER"));
    // Local traffic continues; doctor reports only the uplink.
    let answer = ask(&sandbox, Netns::Host, Transport::Udp, (HOST, 31000)).expect("an answer");
    assert_eq!(answer.from, "a");
    let doctor = sandbox.portmap(&["doctor"]);
    let found = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert_eq!(doctor.status.code(), Some(7), "{found}");
    assert!(found.matches("PROBLEM").count() == 1 && found.contains("uplink has no carrier"), "{found}");
    let sent = *b"sent without a carrier";
    client.write_all(&sent).expect("it waits");
    // The outside peer loses its IPv6 addresses with it.
    sandbox.sh(Netns::Outside, "ip link set eth0 up; ip address replace 2001:db8:0:1::2/64 dev eth0 nodad");
    wait::until("a carrier", || !sandbox.sh(Netns::Host, "ip link show uplink").contains("NO-CARRIER"));
    check_traffic(&sandbox, HOST);
    let mut received = sent.map(|_| 0);
    server.read_exact(&mut received).expect("received");
    assert_eq!(received, sent);
    sandbox.expect_inventory(&before, "with a carrier again");
}

#[test]
fn uplink_failover_moves_containers() {
    let (sandbox, daemon, _services) = served(&[]);
    sandbox.sh(
        Netns::Host,
        "ip link add second type veth peer name eth1 netns outside; \
         ip address add 10.0.1.1/24 dev second; ip -n outside address add 10.0.1.2/24 dev eth1; \
         ip link set second up; ip -n outside link set eth1 up; ip route add default via 10.0.1.2 metric 100",
    );
    let (first, second) = (HOST, Ipv4Addr::new(10, 0, 1, 1));
    let routes = [
        "ip route del default metric 0",
        "ip route add default via 10.0.0.2; ip route del default metric 100",
    ];
    let pins = Pins::new(sandbox.path("/sys/fs/bpf/portmap"));
    let is_attached = |interface: &str| {
        let (interface, attach_mode) = (interface.to_owned(), AttachMode::detect());
        let link = pins.link(&format!("if{}", sandbox.index(&interface)));
        let program = PROG_UPLINK_INGRESS;
        let hook = AttachPoint { interface, ingress: true, program, attach_mode, link };
        sandbox
            .inside(Netns::Host, || programs::is_attached(&Netlink::open()?, &pins, &hook))
            .expect("an answer")
    };
    let _outside = Service::start(&sandbox, Netns::Outside, Transport::Udp, 7001, "outside");
    for (route, host) in routes.into_iter().zip([second, first]) {
        sandbox.sh(Netns::Host, route);
        wait::until("the other address", || {
            sandbox.sh(A, "ip -4 address show dev eth0").contains(&host.to_string())
        });
        wait::until("health", || is_healthy(&sandbox));
        // Beyond the gateways it is the address of the present uplink, as for the host itself. The networks of
        // both cards stay reached by their own.
        for netns in [Netns::Host, A] {
            let seen = ask(&sandbox, netns, Transport::Udp, (FAR, 7001)).expect("an answer").client.ip();
            assert_eq!(seen, host, "{netns:?}");
        }
        check_traffic(&sandbox, first);
        assert!(is_attached("uplink") && is_attached("second"), "packets come by both");
    }
    assert!(daemon.log().contains("of second"), "{}", daemon.log());
}

#[test]
fn uplink_stays_with_a_second_default_route() {
    let (sandbox, _daemon, _services) = served(&[]);
    sandbox.sh(
        Netns::Host,
        "ip link add second type veth peer name peer; ip address add 198.51.100.1/24 dev second; \
         ip link set second up; ip link set peer up; \
         ip route del default; ip route add default via 10.0.0.2 metric 100; \
         ip route add default via 198.51.100.2 metric 50",
    );
    wait::until("health", || is_healthy(&sandbox));
    check_traffic(&sandbox, HOST);
    assert_eq!(sandbox.json(&["show", "a"])["ip"], json!(HOST.to_string()));
}

#[test]
fn event_flood_does_not_delay_host_changes() {
    let (sandbox, _daemon, _services) = served(&[]);
    sandbox.ok(&["add", "b", "--ports", "31001"]);
    let mut flapping = sandbox.command(A, "sh");
    flapping.args(["-c", "while :; do ip link set eth0 down; ip link set eth0 up; done"]);
    let mut flapping = flapping.stderr(Stdio::null()).spawn().expect("a shell");
    let second = Ipv4Addr::new(10, 0, 0, 9);
    readdress(&sandbox, HOST, second);
    let has =
        |name| sandbox.sh(Netns::Container(name), "ip -4 address show dev eth0").contains("10.0.0.9/24");
    wait::until("another container to have the new address", || has("b"));
    // The daemon also notices the end of its namespace.
    sandbox.sh(Netns::Host, "ip netns del b");
    wait::until("an end to be noticed", || sandbox.portmap(&["show", "b"]).status.code() == Some(3));
    assert!(matches!(flapping.try_wait(), Ok(None)), "it goes on");
    flapping.kill().expect("it runs");
    flapping.wait().expect("it ends");
}
