//! Recovery of containers, of their kernel objects and of the host: automatically, with `doctor --repair`,
//! and at the next start.

mod host;

use std::{fs, net::Ipv4Addr, process::Stdio, thread};

use portmap_common::gcra::GcraState;
use portmap_tests::{
    daemon::Daemon,
    faults::sample,
    sandbox::{DAEMON_FLAGS, HOST, Netns, OUTSIDE, Sandbox},
    service::{Service, Transport, ask},
    wait,
};
use serde_json::json;

const A: Netns<'_> = Netns::Container("a");

/// Asserts that the container is reachable from everywhere, and reaches the outside.
fn check_traffic(sandbox: &Sandbox, host: Ipv4Addr) {
    for (netns, address) in [(Netns::Outside, host), (Netns::Host, host), (Netns::Host, Ipv4Addr::LOCALHOST)]
    {
        let answer = ask(sandbox, netns, Transport::Udp, (address, 31000)).expect("an answer");
        assert_eq!(answer.from, "a", "{netns:?} by {address}");
    }
    let answer = ask(sandbox, A, Transport::Udp, (OUTSIDE, 7000)).expect("an answer");
    assert_eq!((answer.from.as_str(), answer.client.ip()), ("outside", host.into()));
}

/// Creates a sandbox, a daemon with these additional flags, a container, and services in it and outside.
fn served(flags: &[&str]) -> (Sandbox, Daemon, [Service; 2]) {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon_with(&[&DAEMON_FLAGS[..], flags].concat());
    sandbox.ok(&["add", "a", "--ports", "31000", "--ingress-rate", "1gbit"]);
    let services = [
        Service::start(&sandbox, A, Transport::Udp, 31000, "a"),
        Service::start(&sandbox, Netns::Outside, Transport::Udp, 7000, "outside"),
    ];
    check_traffic(&sandbox, HOST);
    (sandbox, daemon, services)
}

fn is_healthy(sandbox: &Sandbox) -> bool {
    sandbox.portmap(&["doctor"]).status.success()
}

/// Damage to a container in service, and the subject that `doctor` reports.
const DAMAGE: [(&str, &str); 7] = [
    ("echo > /proc/sys/net/ipv4/ip_local_reserved_ports", "ip_local_reserved_ports lacks 31000-32000"),
    ("ip netns exec a ip route del default", "the default route is not the host's"),
    ("echo 0 > /proc/sys/net/ipv4/conf/lo/accept_local", "conf/lo/accept_local is 0, expected 1"),
    ("ip link set pm1 down", "pm1 is down"),
    (
        "bpftool map update pinned /sys/fs/bpf/portmap/v6/maps/pm_ports key hex 18 79 00 00 value 9 0 0 0 9 0 0 0",
        "port 31000 of container \"a\" belongs to slot 9 in the map, expected 1",
    ),
    (
        "rm -f /sys/fs/bpf/portmap/v6/links/if$(ip -o link show uplink | cut -d: -f1); \
         tc filter del dev uplink ingress 2>/dev/null || true",
        "pm_uplink_in is not attached to uplink",
    ),
    (
        "rm -f /sys/fs/bpf/portmap/v6/links/pm1; tc filter del dev pm1 ingress 2>/dev/null || true",
        "pm_veth_in is not attached to pm1",
    ),
];

/// Returns a command that removes the host-side enforcement of slot 1's limits.
fn no_limit() -> String {
    let nothing = "0 ".repeat(size_of::<GcraState>());
    format!("bpftool map update pinned /sys/fs/bpf/portmap/v6/maps/pm_limits key 1 0 0 0 value {nothing}")
}

#[test]
fn doctor_names_and_repairs_drift() {
    let (sandbox, _daemon, _services) = served(&["--reconcile=false"]);
    sandbox.ok(&["doctor"]);
    for (damage, expected) in DAMAGE {
        sandbox.sh(Netns::Host, damage);
        let output = sandbox.portmap(&["doctor"]);
        assert_eq!(output.status.code(), Some(7), "{damage}");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains(expected), "{expected}: {text}");
        sandbox.ok(&["doctor", "--repair"]);
        check_traffic(&sandbox, HOST);
    }
    // The limits, too.
    let replaced = "ip netns exec a tc qdisc replace dev eth0 root pfifo";
    for gone in ["tc qdisc del dev pm1 root", replaced, &no_limit()] {
        sandbox.ok(&["update", "a", "--egress-rate", "1gbit"]);
        sandbox.sh(Netns::Host, gone);
        assert!(!is_healthy(&sandbox), "{gone}");
        sandbox.ok(&["doctor", "--repair"]);
    }
    check_traffic(&sandbox, HOST);
}

