//! A container has the host's view of the network: its addresses, its routes, and its errors.

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::{IpAddr, TcpListener, TcpStream},
};

use portmap_tests::{
    daemon::Daemon,
    sandbox::{DAEMON_FLAGS, HOST, Netns, OUTSIDE, Sandbox},
    wait,
};
use serde_json::Value;

const A: Netns<'_> = Netns::Container("a");

/// Starts a daemon with these additional flags and a container.
fn world(flags: &[&str]) -> (Sandbox, Daemon) {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon_with(&[&DAEMON_FLAGS[..], flags].concat());
    sandbox.ok(&["add", "a", "--ports", "31000-31009"]);
    (sandbox, daemon)
}

/// The output of `ip -j` in a namespace.
fn ip(sandbox: &Sandbox, netns: Netns<'_>, arguments: &str) -> Value {
    let text = sandbox.sh(netns, &format!("ip -j {arguments}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments}: {error}: {text}"))
}

/// The global addresses of a namespace with their interfaces and prefix lengths; `!` marks deprecated ones.
fn addresses(sandbox: &Sandbox, netns: Netns<'_>) -> BTreeSet<String> {
    let interfaces = ip(sandbox, netns, "address show scope global");
    let all = interfaces.as_array().expect("a list").iter().flat_map(|interface| {
        let name = interface["ifname"].as_str().unwrap_or_default().to_owned();
        // ip prints an empty object for each address of another scope.
        interface["addr_info"].as_array().cloned().unwrap_or_default().into_iter().filter_map(
            move |address| {
                let mark = if address["deprecated"] == true { "!" } else { "" };
                let local = address["local"].as_str()?;
                Some(format!("{name} {local}/{}{mark}", address["prefixlen"]))
            },
        )
    });
    all.collect()
}

#[track_caller]
fn expect_addresses(sandbox: &Sandbox, expected: &[&str]) {
    let expected: BTreeSet<String> = expected.iter().map(|text| (*text).to_owned()).collect();
    wait::until(&format!("{expected:?}"), || addresses(sandbox, A) == expected);
}

/// The primary addresses as `show` prints them.
fn primary(sandbox: &Sandbox) -> [String; 2] {
    let shown = sandbox.json(&["show", "a"]);
    ["ip", "ip6"].map(|key| shown[key].as_str().unwrap_or_default().to_owned())
}

#[track_caller]
fn expect_primary(sandbox: &Sandbox, expected: [&str; 2]) {
    wait::until(&format!("{expected:?}"), || primary(sandbox) == expected);
    wait::until("health", || sandbox.portmap(&["doctor"]).status.success());
}

#[test]
fn primary_address_is_stable() {
    let (sandbox, daemon) = world(&[]);
    let own = ["10.0.0.1", "2001:db8:0:1::1"];
    expect_primary(&sandbox, own);
    // Virtual addresses and a second prefix come. The kernel lists the newest IPv6 address first.
    sandbox.sh(
        Netns::Host,
        "ip address add 10.0.0.50/32 dev uplink; ip address add 10.0.0.51/24 dev uplink; \
         ip address add 2001:db8:0:1::50/128 dev uplink nodad; ip address add fd00::1/64 dev uplink nodad",
    );
    expect_addresses(
        &sandbox,
        &[
            "eth0 10.0.0.1/24",
            "eth0 10.0.0.50/32",
            "eth0 10.0.0.51/24",
            "eth0 2001:db8:0:1::1/64",
            "eth0 2001:db8:0:1::50/128",
            "eth0 fd00::1/64",
        ],
    );
    expect_primary(&sandbox, own);
    // A lease is renewed: the address is away for a while, and the virtual one is not.
    sandbox.sh(Netns::Host, "ip address del 10.0.0.51/24 dev uplink; ip address del 10.0.0.1/24 dev uplink");
    expect_primary(&sandbox, ["10.0.0.50", own[1]]);
    // Also if the daemon is restarted meanwhile.
    daemon.stop();
    let daemon = sandbox.daemon_with(&[&DAEMON_FLAGS[..], &["--uplink", "uplink"]].concat());
    expect_primary(&sandbox, ["10.0.0.50", own[1]]);
    sandbox.sh(Netns::Host, "ip address add 10.0.0.1/24 dev uplink; ip route replace default via 10.0.0.2");
    expect_primary(&sandbox, own);
    // An address that is deprecated makes room for another, and is used if there is none.
    sandbox.sh(Netns::Host, "ip address change 2001:db8:0:1::1/64 dev uplink preferred_lft 0");
    wait::until("another primary address", || primary(&sandbox)[1] != own[1]);
    sandbox.sh(
        Netns::Host,
        "ip address del 2001:db8:0:1::50/128 dev uplink; ip address del fd00::1/64 dev uplink",
    );
    expect_primary(&sandbox, own);
    expect_addresses(&sandbox, &["eth0 10.0.0.1/24", "eth0 10.0.0.50/32", "eth0 2001:db8:0:1::1/64!"]);
    daemon.stop();
}

