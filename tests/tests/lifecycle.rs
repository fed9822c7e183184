//! Life cycle: what outlives the daemon, takeover by the next daemon, and complete removal.

use std::{fs, net::Ipv4Addr};

use portmap_tests::{
    not_run,
    sandbox::{DAEMON_FLAGS, HOST, Netns, OUTSIDE, Sandbox, binary},
    service::{Service, Transport, ask, expect_no_reply},
    wait,
};
use serde_json::json;

const A: Netns<'_> = Netns::Container("a");

/// Asserts that the service of `a` on port 31000 is reachable from everywhere.
fn check_traffic(sandbox: &Sandbox) {
    for (netns, address) in [(Netns::Outside, HOST), (Netns::Host, HOST), (Netns::Host, Ipv4Addr::LOCALHOST)]
    {
        let answer = ask(sandbox, netns, Transport::Tcp, (address, 31000)).expect("an answer");
        assert_eq!(answer.from, "a", "{netns:?} by {address}");
    }
}

#[test]
fn datapath_outlives_the_daemon() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    sandbox.ok(&["add", "a", "--ports", "31000-31009"]);
    let added = sandbox.json(&["show", "a"]);
    let _service = Service::start(&sandbox, A, Transport::Tcp, 31000, "a");
    check_traffic(&sandbox);
    let before = sandbox.json(&["stats", "a"]);

    daemon.stop();
    check_traffic(&sandbox);
    sandbox.fails(&["list"], 5);

    let daemon = sandbox.daemon();
    assert_eq!(sandbox.json(&["list"]), json!([added]));
    check_traffic(&sandbox);
    // The counters continued throughout.
    let path = "/traffic/rx_outside/packets";
    let packets =
        |stats: &serde_json::Value| stats.pointer(path).and_then(serde_json::Value::as_u64).expect(path);
    let later = packets(&sandbox.json(&["stats", "a"]));
    // Two more connections, each with at least a SYN, two ACKs and a FIN.
    assert!(later >= packets(&before) + 2 * 4, "{later} {before}");
    sandbox.ok(&["doctor"]);

    daemon.kill();
    check_traffic(&sandbox);
    let _daemon = sandbox.daemon();
    assert_eq!(sandbox.json(&["list"]), json!([added]));
    sandbox.fails(&["add", "b", "--ports", "31000"], 4);
    assert_eq!(sandbox.json(&["add", "b"])["ephemeral_ports"], json!([62464, 63487]));
    sandbox.ok(&["doctor"]);
    sandbox.ok(&["del", "a"]);
    expect_no_reply(&sandbox, Netns::Outside, Transport::Tcp, (HOST, 31000));
}

#[test]
fn connection_survives_daemon_replacement() {
    use std::{
        io::{Read as _, Write as _},
        net::{TcpListener, TcpStream},
    };

    let sandbox = Sandbox::new();
    let mut daemon = sandbox.daemon();
    sandbox.ok(&["add", "a", "--ports", "31000"]);
    let listener = sandbox.inside(A, || TcpListener::bind("0.0.0.0:31000")).expect("the port is free");
    let mut client = sandbox.inside(Netns::Outside, || TcpStream::connect((HOST, 31000))).expect("connected");
    let (mut server, _) = listener.accept().expect("a connection");
    for round in 0..3_u8 {
        daemon.stop();
        daemon = sandbox.daemon();
        client.write_all(&[round]).expect("sent");
        let mut byte = [0xff];
        server.read_exact(&mut byte).expect("received");
        assert_eq!(byte, [round]);
    }
}

#[test]
fn teardown_restores_the_host() {
    let sandbox = Sandbox::new();
    let before = sandbox.inventory();
    // By the daemon, which then exits, and by the command line alone.
    for with_daemon in [true, false] {
        let daemon = sandbox.daemon();
        sandbox.ok(&["add", "a", "--ports", "31000"]);
        sandbox.ok(&["add", "b"]);
        if with_daemon {
            sandbox.ok(&["teardown"]);
            daemon.wait();
        } else {
            daemon.kill();
            sandbox.ok(&["teardown"]);
        }
        sandbox.expect_inventory(&before, if with_daemon { "with a daemon" } else { "without" });
    }
    assert_eq!(sandbox.ok(&["teardown"]), "there was nothing to remove\n");
    sandbox.expect_inventory(&before, "at the end");
}

