//! Several uplinks, and uplinks without Ethernet headers.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
};

use portmap_tests::{
    daemon::Daemon,
    events::Events,
    sandbox::{DAEMON_FLAGS, FAR, FAR6, HOST, Netns, OUTSIDE, Sandbox},
    service::{Service, send_from},
    tunnel::Tunnel,
    wait,
};

use super::{A, HOST_PORT, PORT, expect, wait_for};

/// A port of container `a` without a service.
const FREE_PORT: u16 = 31001;
/// The addresses of the host and of the outside at [`CARD`].
pub(super) const CARD_HOST: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const CARD_OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
/// A second card.
pub(super) const CARD: &str = "
ip link add card1 type veth peer name card1 netns outside
ip address add 10.9.0.1/24 dev card1
ip -n outside address add 10.9.0.2/24 dev card1
ip link set card1 up
ip -n outside link set card1 up
";
/// The addresses of the host and of the outside at a tunnel.
const TUNNEL_HOST: [IpAddr; 2] = tunnel(1);
const TUNNEL_OUTSIDE: [IpAddr; 2] = tunnel(2);

const fn tunnel(own: u8) -> [IpAddr; 2] {
    let v6 = Ipv6Addr::new(0xfd08, 0, 0, 0, 0, 0, 0, own as u16);
    [IpAddr::V4(Ipv4Addr::new(10, 8, 0, own)), IpAddr::V6(v6)]
}

/// Makes a tunnel to the outside.
pub(super) fn tunnel_of(sandbox: &Sandbox) -> Tunnel {
    let tunnel = Tunnel::new(sandbox, [Netns::Host, Netns::Outside]);
    for (netns, own) in [(Netns::Host, 1), (Netns::Outside, 2)] {
        sandbox.sh(
            netns,
            &format!(
                "ip link set tunnel up; ip address add 10.8.0.{own}/24 dev tunnel; \
                 ip address add fd08::{own}/64 dev tunnel nodad"
            ),
        );
    }
    tunnel
}

/// Starts a daemon with these flags, a container `a` with a service, and services of the host and outside.
fn start(sandbox: &Sandbox, flags: &[&str]) -> (Daemon, Vec<[Service; 2]>) {
    let daemon = sandbox.daemon_with(&[&DAEMON_FLAGS[..], flags].concat());
    sandbox.ok(&["add", "a", "--ports", "31000-31009"]);
    let services = [(A, PORT, "a"), (Netns::Host, HOST_PORT, "host"), (Netns::Outside, HOST_PORT, "outside")]
        .map(|(netns, port, name)| Service::both(sandbox, netns, port, name));
    (daemon, services.into())
}

/// A connection from outside to container `a`.
struct Connection {
    ends: [TcpStream; 2],
}

impl Connection {
    fn open(sandbox: &Sandbox, by: Ipv4Addr) -> Self {
        let listener = sandbox.inside(A, || TcpListener::bind((by, FREE_PORT))).expect("its port");
        let client = sandbox.inside(Netns::Outside, || TcpStream::connect((by, FREE_PORT)));
        let ends = [client.expect("connected"), listener.accept().expect("a connection").0];
        for end in &ends {
            end.set_read_timeout(Some(wait::LIMIT)).expect("set");
        }
        Self { ends }
    }

    /// Asserts that both ends hear each other.
    fn expect_alive(&mut self) {
        for from in [0, 1] {
            self.ends[from].write_all(b"x").expect("sent");
            self.ends[1 - from].read_exact(&mut [0]).expect("received");
        }
    }
}

fn doctor(sandbox: &Sandbox) -> String {
    String::from_utf8_lossy(&sandbox.portmap(&["doctor"]).stdout).into_owned()
}

/// Adds a card that has neither an address nor a route at the host.
fn bare_card(sandbox: &Sandbox, name: &str) {
    sandbox.sh(
        Netns::Host,
        &format!(
            "ip link add {name} type veth peer name {name} netns outside; ip link set {name} up; \
             sysctl -qw net.ipv6.conf.{name}.addr_gen_mode=1; ip -n outside link set {name} up"
        ),
    );
}