#[test]
fn addresses_follow_without_cutting_connections() {
    let (sandbox, _daemon) = world(&[]);
    let listener = sandbox.inside(Netns::Outside, || TcpListener::bind((OUTSIDE, 8080))).expect("free");
    let mut client = sandbox.inside(A, || TcpStream::connect((OUTSIDE, 8080))).expect("connected");
    let (mut server, _) = listener.accept().expect("a connection");
    let mut talk = || {
        client.write_all(b"x").expect("sent");
        server.read_exact(&mut [0]).expect("received");
    };
    sandbox.sh(
        Netns::Host,
        "ip address add 10.9.0.5/32 dev lo; ip -6 address add 2001:db8:9::5/128 dev lo; \
         ip link add second type veth peer name eth1 netns outside; ip address add 10.5.0.1/16 dev second; \
         ip address add 10.0.0.7/24 dev uplink preferred_lft 0; \
         ip address add 2001:db8:0:1::7/64 dev uplink nodad preferred_lft 0",
    );
    let all = [
        "lo 10.9.0.5/32",
        "lo 2001:db8:9::5/128",
        "lo 10.5.0.1/32",
        "eth0 10.0.0.1/24",
        "eth0 10.0.0.7/24!",
        "eth0 2001:db8:0:1::1/64",
        "eth0 2001:db8:0:1::7/64!",
    ];
    expect_addresses(&sandbox, &all);
    talk();
    // An address that the container's root has added stays.
    sandbox.sh(A, "ip address add 198.18.0.1/32 dev lo");
    sandbox.sh(
        Netns::Host,
        "ip address del 10.9.0.5/32 dev lo; ip link del second; ip address del 10.0.0.7/24 dev uplink; \
         ip address change 2001:db8:0:1::7/64 dev uplink nodad preferred_lft forever",
    );
    expect_addresses(
        &sandbox,
        &[
            "lo 198.18.0.1/32",
            "lo 2001:db8:9::5/128",
            "eth0 10.0.0.1/24",
            "eth0 2001:db8:0:1::1/64",
            "eth0 2001:db8:0:1::7/64",
        ],
    );
    talk();
    // The prefix of the address in use changes.
    sandbox.sh(Netns::Host, "ip address add 10.0.0.1/16 dev uplink; ip address del 10.0.0.1/24 dev uplink");
    wait::until("the other prefix", || addresses(&sandbox, A).contains("eth0 10.0.0.1/16"));
    wait::until("the old one to go", || !addresses(&sandbox, A).contains("eth0 10.0.0.1/24"));
    sandbox.sh(Netns::Host, "ip route replace default via 10.0.0.2");
    talk();
}

/// What `ip route get` answers: the error, or the source and the MTU, by which the kernel would send.
fn decision(sandbox: &Sandbox, netns: Netns<'_>, destination: &str) -> String {
    let output =
        sandbox.command(netns, "ip").args(["-j", "route", "get", destination]).output().expect("ip runs");
    if !output.status.success() {
        return String::from_utf8_lossy(&output.stderr).trim().to_owned();
    }
    let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let metrics = ["mtu", "advmss", "initcwnd"].map(|metric| {
        let found = answer[0][metric].as_u64().or_else(|| answer[0]["metrics"][0][metric].as_u64());
        format!("{metric} {found:?}")
    });
    format!("{} {}", answer[0]["prefsrc"], metrics.join(" "))
}