#[test]
fn reconcile_repairs_host_side_drift() {
    let (sandbox, daemon, _services) = served(&[]);
    for (damage, _) in DAMAGE {
        sandbox.sh(Netns::Host, damage);
    }
    wait::until("everything to be repaired", || is_healthy(&sandbox));
    check_traffic(&sandbox, HOST);
    assert!(daemon.log().contains("container \"a\": repaired"), "{}", daemon.log());
    // The limits that the host enforces, too.
    sandbox.ok(&["update", "a", "--egress-rate", "1gbit"]);
    for damage in ["tc qdisc del dev pm1 root", &no_limit()] {
        sandbox.sh(Netns::Host, damage);
        wait::until("limits to be repaired", || is_healthy(&sandbox));
    }
}

#[test]
fn reconcile_recreates_a_deleted_veth() {
    let (sandbox, daemon, _services) = served(&[]);
    let before = sandbox.inventory();
    sandbox.sh(Netns::Host, "ip link del pm1");
    wait::until("another interface", || sandbox.inventory() == before);
    check_traffic(&sandbox, HOST);
    sandbox.ok(&["doctor"]);
    // Also while no daemon runs.
    daemon.stop();
    sandbox.sh(Netns::Host, "ip link del pm1");
    let _daemon = sandbox.daemon();
    check_traffic(&sandbox, HOST);
    sandbox.ok(&["doctor"]);
    sandbox.expect_inventory(&before, "at the end");
}

#[test]
fn netns_recreated_by_another_tool_is_released() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    let before = sandbox.inventory();
    for name in ["a", "b"] {
        sandbox.ok(&["add", name, "--egress-rate", "1gbit"]);
    }
    daemon.stop();
    sandbox.sh(Netns::Host, "ip netns del a; ip netns del b");
    wait::until("the interfaces to go", || !sandbox.sh(Netns::Host, "ip -o link").contains("pm"));
    // The name and the inode number may be reused; they are in most cases, unless another test creates
    // a namespace.
    sandbox.sh(Netns::Host, "ip netns add b; ip -n b link set lo up");
    let number = sandbox.sh(Netns::Host, "stat -L -c %i /run/netns/b");
    let number: u64 = number.trim().parse().expect("a number");
    sandbox.change_state("containers/b.json", |file| file["record"]["namespace"]["inode"] = json!(number));
    // Another tool is about to mount a namespace here.
    sandbox.sh(Netns::Host, "touch /run/netns/a");
    let _daemon = sandbox.daemon();
    assert_eq!(sandbox.json(&["list"]), json!([]));
    assert_eq!(sandbox.sh(Netns::Host, "ip -n b -o link").lines().count(), 1);
    sandbox.sh(Netns::Host, "rm /run/netns/a");
    // Also while a daemon runs.
    sandbox.ok(&["add", "a"]);
    sandbox.sh(Netns::Host, "ip netns del a; ip netns add a; ip -n a link set lo up");
    wait::until("the container to be forgotten", || sandbox.json(&["list"]) == json!([]));
    assert_eq!(sandbox.sh(Netns::Host, "ip -n a -o link").lines().count(), 1);
    sandbox.sh(Netns::Host, "ip netns del a; ip netns del b");
    sandbox.expect_inventory(&before, "at the end");
}

#[test]
fn orphans_are_removed_lookalikes_kept() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    sandbox.ok(&["add", "kept", "--ports", "31001"]);
    let before = sandbox.inventory();
    sandbox.ok(&["add", "lost", "--ports", "31000", "--egress-rate", "1gbit"]);
    daemon.kill();
    // A truncated record.
    let record = sandbox.path("/run/portmap/containers/lost.json");
    let text = fs::read_to_string(&record).expect("a record");
    fs::write(&record, &text[..text.len() / 2]).expect("written");
    // Each lacks one property of ours.
    sandbox.sh(
        Netns::Host,
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
    let links = sandbox.sh(Netns::Host, "ip -o link");
    assert!(!links.contains("pm2"), "{links}");
    for kept in ["pm1@", "pm7@", "pm8@", "x9@"] {
        assert!(links.contains(kept), "{kept}: {links}");
    }
    sandbox.ok(&["doctor"]);
    // The namespace's name does not prove ownership, so it stays, like the file.
    sandbox.sh(
        Netns::Host,
        "for i in pm7 pm8 x9; do ip link del $i; done; ip netns del theirs; ip netns del lost; \
         rm /run/portmap/containers/lost.json.damaged",
    );
    sandbox.expect_inventory(&before, "at the end");
}

#[test]
fn commands_on_one_container_are_serialized() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    let before = sandbox.inventory();
    thread::scope(|scope| {
        for worker in 0..4 {
            let sandbox = &sandbox;
            scope.spawn(move || {
                for round in 0..6 {
                    // Two names for four workers; conflicting commands are refused.
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
fn client_disconnect_completes_the_operation() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    let before = sandbox.inventory();
    for _ in 0..8 / sample().min(4) {
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
