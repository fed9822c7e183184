//! What becomes of containers when something happens to them, to what was made for them, or to the host: by itself, with
//! `doctor --repair`, and at the next start.

use std::{fs, net::Ipv4Addr, process::Stdio, thread};

use portmap_common::limit::Limit;
use portmap_tests::{
    sandbox::{DAEMON_FLAGS, HOST, HOST6, OUTSIDE, OUTSIDE6, Place, Sandbox},
    service::{Service, Transport, ask},
    wait,
};
use serde_json::{Value, json};

const A: Place<'_> = Place::Container("a");

/// That the container is reached from everywhere, and reaches outside.
fn check_traffic(sandbox: &Sandbox, host: Ipv4Addr) {
    for (place, address) in [(Place::Outside, host), (Place::Host, host), (Place::Host, Ipv4Addr::LOCALHOST)]
    {
        let answer = ask(sandbox, place, Transport::Udp, (address, 31000)).expect("an answer");
        assert_eq!(answer.from, "a", "{place:?} by {address}");
    }
    let answer = ask(sandbox, A, Transport::Udp, (OUTSIDE, 7000)).expect("an answer");
    assert_eq!((answer.from.as_str(), answer.client.ip()), ("outside", host.into()));
}

/// Changes a file in the state directory, and returns what it said.
fn change_state(sandbox: &Sandbox, file: &str, change: impl FnOnce(&mut Value)) -> Value {
    let path = sandbox.path("/run/portmap").join(file);
    let mut now = serde_json::from_slice(&fs::read(&path).expect("a file")).expect("JSON");
    let before = Value::clone(&now);
    change(&mut now);
    fs::write(&path, serde_json::to_vec(&now).expect("JSON")).expect("written");
    before
}

/// Gives the uplink another address instead of one that it has, and the default route that goes with that.
fn readdress(sandbox: &Sandbox, old: Ipv4Addr, new: Ipv4Addr) {
    // The new one, second to the old one, can go with it, too.
    sandbox.sh(
        Place::Host,
        &format!(
            "ip address add {new}/24 dev uplink; ip address del {old}/24 dev uplink; \
             ip address replace {new}/24 dev uplink; ip route replace default via {OUTSIDE}"
        ),
    );
}

/// A sandbox, a daemon with these flags besides the usual ones, a container, and services in it and outside.
macro_rules! served {
    ($sandbox:ident, $daemon:ident, $($flag:expr),*) => {
        let $sandbox = Sandbox::new();
        let flags: Vec<&str> = DAEMON_FLAGS.iter().copied().chain([$($flag),*]).collect();
        let $daemon = $sandbox.daemon_with(&flags);
        $sandbox.ok(&["add", "a", "--ports", "31000", "--ingress-rate", "1gbit"]);
        let _services = [
            Service::start(&$sandbox, A, Transport::Udp, 31000, "a"),
            Service::start(&$sandbox, Place::Outside, Transport::Udp, 7000, "outside"),
        ];
        check_traffic(&$sandbox, HOST);
    };
}

fn is_healthy(sandbox: &Sandbox) -> bool {
    sandbox.portmap(&["doctor"]).status.success()
}

/// What somebody can do to a container in service, and what `doctor` says of it.
const DAMAGE: [(&str, &str); 7] = [
    ("echo > /proc/sys/net/ipv4/ip_local_reserved_ports", "ip_local_reserved_ports lacks 31000-32000"),
    ("ip netns exec a ip route del default", "the default route is not the host's"),
    ("echo 0 > /proc/sys/net/ipv4/conf/lo/accept_local", "conf/lo/accept_local is 0, expected 1"),
    ("ip link set pm1 down", "pm1 is down"),
    (
        "bpftool map update pinned /sys/fs/bpf/portmap/v3/maps/pm_ports key hex 18 79 00 00 value 9 0 0 0 9 0 0 0",
        "port 31000 of container \"a\" belongs to slot 9 in the map, expected 1",
    ),
    (
        "rm -f /sys/fs/bpf/portmap/v3/links/uplink; tc filter del dev uplink ingress 2>/dev/null || true",
        "pm_uplink_in is not attached to uplink",
    ),
    (
        "rm -f /sys/fs/bpf/portmap/v3/links/pm1; tc filter del dev pm1 ingress 2>/dev/null || true",
        "pm_veth_in is not attached to pm1",
    ),
];

/// A command that takes away what the host holds the container in slot 1 to.
fn no_limit() -> String {
    let nothing = "0 ".repeat(size_of::<Limit>());
    format!("bpftool map update pinned /sys/fs/bpf/portmap/v3/maps/pm_limits key 1 0 0 0 value {nothing}")
}