#[test]
fn uplinks_by_pattern_come_and_go() {
    let sandbox = Sandbox::new();
    sandbox.sh(Netns::Host, CARD);
    let (daemon, _services) = start(&sandbox, &["--uplink", "up*", "--eth0_name=card?"]);
    assert!(daemon.log().contains("of uplink; further uplinks: card1"), "{}", daemon.log());
    for (address, from) in [(HOST, OUTSIDE), (CARD_HOST, CARD_OUTSIDE)] {
        assert_eq!(expect(&sandbox, Netns::Outside, (address, PORT), "a"), IpAddr::V4(from));
        assert_eq!(expect(&sandbox, A, (from, HOST_PORT), "outside"), IpAddr::V4(address));
    }
    let found = doctor(&sandbox);
    assert!(found.contains("card1, a further uplink"), "{found}");
    let events = Events::follow(&sandbox, &[]);
    let mut connection = Connection::open(&sandbox, HOST);
    bare_card(&sandbox, "card2");
    events.expect_host("of uplink; further uplinks: card1, card2");
    assert!(doctor(&sandbox).contains("program at card2 ingress"), "{}", doctor(&sandbox));
    sandbox.sh(Netns::Host, "ip link del card1");
    events.expect_host("of uplink; further uplinks: card2");
    connection.expect_alive();
    // A pattern selects interfaces that are up.
    sandbox.sh(Netns::Host, "ip link set card2 down");
    events.expect_host("of uplink");
    connection.expect_alive();
    sandbox.sh(Netns::Host, "ip link set card2 up");
    events.expect_host("of uplink; further uplinks: card2");
    sandbox.sh(Netns::Host, "ip link del card2");
    events.expect_host("of uplink");
    // The flag names an uplink that does not exist now.
    let found = doctor(&sandbox);
    assert!(found.contains("--uplink \"card?\" selects no interface"), "{found}");
    sandbox.ok(&["doctor"]);
    expect(&sandbox, Netns::Outside, (HOST, PORT), "a");
}

#[test]
fn uplink_that_is_lost_leaves_connections_by_the_others() {
    let sandbox = Sandbox::new();
    sandbox.sh(Netns::Host, CARD);
    let (_daemon, _services) = start(&sandbox, &["--uplink", "uplink", "--uplink", "card1"]);
    let events = Events::follow(&sandbox, &[]);
    let mut connection = Connection::open(&sandbox, CARD_HOST);
    connection.expect_alive();
    sandbox.sh(Netns::Host, "ip link del uplink");
    events.expect_host("of card1");
    connection.expect_alive();
    expect(&sandbox, Netns::Outside, (CARD_HOST, PORT), "a");
    assert_eq!(expect(&sandbox, A, (CARD_OUTSIDE, HOST_PORT), "outside"), IpAddr::V4(CARD_HOST));
    // It is one of the uplinks again when it returns, and the main one stays.
    bare_card(&sandbox, "uplink");
    events.expect_host("of card1; further uplinks: uplink");
    connection.expect_alive();
    wait::until("health", || {
        sandbox.portmap(&["doctor"]).status.success() || !doctor(&sandbox).contains("PROBLEM")
    });
}

#[test]
fn uplinks_of_default_routes_are_followed() {
    let sandbox = Sandbox::new();
    sandbox.sh(Netns::Host, CARD);
    let (_daemon, _services) = start(&sandbox, &[]);
    assert!(!doctor(&sandbox).contains("a further uplink"), "{}", doctor(&sandbox));
    let events = Events::follow(&sandbox, &[]);
    for (add, remove) in [
        ("route add default via 10.9.0.2 metric 100", "route del default metric 100"),
        ("route add default via 10.9.0.2 table 100", "route flush table 100"),
        ("-6 route add default dev card1 metric 2048", "-6 route del default dev card1"),
        (
            "route replace default nexthop via 10.0.0.2 dev uplink nexthop via 10.9.0.2 dev card1",
            "route replace default via 10.0.0.2",
        ),
    ] {
        sandbox.sh(Netns::Host, &format!("ip {add}"));
        events.expect_host("of uplink; further uplinks: card1");
        wait_for(&sandbox, A, (FAR, HOST_PORT), "outside");
        sandbox.sh(Netns::Host, &format!("ip {remove}"));
        events.expect_host("of uplink");
    }
    expect(&sandbox, Netns::Outside, (CARD_HOST, PORT), "a");
}