/// Forms of routes, and destinations for which each decides.
const ROUTES: [(&str, &[&str]); 16] = [
    ("ip route replace default via 10.0.0.2 mtu 1400 advmss 1300", &["192.0.2.1", "10.0.0.9"]),
    ("ip -6 route replace default via 2001:db8:0:1::2 mtu 1300", &["2001:db8:f::1", "2001:db8:0:1::9"]),
    ("ip route add 169.254.169.254 via 10.0.0.3", &["169.254.169.254"]),
    ("ip route add 198.51.100.0/24 via 10.0.0.2 src 10.9.0.5", &["198.51.100.1"]),
    ("ip route add blackhole 203.0.113.0/24", &["203.0.113.1"]),
    ("ip route add unreachable 203.0.114.0/24", &["203.0.114.1"]),
    ("ip route add prohibit 203.0.115.0/24", &["203.0.115.1"]),
    ("ip route add 203.0.113.128/25 via 10.0.0.2 initcwnd 20", &["203.0.113.1", "203.0.113.129"]),
    ("ip -6 route add blackhole 2001:db8:b1::/48", &["2001:db8:b1::1"]),
    ("ip -6 route add unreachable 2001:db8:b2::/48", &["2001:db8:b2::1"]),
    ("ip -6 route add prohibit 2001:db8:b3::/48", &["2001:db8:b3::1"]),
    ("ip route add 10.88.0.0/16 via 10.5.0.2 mtu 1200", &["10.88.0.1"]),
    ("ip route add 10.89.0.0/16 nexthop via 10.0.0.2 nexthop via 10.0.0.3", &["10.89.0.1"]),
    ("ip nexthop add id 5 via 10.0.0.2 dev uplink; ip route add 10.90.0.0/16 nhid 5", &["10.90.0.1"]),
    ("ip -6 route add 2001:db8:55::/48 dev second", &["2001:db8:55::1"]),
    ("ip route replace default dev uplink scope link", &["192.0.2.1"]),
];

#[test]
fn routes_decide_as_the_hosts_do() {
    let (sandbox, _daemon) = world(&[]);
    sandbox.sh(
        Netns::Host,
        "ip address add 10.9.0.5/32 dev lo; ip link add second type veth peer name eth1 netns outside; \
         ip address add 10.5.0.1/16 dev second; ip -6 address add 2001:db8:5::1/64 dev second nodad; \
         ip link set second up; ip -n outside link set eth1 up",
    );
    let mut known: Vec<&str> = vec!["192.0.2.1", "10.0.0.9", "10.5.3.3", "2001:db8:f::1", "2001:db8:5::9"];
    for (change, destinations) in ROUTES {
        sandbox.sh(Netns::Host, change);
        known.extend(destinations);
        for destination in &known {
            let host = || decision(&sandbox, Netns::Host, destination);
            wait::until(&format!("{change}: {destination}: {}", host()), || {
                decision(&sandbox, A, destination) == host()
            });
        }
    }
    sandbox.ok(&["doctor"]);
    // What the container's root has added stays.
    sandbox.sh(A, "ip route add 198.18.0.0/15 dev lo");
    // Without a default route there is none inside.
    sandbox.sh(
        Netns::Host,
        "ip nexthop flush; ip -4 route show | grep -v 'proto kernel' | \
         while read -r destination more; do ip -4 route del $destination 2>/dev/null || \
         for kind in blackhole unreachable prohibit; do \
             ip -4 route del $destination $more 2>/dev/null || true; done; done",
    );
    wait::until("no default route", || sandbox.sh(A, "ip route show default").is_empty());
    for destination in known.iter().filter(|destination| !destination.contains(':')) {
        wait::until(&format!("without routes: {destination}"), || {
            decision(&sandbox, A, destination) == decision(&sandbox, Netns::Host, destination)
        });
    }
    assert!(sandbox.sh(A, "ip route").contains("198.18.0.0/15"));
}

#[test]
fn route_by_an_interface_with_a_small_mtu_has_that() {
    let (sandbox, _daemon) = world(&[]);
    sandbox.sh(
        Netns::Host,
        "ip link add second mtu 1300 type veth peer name eth1 netns outside; ip address add 10.5.0.1/16 dev second; \
         ip link set second up; ip -n outside link set eth1 up; ip route add 10.88.0.0/16 via 10.5.0.2",
    );
    for destination in ["10.5.0.9", "10.88.0.1"] {
        wait::until(destination, || decision(&sandbox, A, destination).contains("mtu Some(1300)"));
    }
    assert!(!decision(&sandbox, A, "10.0.0.9").contains("1300"));
}

#[test]
fn errors_of_routes_reach_connect_at_once() {
    let (sandbox, _daemon) = world(&[]);
    sandbox.sh(
        Netns::Host,
        "ip route add blackhole 203.0.113.0/24; ip route add unreachable 203.0.114.0/24; \
         ip route add prohibit 203.0.115.0/24",
    );
    for destination in ["203.0.113.1", "203.0.114.1", "203.0.115.1"] {
        let to: IpAddr = destination.parse().expect("an address");
        let code = |netns| {
            sandbox.inside(netns, move || TcpStream::connect((to, 80))).expect_err("refused").raw_os_error()
        };
        let host = code(Netns::Host);
        wait::until(destination, || decision(&sandbox, A, destination).contains("RTNETLINK"));
        assert_eq!(code(A), host, "{destination}");
    }
}