#[test]
fn doctor_names_what_somebody_has_broken_and_repairs_it() {
    served!(sandbox, _daemon, "--reconcile=false");
    sandbox.ok(&["doctor"]);
    for (damage, expected) in DAMAGE {
        sandbox.sh(Place::Host, damage);
        let output = sandbox.portmap(&["doctor"]);
        assert_eq!(output.status.code(), Some(7), "{damage}");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains(expected), "{expected}: {text}");
        sandbox.ok(&["doctor", "--repair"]);
        check_traffic(&sandbox, HOST);
    }
    // Limits, too.
    let replaced = "ip netns exec a tc qdisc replace dev eth0 root pfifo";
    for gone in ["tc qdisc del dev pm1 root", replaced, &no_limit()] {
        sandbox.ok(&["update", "a", "--egress-rate", "1gbit"]);
        sandbox.sh(Place::Host, gone);
        assert!(!is_healthy(&sandbox), "{gone}");
        sandbox.ok(&["doctor", "--repair"]);
    }
    check_traffic(&sandbox, HOST);
}

#[test]
fn what_somebody_has_broken_is_put_back() {
    served!(sandbox, daemon,);
    for (damage, _) in DAMAGE {
        sandbox.sh(Place::Host, damage);
    }
    wait::until("everything to be put back", || is_healthy(&sandbox));
    check_traffic(&sandbox, HOST);
    assert!(daemon.log().contains("put back"), "{}", daemon.log());
    // Limits that are held on the host's side, too.
    sandbox.ok(&["update", "a", "--egress-rate", "1gbit"]);
    for damage in ["tc qdisc del dev pm1 root", &no_limit()] {
        sandbox.sh(Place::Host, damage);
        wait::until("limits to be put back", || is_healthy(&sandbox));
    }
}

#[test]
fn a_deleted_interface_comes_back() {
    served!(sandbox, daemon,);
    let before = sandbox.inventory();
    sandbox.sh(Place::Host, "ip link del pm1");
    wait::until("another interface", || sandbox.inventory() == before);
    check_traffic(&sandbox, HOST);
    sandbox.ok(&["doctor"]);
    // While there is no daemon, too.
    daemon.stop();
    sandbox.sh(Place::Host, "ip link del pm1");
    let _daemon = sandbox.daemon();
    check_traffic(&sandbox, HOST);
    sandbox.ok(&["doctor"]);
    sandbox.expect_inventory(&before, "at the end");
}

#[test]
fn a_container_whose_namespace_is_made_again_is_forgotten() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    let before = sandbox.inventory();
    for name in ["a", "b"] {
        sandbox.ok(&["add", name, "--egress-rate", "1gbit"]);
    }
    daemon.stop();
    sandbox.sh(Place::Host, "ip netns del a; ip netns del b");
    wait::until("the interfaces to go", || !sandbox.sh(Place::Host, "ip -o link").contains("pm"));
    // Its name and number can be somebody else's by then; most often they are, if nobody else makes a namespace.
    sandbox.sh(Place::Host, "ip netns add b; ip -n b link set lo up");
    let number = sandbox.sh(Place::Host, "stat -L -c %i /run/netns/b");
    let number: u64 = number.trim().parse().expect("a number");
    change_state(&sandbox, "containers/b.json", |file| file["record"]["namespace"]["inode"] = json!(number));
    let _daemon = sandbox.daemon();
    assert_eq!(sandbox.json(&["list"]), json!([]));
    assert_eq!(sandbox.sh(Place::Host, "ip -n b -o link").lines().count(), 1);
    // With a daemon, too.
    sandbox.ok(&["add", "a"]);
    sandbox.sh(Place::Host, "ip netns del a; ip netns add a; ip -n a link set lo up");
    wait::until("the container to be forgotten", || sandbox.json(&["list"]) == json!([]));
    assert_eq!(sandbox.sh(Place::Host, "ip -n a -o link").lines().count(), 1);
    sandbox.sh(Place::Host, "ip netns del a; ip netns del b");
    sandbox.expect_inventory(&before, "at the end");
}