#[test]
fn uplink_without_ethernet_is_the_main_one() {
    for default in ["dev tunnel", "via GATEWAY dev tunnel"] {
        let sandbox = Sandbox::new();
        let _tunnel = tunnel_of(&sandbox);
        sandbox.sh(Netns::Host, "ip link del uplink");
        for (version, gateway) in [("-4", "10.8.0.2"), ("-6", "fd08::2")] {
            let default = default.replace("GATEWAY", gateway);
            sandbox.sh(Netns::Host, &format!("ip {version} route add default {default}"));
        }
        let (daemon, _services) = start(&sandbox, &[]);
        let far: [IpAddr; 2] = [FAR.into(), FAR6.into()];
        for ((own, peer), far) in TUNNEL_HOST.into_iter().zip(TUNNEL_OUTSIDE).zip(far) {
            assert_eq!(expect(&sandbox, Netns::Outside, (own, PORT), "a"), peer, "{default}");
            assert_eq!(expect(&sandbox, Netns::Outside, (own, HOST_PORT), "host"), peer);
            for to in [peer, far] {
                assert_eq!(expect(&sandbox, A, (to, HOST_PORT), "outside"), own, "{default} {to}");
                assert_eq!(expect(&sandbox, Netns::Host, (to, HOST_PORT), "outside"), own);
            }
            expect(&sandbox, Netns::Host, (own, PORT), "a");
            expect(&sandbox, A, (own, HOST_PORT), "host");
            for explained in [
                ["explain", "--from", "outside", "--to", &SocketAddr::from((own, PORT)).to_string()],
                ["explain", "--from", "a", "--to", &SocketAddr::from((far, HOST_PORT)).to_string()],
            ] {
                let explained = sandbox.json(&explained);
                assert_eq!(explained["agrees"], true, "{explained}");
            }
        }
        // Packets to a limited container pass its qdisc.
        sandbox.ok(&["update", "a", "--ingress-rate", "10MB", "--egress-rate", "10MB"]);
        for (own, peer) in TUNNEL_HOST.into_iter().zip(TUNNEL_OUTSIDE) {
            expect(&sandbox, Netns::Outside, (own, PORT), "a");
            expect(&sandbox, A, (peer, HOST_PORT), "outside");
        }
        sandbox.ok(&["doctor"]);
        assert_eq!(sandbox.ok(&["drops", "a"]).lines().count(), 1, "nothing is dropped");
        // An Ethernet card takes its place, and gives it back.
        sandbox.sh(
            Netns::Host,
            &format!("{CARD} ip route add default via 10.9.0.2 metric 5; ip route del default metric 0"),
        );
        wait::until("the card", || daemon.log().contains("of card1; further uplinks: tunnel"));
        wait::until("health", || sandbox.portmap(&["doctor"]).status.success());
        expect(&sandbox, Netns::Outside, (CARD_HOST, PORT), "a");
        expect(&sandbox, Netns::Outside, (TUNNEL_HOST[0], PORT), "a");
        wait_for(&sandbox, A, (FAR, HOST_PORT), "outside");
        sandbox.sh(Netns::Host, "ip link del card1; ip route add default dev tunnel");
        // Before that a connection of the container would have an address that has gone, and wait in vain.
        wait::until("health", || sandbox.portmap(&["doctor"]).status.success());
        wait_for(&sandbox, A, (FAR, HOST_PORT), "outside");
        expect(&sandbox, Netns::Outside, (TUNNEL_HOST[1], PORT), "a");
    }
}

#[test]
fn uplink_without_ethernet_is_a_further_one() {
    let sandbox = Sandbox::new();
    // The interfaces' speeds are in the sysfs of the host's own namespace.
    sandbox.sh(
        Netns::Host,
        "mkdir /run/sys; mount -t sysfs sysfs /run/sys; mount --bind /run/sys/class/net /sys/class/net; \
         mount --bind /run/sys/devices/virtual/net /sys/devices/virtual/net",
    );
    let (_daemon, _services) =
        start(&sandbox, &["--uplink=auto", "--uplink=tun*", "--egress-rate-per-cpu=auto"]);
    let speed = || sandbox.json(&["capacity"])["limits"]["link_speed"].as_u64();
    assert_eq!(speed(), Some(1_250_000_000), "that of a veth");
    let events = Events::follow(&sandbox, &[]);
    let _tunnel = tunnel_of(&sandbox);
    events.expect_host("of uplink; further uplinks: tunnel");
    // The container has the addresses and routes, too.
    wait::until("health", || sandbox.portmap(&["doctor"]).status.success());
    for (own, peer) in TUNNEL_HOST.into_iter().zip(TUNNEL_OUTSIDE) {
        wait_for(&sandbox, Netns::Outside, (own, PORT), "a");
        assert_eq!(expect(&sandbox, Netns::Outside, (own, PORT), "a"), peer);
        assert_eq!(expect(&sandbox, A, (peer, HOST_PORT), "outside"), own);
    }
    // Limits by CPU follow the fastest uplink.
    sandbox.sh(Netns::Host, "ethtool -s tunnel speed 100000 duplex full; ip link set tunnel mtu 1400");
    wait::until("the speed of the tunnel", || speed() == Some(12_500_000_000));
    // Its MTU reaches containers by its routes.
    let route = || sandbox.sh(A, "ip route get 10.8.0.2");
    wait::until("the MTU of the tunnel", || route().contains("mtu 1400"));
    sandbox.sh(Netns::Host, "ip link set tunnel down");
    events.expect_host("of uplink");
    wait::until("the speed of the veth", || speed() == Some(1_250_000_000));
    sandbox.ok(&["doctor"]);
}