#[test]
fn teardown_keeps_foreign_programs_and_filters() {
    let sandbox = Sandbox::new();
    // A foreign filter on the uplink, in a foreign qdisc.
    sandbox.sh(
        Netns::Host,
        "tc qdisc add dev uplink clsact; \
         tc filter add dev uplink ingress protocol ip prio 7 u32 match ip dport 7 0xffff flowid 1:1",
    );
    let before = sandbox.inventory();
    let _daemon = sandbox.daemon();
    sandbox.ok(&["add", "a", "--ports", "31000"]);
    let _service = Service::start(&sandbox, A, Transport::Tcp, 31000, "a");
    check_traffic(&sandbox);
    sandbox.ok(&["teardown"]);
    sandbox.expect_inventory(&before, "after it");
}

/// A tunnel module puts its fallback device into every new namespace, at the first free index. The test loads
/// no module, because that would change the namespaces of all other tests.
#[test]
fn netns_with_fallback_tunnels_is_provisioned() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    let links = sandbox.sh(Netns::Host, "ip netns add probe; ip -n probe -o link; ip netns del probe");
    if links.lines().count() < 2 {
        not_run("no module for tunnels is loaded (`modprobe ipip`)");
        return;
    }
    sandbox.ok(&["add", "a", "--ports", "31000"]);
    let _service = Service::start(&sandbox, Netns::Container("a"), Transport::Tcp, 31000, "a");
    check_traffic(&sandbox);
    sandbox.ok(&["doctor"]);
}

#[test]
fn interface_of_a_container_has_the_requested_name() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    for (name, reason) in
        [("lo", "other than `lo`"), ("all", "`all`"), ("a/b", "without '/'"), ("sixteen-letters-", "15")]
    {
        let errors = sandbox.fails(&["add", "a", "--container-interface", name], 2);
        assert!(errors.contains(name) && errors.contains(reason), "{errors}");
    }
    let uplink = "bond0.100";
    let added = sandbox.json(&[
        "add",
        "a",
        "--ports",
        "31000",
        "--container-interface",
        uplink,
        "--egress-rate",
        "1gbit",
    ]);
    assert_eq!(added["interface"], uplink);
    let links = || sandbox.sh(A, "ip -br link");
    assert!(links().contains("bond0.100@") && !links().contains("eth0"), "{}", links());
    let _service = Service::start(&sandbox, A, Transport::Tcp, 31000, "a");
    let _outside = Service::start(&sandbox, Netns::Outside, Transport::Tcp, 7001, "outside");
    let check = || {
        check_traffic(&sandbox);
        assert_eq!(ask(&sandbox, A, Transport::Tcp, (OUTSIDE, 7001)).expect("an answer").from, "outside");
        sandbox.ok(&["doctor"]);
        assert!(sandbox.sh(A, "tc qdisc show dev bond0.100").contains("htb"));
    };
    check();
    // The next daemon knows the name, and so does the one that recreates the interface.
    daemon.stop();
    let _daemon = sandbox.daemon();
    sandbox.sh(A, "ip link del bond0.100");
    wait::until("the interface to be recreated", || links().contains("bond0.100@"));
    wait::until("health", || sandbox.portmap(&["doctor"]).status.success());
    check();
    // A daemon does not start in a container, whatever the name of its interface.
    let output = sandbox.command(A, binary("portmapd")).args(DAEMON_FLAGS).output().expect("it runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(errors.contains("network namespace of a portmap container"), "{errors}");
}