#[test]
fn orphans_are_removed_and_their_likes_left_alone() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    sandbox.ok(&["add", "kept", "--ports", "31001"]);
    let before = sandbox.inventory();
    sandbox.ok(&["add", "lost", "--ports", "31000", "--egress-rate", "1gbit"]);
    daemon.kill();
    // A record that is cut off leads nowhere.
    let record = sandbox.path("/run/portmap/containers/lost.json");
    let text = fs::read_to_string(&record).expect("a record");
    fs::write(&record, &text[..text.len() / 2]).expect("written");
    // Each lacks something that ours have.
    sandbox.sh(
        Place::Host,
        "ip link add pm7 index 1000007 type veth peer name a7; \
         ip link add pm8 type veth peer name a8; ip link set pm8 alias portmap:eight; \
         ip link add x9 index 1000009 type veth peer name a9; ip link set x9 alias portmap:nine; \
         ip netns add theirs",
    );
    let daemon = sandbox.daemon();
    let log = daemon.log();
    for expected in ["lost.json is damaged", "lost.json.damaged", "removing pm2"] {
        assert!(log.contains(expected), "{expected}: {log}");
    }
    let links = sandbox.sh(Place::Host, "ip -o link");
    assert!(!links.contains("pm2"), "{links}");
    for kept in ["pm1@", "pm7@", "pm8@", "x9@"] {
        assert!(links.contains(kept), "{kept}: {links}");
    }
    sandbox.ok(&["doctor"]);
    // The namespace's name could be anybody's; it stays, like the file.
    sandbox.sh(
        Place::Host,
        "for i in pm7 pm8 x9; do ip link del $i; done; ip netns del theirs; ip netns del lost; \
         rm /run/portmap/containers/lost.json.damaged",
    );
    sandbox.expect_inventory(&before, "at the end");
}

#[test]
fn a_record_from_the_future_is_refused() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    sandbox.ok(&["add", "a"]);
    daemon.stop();
    let file = "containers/a.json";
    let now = change_state(&sandbox, file, |file| file["version"] = json!(99));
    let (code, log) = sandbox.refused_daemon(&DAEMON_FLAGS);
    assert_eq!(code, 4, "{log}");
    assert!(log.contains("a.json has version 99, expected 3 to 5: run the portmapd that wrote it"), "{log}");
    change_state(&sandbox, file, |file| *file = now);
    let _daemon = sandbox.daemon();
    sandbox.ok(&["doctor"]);
}

#[test]
fn a_record_of_an_earlier_version_is_completed() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    sandbox.ok(&["add", "a"]);
    let before = sandbox.inventory();
    daemon.stop();
    let file = "containers/a.json";
    let now = change_state(&sandbox, file, |file| {
        file["version"] = json!(4);
        let namespace = file["record"]["namespace"].as_object_mut().expect("an object");
        namespace.remove("cookie").expect("a cookie");
    });
    let _daemon = sandbox.daemon();
    sandbox.ok(&["doctor"]);
    sandbox.expect_inventory(&before, "with a daemon again");
    assert_eq!(change_state(&sandbox, file, |_same| {}), now);
}

#[test]
fn state_from_before_a_reboot_is_forgotten() {
    let sandbox = Sandbox::new();
    let flags = [&DAEMON_FLAGS[..], &["--ephemeral-ports-rest", "60secs"]].concat();
    let daemon = sandbox.daemon_with(&flags);
    let added = sandbox.json(&["add", "b"]);
    sandbox.ok(&["add", "a"]);
    sandbox.ok(&["del", "b"]);
    daemon.stop();
    sandbox.sh(Place::Host, "cp -r /run/portmap /run/kept");
    sandbox.ok(&["teardown"]);
    // Somebody's, to whom all numbers are given as if for the first time.
    sandbox.sh(Place::Host, "ip netns add a");
    let before = sandbox.inventory();
    let boot_again = || {
        sandbox.sh(Place::Host, "cp -r /run/kept /run/portmap");
        change_state(&sandbox, "host.json", |file| file["record"]["boot"] = json!("another"));
        let id = json!(sandbox.namespace(A).id().expect("a namespace"));
        change_state(&sandbox, "containers/a.json", |file| file["record"]["namespace"] = id);
    };
    boot_again();
    let daemon = sandbox.daemon_with(&flags);
    assert_eq!(sandbox.json(&["list"]), json!([]));
    assert!(daemon.log().contains("before the machine was started"), "{}", daemon.log());
    assert_eq!(sandbox.json(&["add", "b"])["ephemeral_ports"], added["ephemeral_ports"], "none of them rest");
    daemon.stop();
    sandbox.ok(&["teardown"]);
    sandbox.expect_inventory(&before, "with a daemon");
    boot_again();
    sandbox.ok(&["teardown"]);
    sandbox.expect_inventory(&before, "without a daemon");
    sandbox.sh(Place::Host, "rm -r /run/kept; ip netns del a");
}