#[test]
fn flows_are_at_every_uplink_and_end_with_it() {
    let sandbox = Sandbox::new();
    sandbox.sh(Netns::Host, CARD);
    let probe = "tc qdisc add dev lo root fq_codel && tc qdisc del dev lo root";
    if !sandbox.command(Netns::Outside, "sh").args(["-c", probe]).status().expect("a shell").success() {
        let (daemon, _services) = start(&sandbox, &["--uplink=*", "--egress-unique-flow-per-container"]);
        let log = daemon.log();
        assert!(log.contains("--egress-unique-flow-per-container has no effect at uplink, card1"), "{log}");
        return;
    }
    let qdisc = |card: &str| sandbox.sh(Netns::Host, &format!("tc qdisc show dev {card}"));
    let has_flows = |card: &str| qdisc(card).contains("fq_codel 504d:");
    // On a slow link the backlog shows the flow of each sender: flow 1 is the host's, a container's is its slot plus 2.
    for card in ["uplink", "card1"] {
        sandbox.sh(
            Netns::Host,
            &format!(
                "tc qdisc add dev {card} root handle 1: htb default 10
                 tc class add dev {card} parent 1: classid 1:10 htb rate 100kbit quantum 1514"
            ),
        );
    }
    let flags = ["--uplink=uplink", "--uplink=card?", "--egress-unique-flow-per-container"];
    let below = ["--egress-flow-classifier-parent=1:10"];
    let first = start(&sandbox, &[&flags[..], &below].concat());
    for (card, to) in [("uplink", OUTSIDE), ("card1", CARD_OUTSIDE)] {
        for (from, port, flow) in [(Netns::Host, 45000, "504d:1 "), (A, FREE_PORT, "504d:3 ")] {
            wait::until(&format!("flow {flow} at {card}"), || {
                send_from(&sandbox, from, port, (to, 9));
                sandbox.sh(Netns::Host, &format!("tc class show dev {card}")).contains(flow)
            });
        }
    }
    sandbox.ok(&["teardown"]);
    assert!(!has_flows("uplink") && !has_flows("card1"), "{} {}", qdisc("uplink"), qdisc("card1"));
    assert!(qdisc("card1").contains("htb 1: root"), "{}", qdisc("card1"));
    drop(first);
    // Another tool's qdisc in that place at a further uplink stays, and stops nothing.
    sandbox.sh(Netns::Host, "tc qdisc del dev uplink root");
    let (daemon, _services) = start(&sandbox, &flags);
    assert!(daemon.log().contains("containers have no flows of their own at card1"), "{}", daemon.log());
    assert!(has_flows("uplink") && !has_flows("card1"), "{}", qdisc("card1"));
    expect(&sandbox, A, (OUTSIDE, HOST_PORT), "outside");
    let events = Events::follow(&sandbox, &[]);
    bare_card(&sandbox, "card2");
    events.expect_host("further uplinks: card1, card2");
    assert!(has_flows("card2"), "{}", qdisc("card2"));
    // An uplink that is none any more gets its qdisc back.
    sandbox.sh(Netns::Host, "ip link set card2 down");
    events.expect_host("further uplinks: card1");
    assert!(!has_flows("card2"), "{}", qdisc("card2"));
    sandbox.sh(Netns::Host, "ip link set card2 up");
    events.expect_host("further uplinks: card1, card2");
    sandbox.sh(Netns::Host, "tc qdisc del dev card2 root");
    wait::until("it to be restored", || has_flows("card2"));
    sandbox.ok(&["doctor"]);
    sandbox.ok(&["teardown"]);
    assert!(!has_flows("uplink") && !has_flows("card2"), "{} {}", qdisc("uplink"), qdisc("card2"));
}