#[test]
fn netns_existing_one_is_restored_by_delete() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    sandbox.sh(Netns::Host, "ip netns add existing; ip -n existing link set lo up");
    let existing = Netns::Container("existing");
    // A namespace that already contains an eth0 is refused and left unchanged.
    sandbox.sh(Netns::Host, "ip -n existing link add eth0 type veth peer name peer");
    let with_eth0 = sandbox.sh(existing, "ip -o link");
    let errors = sandbox.fails(&["add", "a", "--netns", "/run/netns/existing"], 4);
    assert!(errors.contains("already has an interface eth0"), "{errors}");
    assert_eq!(sandbox.sh(existing, "ip -o link"), with_eth0);
    let other = "another-name-12";
    sandbox.ok(&["add", "a", "--netns", "/run/netns/existing", "--container-interface", other]);
    assert!(sandbox.sh(existing, "ip -o link show eth0").contains("eth0"));
    sandbox.ok(&["del", "a"]);
    sandbox.sh(Netns::Host, "ip -n existing link del eth0");
    // The loopback device keeps its new MAC address, because the kernel does not accept an all-zero
    // one.
    let look = "ip -o link | sed 's/link.loopback [^ ]*//'; ip -o address; ip route; \
        cat /proc/sys/net/ipv4/ip_local_port_range; tc qdisc";
    let before = sandbox.sh(existing, look);
    let added = sandbox.json(&["add", "a", "--netns", "/run/netns/existing", "--ports", "31000"]);
    assert_eq!(added["netns"], "/run/netns/existing");
    let service = Service::start(&sandbox, existing, Transport::Tcp, 31000, "a");
    check_traffic(&sandbox);
    let errors = sandbox.fails(&["add", "b", "--netns", "/run/netns/existing"], 4);
    assert!(errors.contains("already the network namespace of container \"a\""), "{errors}");
    check_traffic(&sandbox);
    drop(service);
    sandbox.ok(&["del", "a"]);
    assert_eq!(sandbox.sh(existing, look), before);
}

#[test]
fn netns_by_pid_is_released_with_its_process() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    let before = sandbox.inventory();
    let mut process = sandbox
        .command(Netns::Host, "unshare")
        .args(["--net", "sh", "-c", "echo $$; exec sleep infinity"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("unshare is part of util-linux");
    let mut pid = String::new();
    std::io::BufRead::read_line(
        &mut std::io::BufReader::new(process.stdout.as_mut().expect("piped")),
        &mut pid,
    )
    .expect("a pid");
    let pid = pid.trim();
    let added = sandbox.json(&["add", "a", "--pid", pid, "--ports", "31000"]);
    assert_eq!(added["pid"], json!(pid.parse::<u32>().expect("a number")));
    assert!(sandbox.ok(&["exec", "a", "--", "ip", "-br", "address"]).contains("10.0.0.1/24"));
    // The kernel destroys the namespace with the process; the daemon then releases the container.
    sandbox.sh(Netns::Host, &format!("kill -KILL {pid}"));
    let _ = process.wait();
    wait::until("the container to end", || sandbox.json(&["list"]) == json!([]));
    wait::until("everything to be removed", || sandbox.inventory() == before);
    sandbox.ok(&["doctor"]);
}

#[test]
fn start_checks_a_container_before_its_command() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    for (name, port) in [("a", "31000"), ("b", "31001"), ("c", "31002")] {
        sandbox.ok(&["add", name, "--ports", port]);
    }
    daemon.kill();
    sandbox.sh(Netns::Host, "ip netns del a; ip netns del b");
    // The daemon becomes ready before it has checked the containers that it found.
    let mut daemon = sandbox.start_daemon(&DAEMON_FLAGS);
    assert!(daemon.wait_ready(), "{}", daemon.log());
    assert_eq!(sandbox.json(&["add", "d", "--ports", "31000"])["state"], "ready");
    assert!(sandbox.fails(&["show", "b"], 3).contains("no container is called \"b\""));
    assert_eq!(sandbox.json(&["update", "c", "--ports", "31001"])["state"], "ready");
    daemon.wait_checked();
    sandbox.ok(&["doctor"]);
}

#[test]
fn start_removes_unfinished_containers() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    sandbox.ok(&["add", "a", "--ports", "31000"]);
    sandbox.ok(&["add", "b", "--ports", "31001"]);
    daemon.kill();
    // Simulates a kill in the middle of an add and of a delete.
    for (name, phase) in [("a", "adding"), ("b", "deleting")] {
        let path = sandbox.path(format!("/run/portmap/containers/{name}.json"));
        let text = fs::read_to_string(&path).expect("a record");
        fs::write(&path, text.replace("\"ready\"", &format!("\"{phase}\""))).expect("written");
    }
    let daemon = sandbox.daemon();
    assert!(
        daemon.log().contains("container \"a\": removed: a previous daemon left it in state adding"),
        "{}",
        daemon.log()
    );
    assert_eq!(sandbox.json(&["list"]), json!([]));
    assert_eq!(sandbox.sh(Netns::Host, "ls /run/netns"), "outside\n");
    assert_eq!(sandbox.sh(Netns::Host, "ip -o link").matches("pm").count(), 0);
    assert_eq!(sandbox.json(&["add", "c", "--ports", "31000-31001"])["slot"], 1);
    sandbox.ok(&["doctor"]);
}