#[test]
fn containers_follow_the_host() {
    served!(sandbox, daemon,);
    let expect = |what: &str, script: &str| {
        wait::until(what, || {
            sandbox.command(A, "sh").args(["-ec", script]).status().expect("a shell").success()
        });
        wait::until(what, || is_healthy(&sandbox));
    };
    // Another address, as DHCP may bring; the old default route goes with the old address.
    let host = Ipv4Addr::new(10, 0, 0, 9);
    readdress(&sandbox, HOST, host);
    expect("the new address", "ip -4 address show dev eth0 | grep -q 10.0.0.9/24");
    check_traffic(&sandbox, host);
    // Another IPv6 address, and the old one deprecated.
    sandbox.sh(
        Place::Host,
        "ip address change 2001:db8:0:1::1/64 dev uplink preferred_lft 0 valid_lft 1000; \
         ip address add 2001:db8:0:1::9/64 dev uplink nodad",
    );
    expect("the new IPv6 address", "ip -6 address show dev eth0 | grep -q 2001:db8:0:1::9/64");
    assert!(!sandbox.sh(A, "ip -6 address show dev eth0").contains(&HOST6.to_string()));
    let _outside = Service::start(&sandbox, Place::Outside, Transport::Udp, 7001, "outside");
    ask(&sandbox, A, Transport::Udp, (OUTSIDE6, 7001)).expect("an answer");
    // Another MTU and another MAC address.
    sandbox.sh(Place::Host, "ip link set uplink mtu 1400; ip link set uplink address 02:00:00:00:01:99");
    expect("the new MTU", "ip link show eth0 | grep -q 'mtu 1400'; ip link show lo | grep -q 'mtu 1400'");
    expect("the new MAC address", "ip link show eth0 | grep -q 02:00:00:00:01:99");
    // Who knew the old one finds out by and by.
    sandbox.sh(Place::Outside, "ip neigh flush dev eth0");
    check_traffic(&sandbox, host);
    // Another gateway.
    sandbox.sh(Place::Outside, "ip address add 10.0.0.3/24 dev eth0");
    sandbox.sh(Place::Host, "ip route replace default via 10.0.0.3");
    expect("the new gateway", "ip route show default | grep -q 10.0.0.3");
    check_traffic(&sandbox, host);
    // Another name.
    sandbox.sh(Place::Host, "ip link set uplink down; ip link set uplink name wan0; ip link set wan0 up");
    sandbox.sh(Place::Host, "ip route replace default via 10.0.0.3; ip -6 address add 2001:db8:0:1::9/64 dev wan0 nodad 2>/dev/null || true");
    wait::until("the new name", || daemon.log().contains("of wan0"));
    wait::until("health", || is_healthy(&sandbox));
    check_traffic(&sandbox, host);
}

#[test]
fn more_news_than_the_daemon_can_take_are_no_harm() {
    served!(sandbox, daemon,);
    daemon.pause();
    // Several times what the kernel keeps for a socket.
    sandbox.sh(
        Place::Host,
        "for i in $(seq 1000); do echo address add 10.9.9.9/32 dev lo; echo address del 10.9.9.9/32 dev lo; done | \
         ip -batch -",
    );
    let (first, second) = (Ipv4Addr::new(10, 0, 0, 9), Ipv4Addr::new(10, 0, 0, 8));
    readdress(&sandbox, HOST, first);
    daemon.resume();
    let has = |address: Ipv4Addr| sandbox.sh(A, "ip -4 address show dev eth0").contains(&address.to_string());
    wait::until("the new address", || has(first));
    wait::until("a word of it", || daemon.log().contains("more to tell than there was room for"));
    // And it still listens.
    readdress(&sandbox, first, second);
    wait::until("the next address", || has(second));
    wait::until("health", || is_healthy(&sandbox));
    check_traffic(&sandbox, second);
}

#[test]
fn an_uplink_that_returns_is_taken_again() {
    served!(sandbox, _daemon,);
    sandbox.sh(Place::Host, "ip link del uplink");
    // What stays on the host works on.
    let answer = ask(&sandbox, Place::Host, Transport::Udp, (Ipv4Addr::LOCALHOST, 31000)).expect("an answer");
    assert_eq!(answer.from, "a");
    assert!(!is_healthy(&sandbox));
    sandbox.sh(
        Place::Host,
        "ip link add uplink address 02:00:00:00:01:01 type veth peer name eth0 address 02:00:00:00:01:02 netns outside; \
         ip address add 10.0.0.1/24 dev uplink; ip address add 2001:db8:0:1::1/64 dev uplink nodad; \
         ip -n outside address add 10.0.0.2/24 dev eth0; ip link set uplink up; ip -n outside link set eth0 up; \
         ip route add default via 10.0.0.2",
    );
    wait::until("health", || is_healthy(&sandbox));
    check_traffic(&sandbox, HOST);
}