#[test]
fn borrowed_netns_loses_all_addresses_and_routes() {
    let (sandbox, _daemon) = world(&[]);
    sandbox.sh(
        Netns::Host,
        "ip netns add existing; ip -n existing link set lo up; ip address add 10.9.0.5/32 dev lo; \
         ip -6 address add 2001:db8:9::5/128 dev lo; ip route add blackhole 203.0.113.0/24; \
         ip -6 route add unreachable 2001:db8:b2::/48",
    );
    let existing = Netns::Container("existing");
    let look = || sandbox.sh(existing, "ip -o address; ip route show table all; ip -6 route show table all");
    let before = look();
    wait::until("the host's address", || addresses(&sandbox, A).contains("lo 10.9.0.5/32"));
    wait::until("the host's route", || sandbox.sh(A, "ip -6 route").contains("2001:db8:b2::/48"));
    sandbox.ok(&["add", "b", "--netns", "/run/netns/existing"]);
    let during = look();
    for part in ["10.9.0.5", "2001:db8:9::5", "blackhole 203.0.113.0/24", "unreachable 2001:db8:b2::/48"] {
        assert!(during.contains(part), "{part}: {during}");
    }
    sandbox.ok(&["del", "b"]);
    assert_eq!(look(), before);
}

#[test]
fn address_flags_restrict_sharing() {
    let sandbox = Sandbox::new();
    sandbox.sh(
        Netns::Host,
        "ip address add 10.0.0.50/32 dev uplink; ip address add 10.0.0.51/32 dev uplink; \
         ip address add 10.9.0.5/32 dev lo",
    );
    let start = |flags: &[&str]| sandbox.daemon_with(&[&DAEMON_FLAGS[..], flags].concat());
    let daemon = start(&["--exclude_address", "10.0.0.50,2001:db8:0:1::1"]);
    sandbox.ok(&["add", "a", "--ports", "31000"]);
    expect_addresses(&sandbox, &["lo 10.9.0.5/32", "eth0 10.0.0.1/24", "eth0 10.0.0.51/32"]);
    daemon.stop();
    // The host lacks one of the addresses at first.
    let daemon = start(&["--address", "10.0.0.50,10.0.0.99", "--address", "10.9.0.5"]);
    assert!(daemon.log().contains("--address 10.0.0.99: the host has no such address"), "{}", daemon.log());
    wait::until("the only addresses", || {
        sandbox.portmap(&["doctor", "--repair"]).status.success()
            && addresses(&sandbox, A).iter().cloned().collect::<Vec<_>>()
                == ["eth0 10.0.0.50/32", "lo 10.9.0.5/32"]
    });
    sandbox.sh(Netns::Host, "ip address add 10.0.0.99/24 dev uplink");
    expect_addresses(&sandbox, &["lo 10.9.0.5/32", "eth0 10.0.0.50/32", "eth0 10.0.0.99/24"]);
    daemon.stop();
    for (flags, part) in [
        (["--address", "10.0.0.1/24"], "--address \"10.0.0.1/24\": expected an IPv4 or IPv6 address"),
        (["--exclude-address", "127.0.0.1"], "--exclude-address \"127.0.0.1\""),
    ] {
        let (code, log) = sandbox.refused_daemon(&[&DAEMON_FLAGS[..], &flags].concat());
        assert!(code == 2 && log.contains(part), "{log}");
    }
}

#[test]
fn uplink_is_found_by_every_form_of_default_route() {
    for default in [
        "ip route add default nexthop via 10.0.0.2 nexthop via 10.0.0.3",
        "ip -4 route add default via inet6 fe80::2 dev uplink",
        "ip route add default dev uplink scope link",
        "ip nexthop add id 7 via 10.0.0.2 dev uplink; ip route add default nhid 7",
        "echo 0 > /proc/sys/net/ipv4/nexthop_compat_mode; ip nexthop add id 7 via 10.0.0.2 dev uplink; \
         ip route add default nhid 7",
    ] {
        let sandbox = Sandbox::new();
        sandbox.sh(Netns::Host, &format!("ip route del default; {default}"));
        let daemon = sandbox.daemon();
        assert!(!daemon.log().contains("default route"), "{default}: {}", daemon.log());
        sandbox.ok(&["add", "a"]);
        assert_eq!(
            sandbox.sh(A, "ip route show default").trim(),
            format!("default dev eth0 proto 112 scope link src {HOST}"),
            "{default}"
        );
        daemon.stop();
    }
}