#[test]
fn settings_that_exclude_a_container_are_refused() {
    let sandbox = Sandbox::new();
    sandbox.daemon().stop();
    let daemon = sandbox.daemon();
    sandbox.ok(&["add", "a", "--ports", "31000"]);
    daemon.stop();
    for (flag, value, expected) in [
        ("--ports", "31001-32000", "container \"a\" owns the ports 31000"),
        ("--ephemeral-ports", "63488-65535", "61440-62463"),
        ("--bpffs-dir", "/sys/fs/bpf/other", "/sys/fs/bpf/portmap"),
    ] {
        let flags: Vec<_> = DAEMON_FLAGS.iter().copied().chain([flag, value]).collect();
        let (code, log) = sandbox.refused_daemon(&flags);
        assert_eq!(code, 4, "{log}");
        assert!(log.contains(expected), "{log}");
    }
    let _daemon = sandbox.daemon();
    sandbox.ok(&["doctor"]);
}

#[test]
fn uplink_may_change_between_daemons() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    sandbox.ok(&["add", "a", "--ports", "31000"]);
    let _service = Service::start(&sandbox, A, Transport::Tcp, 31000, "a");
    check_traffic(&sandbox);
    daemon.stop();
    // A name in the style of a VLAN device.
    let rename = "ip link set uplink down; ip link set uplink name up.5; \
        ip link set up.5 up; ip route add default via 10.0.0.2";
    sandbox.sh(Netns::Host, rename);
    let _daemon = sandbox.daemon();
    check_traffic(&sandbox);
    sandbox.ok(&["doctor"]);
}

#[test]
fn bpftool_shows_owners_and_counters_by_name() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    sandbox.ok(&["add", "a", "--ports", "31000-31001"]);
    sandbox.ok(&["add", "b", "--ports", "31500"]);
    let bpftool = |arguments: &str| -> serde_json::Value {
        let path = "/sys/fs/bpf/portmap/v6/maps";
        let text = sandbox.sh(Netns::Host, &format!("bpftool -j map {}", arguments.replace('@', path)));
        serde_json::from_str(&text).expect("JSON")
    };
    let ports = bpftool("dump pinned @/pm_ports");
    let entries = ports.as_array().expect("entries");
    assert_eq!(entries.len(), 65_536);
    let mut owned = 0;
    for entry in entries {
        let entry = &entry["formatted"];
        let port = entry["key"].as_u64().expect("a port");
        let slot = match port {
            31000..=31001 | 61440..=62463 => 1,
            31500 | 62464..=63487 => 2,
            _ => 0,
        };
        owned += u64::from(slot != 0);
        let ifindex = if slot == 0 { 0 } else { 1_000_000 + slot };
        assert_eq!(entry["value"], json!({"ifindex": ifindex, "slot": slot, "flags": 0}), "{port}");
    }
    assert_eq!(owned, 3 + 2 * 1024);
    let _service = Service::start(&sandbox, A, Transport::Tcp, 31000, "a");
    ask(&sandbox, Netns::Outside, Transport::Tcp, (HOST, 31000)).expect("an answer");
    let packets = sandbox.json(&["stats", "a"])["traffic"]["rx_outside"]["packets"].clone();
    let counters = bpftool("lookup pinned @/pm_counters key 1 0 0 0");
    let cpus = counters["formatted"]["values"].as_array().expect("one for each CPU");
    let sum: u64 =
        cpus.iter().map(|cpu| cpu["value"]["rx_outside"]["packets"].as_u64().expect("a number")).sum();
    assert_eq!(json!(sum), packets);
    let config = bpftool("dump pinned @/pm_config");
    assert_eq!(config[0]["formatted"]["value"]["host_ip"]["bytes"], json!([10, 0, 0, 1]));
    let drops = bpftool("lookup pinned @/pm_drops key 1 0 0 0");
    assert_eq!(drops["formatted"]["value"]["tx"]["source_port"], 0);
}