#[test]
fn a_second_default_route_changes_nothing() {
    served!(sandbox, _daemon,);
    sandbox.sh(
        Place::Host,
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
fn commands_on_one_container_take_turns() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    let before = sandbox.inventory();
    thread::scope(|scope| {
        for worker in 0..4 {
            let sandbox = &sandbox;
            scope.spawn(move || {
                for round in 0..6 {
                    // Two names for four workers; whoever comes too late or too early is told so.
                    let name = ["a", "b"][worker % 2];
                    let ports = ["31000-31003", "31002-31009", "31100"][round % 3];
                    let verb: &[&str] = match (worker + round) % 4 {
                        0 | 1 => &["add", name, "--ports", ports],
                        2 => &["update", name, "--ports", ports, "--egress-rate", "1gbit"],
                        _ => &["del", name],
                    };
                    let output = sandbox.portmap(verb);
                    let errors = String::from_utf8_lossy(&output.stderr);
                    assert!(matches!(output.status.code(), Some(0 | 3 | 4)), "{verb:?}: {errors}");
                }
            });
        }
    });
    sandbox.ok(&["doctor"]);
    for name in ["a", "b"] {
        let _ = sandbox.portmap(&["del", name]);
    }
    sandbox.ok(&["doctor"]);
    sandbox.expect_inventory(&before, "at the end");
}

#[test]
fn a_client_that_goes_away_leaves_no_half_of_anything() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    let before = sandbox.inventory();
    for _ in 0..8 {
        let mut client = sandbox
            .portmap_command(&["add", "a", "--ports", "31000"])
            .stdout(Stdio::null())
            .spawn()
            .expect("it runs");
        wait::until("the request to arrive", || sandbox.path("/run/portmap/containers/a.json").exists());
        client.kill().expect("killed");
        let _ = client.wait();
        wait::until("an end of it", || sandbox.json(&["list"])[0]["state"] == "ready");
        sandbox.ok(&["doctor"]);
        sandbox.ok(&["del", "a"]);
        sandbox.expect_inventory(&before, "at the end");
    }
}

#[test]
fn a_container_that_makes_news_all_the_time_keeps_nobody_from_following_the_host() {
    served!(sandbox, _daemon,);
    sandbox.ok(&["add", "b", "--ports", "31001"]);
    let mut flapping = sandbox.command(A, "sh");
    flapping.args(["-c", "while :; do ip link set eth0 down; ip link set eth0 up; done"]);
    let mut flapping = flapping.stderr(Stdio::null()).spawn().expect("a shell");
    let second = Ipv4Addr::new(10, 0, 0, 9);
    readdress(&sandbox, HOST, second);
    let has =
        |name| sandbox.sh(Place::Container(name), "ip -4 address show dev eth0").contains("10.0.0.9/24");
    wait::until("another container to have the new address", || has("b"));
    // Its own end is noticed, too.
    sandbox.sh(Place::Host, "ip netns del b");
    wait::until("an end to be noticed", || sandbox.portmap(&["show", "b"]).status.code() == Some(3));
    assert!(matches!(flapping.try_wait(), Ok(None)), "it goes on");
    flapping.kill().expect("it runs");
    flapping.wait().expect("it ends");
}

#[test]
fn ports_rest_although_the_daemon_is_replaced() {
    let sandbox = Sandbox::new();
    let flags =
        "--ephemeral-ports-rest 60secs --ephemeral-ports 65504-65535 --ephemeral-ports-per-container 16";
    let flags: Vec<&str> = DAEMON_FLAGS.into_iter().chain(flags.split(' ')).collect();
    let daemon = sandbox.daemon_with(&flags);
    let block = |name: &str| sandbox.json(&["add", name])["ephemeral_ports"].clone();
    let first = block("a");
    sandbox.ok(&["del", "a"]);
    daemon.kill();
    let daemon = sandbox.daemon_with(&flags);
    assert_ne!(block("b"), first);
    let refusal = sandbox.fails(&["add", "c"], 4);
    assert!(refusal.contains("16 rest"), "{refusal}");
    // Nobody needs to wait for it who does not want to.
    daemon.stop();
    let flags: Vec<&str> = flags.into_iter().chain(["--ephemeral-ports-rest", "0"]).collect();
    let _daemon = sandbox.daemon_with(&flags);
    assert_eq!(block("c"), first);
}
