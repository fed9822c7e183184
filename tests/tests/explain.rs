//! `portmap explain`: every path of a packet, its answer if the loaded programs deviate, and that it has no
//! side effects.

use std::{io::Write as _, os::unix::net::UnixStream};

use aya::maps::{HashMap, Map, MapData};
use portmap::{
    kernel::{clock, maps::Maps},
    paths::Pins,
};
use portmap_common::{
    flow_state::{ECHO_LIFETIME, Echo, EchoKey},
    names,
    tables::Address6,
};
use portmap_tests::{
    daemon::Daemon,
    sandbox::{Netns, Sandbox},
};
use serde_json::{Value, json};

/// Starts a daemon with containers `a` (31000-31009) and `b` (31010-31019).
fn world() -> (Sandbox, Daemon) {
    world_of(Sandbox::new())
}

fn world_of(sandbox: Sandbox) -> (Sandbox, Daemon) {
    let daemon = sandbox.daemon();
    sandbox.ok(&["add", "a", "--ports", "31000-31009"]);
    sandbox.ok(&["add", "b", "--ports", "31010-31019"]);
    (sandbox, daemon)
}

/// Returns the verdict of each hook, and the overall verdict.
fn explain(sandbox: &Sandbox, question: &str) -> (Vec<String>, String) {
    let mut arguments = vec!["explain"];
    arguments.extend(question.split_whitespace());
    let answer = sandbox.json(&arguments);
    assert_eq!(answer["agrees"], true, "{question}: {answer}");
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let steps = answer["steps"].as_array().expect("steps").iter();
    let steps = steps.map(|step| format!("{} {}", text(&step["program"]), text(&step["verdict"])));
    (steps.collect(), text(&answer["text"]))
}

fn check(sandbox: &Sandbox, question: &str, steps: &[&str], expected: &str) {
    let (seen, text) = explain(sandbox, question);
    assert_eq!(seen, steps, "{question}");
    assert!(text.starts_with(expected), "{question}: {text}");
}

const TO_A: &str = "to container a (slot 1, pm1, ifindex 1000001)";
const TO_B: &str = "to container b (slot 2, pm2, ifindex 1000002)";
const OWN: &[&str] = &["pm_ctr_lo_out own"];
const VETH_DROPS: &[&str] = &["pm_veth_in drop"];
const TO_OUTSIDE: &[&str] = &["pm_veth_in to_outside"];
const UPLINK_LEAVES: &[&str] = &["pm_uplink_in continue"];
const LO_LEAVES: &[&str] = &["pm_lo_in continue"];

#[test]
fn explain_covers_packets_through_a_qdisc() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    sandbox.ok(&["add", "a", "--ports", "31000-31009", "--ingress-rate", "100mbit"]);
    sandbox.ok(&["add", "b", "--egress-rate", "100mbit"]);
    check(&sandbox, "--from outside --to 10.0.0.1:31000", &["pm_uplink_in to_container"], TO_A);
    check(&sandbox, "--from host --to 10.0.0.1:31000", &["pm_lo_in to_container"], TO_A);
    let by_eth0 = ["pm_ctr_lo_out to_eth0", "pm_veth_in to_container"];
    check(&sandbox, "--from b --to 10.0.0.1:31000", &by_eth0, TO_A);
    check(&sandbox, "--from b --to 10.0.0.2:80", TO_OUTSIDE, "to the outside by 10.0.0.2");
}

#[test]
fn explain_covers_every_path_without_counting() {
    let sandbox = Sandbox::new();
    // Without unsolicited traffic.
    for (netns, interface) in [(Netns::Host, "uplink"), (Netns::Outside, "eth0")] {
        sandbox.sh(netns, &format!("echo 1 > /proc/sys/net/ipv6/conf/{interface}/disable_ipv6"));
    }
    let (sandbox, _daemon) = world_of(sandbox);
    let before = sandbox.counters();
    for (question, steps, expected) in [
        ("--from outside --to 10.0.0.1:31000", &["pm_uplink_in to_container"][..], TO_A),
        (
            "--from outside --to 10.0.0.1:22",
            UPLINK_LEAVES,
            "left to the host: host_port - The destination port",
        ),
        ("--from outside --to 203.0.113.9:80", UPLINK_LEAVES, "left to the host: other_address"),
        ("--from outside --to 10.0.0.1 --proto icmp", UPLINK_LEAVES, "left to the host: icmp"),
        ("--from outside --to 10.0.0.1 --proto 47", UPLINK_LEAVES, "left to the host: protocol"),
        ("--from outside --to [fd00::1]:31000", UPLINK_LEAVES, "left to the host: ipv6"),
        ("--from outside --to 127.0.0.1:31000", &["pm_uplink_in drop"], "dropped: destination"),
        (
            "--from outside --src 10.0.0.1 --to 10.0.0.1:31000",
            &["pm_uplink_in drop"],
            "dropped: source_address - The source is not an address that the sender may use.",
        ),
        ("--from host --to 10.0.0.1:31010", &["pm_lo_in to_container"], TO_B),
        ("--from host --to 127.1.2.3:31010 --proto udp", &["pm_lo_in to_container"], TO_B),
        ("--from host --to 127.0.0.1:22", LO_LEAVES, "left to the host: host_port"),
        ("--from host --to 127.0.0.1 --proto icmp", LO_LEAVES, "left to the host: icmp"),
        ("--from host --to [::1]:31000", LO_LEAVES, "left to the host: ipv6"),
        ("--from host --to 10.0.0.2:80", &[], "not handled by portmap"),
        ("--from a --to 10.0.0.1:31000", OWN, "stays inside"),
        ("--from a --to 127.0.0.1 --proto icmp", OWN, "stays inside"),
        ("--from a --to [::1]:31010", OWN, "stays inside"),
        (
            "--from a --to 127.0.0.1:31010 --proto sctp",
            &["pm_ctr_lo_out to_eth0", "pm_veth_in to_container"],
            TO_B,
        ),
        (
            "--from a --to 10.0.0.1:22",
            &["pm_ctr_lo_out to_eth0", "pm_veth_in to_host", "pm_lo_in decided"],
            "to the host's stack",
        ),
        (
            "--from a --sport 31010 --to 10.0.0.1:22",
            &["pm_ctr_lo_out to_eth0", "pm_veth_in drop"],
            "dropped: source_port",
        ),
        ("--from a --to 10.0.0.2:80", TO_OUTSIDE, "to the outside by 10.0.0.2"),
        ("--from a --to 192.0.2.1:80 --proto udplite", TO_OUTSIDE, "to the outside by 10.0.0.2"),
        ("--from a --to 10.0.0.7:80 --proto dccp", TO_OUTSIDE, "to the outside by uplink, to a neighbour"),
        ("--from a --to 10.0.0.2 --proto icmp", TO_OUTSIDE, "to the outside by 10.0.0.2"),
        ("--from a --sport 22 --to 10.0.0.2:80", VETH_DROPS, "dropped: source_port"),
        ("--from a --src 10.0.0.9 --to 10.0.0.2:80", VETH_DROPS, "dropped: source_address"),
        ("--from a --src 127.0.0.1 --to 10.0.0.2:80", VETH_DROPS, "dropped: source_address"),
        ("--from a --to 224.0.0.251:5353 --proto udp", VETH_DROPS, "dropped: destination"),
        ("--from a --to 10.0.0.2 --proto 47", VETH_DROPS, "dropped: protocol"),
        ("--from a --to [fd00::2]:80", VETH_DROPS, "dropped: ipv6"),
    ] {
        check(&sandbox, question, steps, expected);
    }
    assert_eq!(sandbox.counters(), before);
}

#[test]
fn explain_covers_ipv6_where_shared() {
    let sandbox = Sandbox::new();
    // A network of its own, without a gateway.
    sandbox.sh(
        Netns::Host,
        "ip -6 address flush dev uplink scope global; ip -6 route flush default; \
         ip address add fd00::1/64 dev uplink nodad",
    );
    let (sandbox, _daemon) = world_of(sandbox);
    let to_b = &["pm_ctr_lo_out to_eth0", "pm_veth_in to_container"][..];
    for (question, steps, expected) in [
        ("--from outside --to [fd00::1]:31000", &["pm_uplink_in to_container"][..], TO_A),
        ("--from outside --to [::1]:31000", &["pm_uplink_in drop"], "dropped: destination"),
        ("--from host --to [fd00::1]:31010 --proto udp", &["pm_lo_in to_container"], TO_B),
        // Linux accepts these from a loopback device only.
        ("--from host --to [::1]:31010", &["pm_lo_in to_container", "pm_ctr_eth0_in to_loopback"], TO_B),
        (
            "--from a --to [::1]:31010",
            &["pm_ctr_lo_out to_eth0", "pm_veth_in to_container", "pm_ctr_eth0_in to_loopback"],
            TO_B,
        ),
        ("--from a --to [fd00::1]:31010", to_b, TO_B),
        (
            "--from a --to [::1]:22",
            &["pm_ctr_lo_out to_eth0", "pm_veth_in to_host", "pm_lo_in decided"],
            "to the host's stack",
        ),
        ("--from a --to fd00::1 --proto icmp6", OWN, "stays inside"),
        ("--from a --to fd00::2 --proto icmp6", TO_OUTSIDE, "to the outside by uplink, to a neighbour"),
        ("--from a --to [fd00::2]:80", TO_OUTSIDE, "to the outside by uplink, to a neighbour"),
        ("--from a --to [2001:db8::9]:80", VETH_DROPS, "dropped: no_route"),
        ("--from a --to [ff02::fb]:5353 --proto udp", VETH_DROPS, "dropped: destination"),
    ] {
        check(&sandbox, question, steps, expected);
    }
    let packet =
        |question: &[&str]| sandbox.json(&[&["explain", "--from"], question].concat())["packet"].take();
    assert_eq!(
        packet(&["outside", "--to", "[fd00::1]:31000"]),
        json!({
            "protocol": "tcp", "source": "2001:db8::1", "source_port": 40000, "destination": "fd00::1",
            "destination_port": 31000,
        })
    );
    assert_eq!(packet(&["a", "--to", "[fd00::2]:80"])["source"], "fd00::1");
    assert_eq!(packet(&["a", "--to", "[::1]:80"])["source"], "::1");
}

#[test]
fn explain_has_sensible_defaults() {
    let (sandbox, _daemon) = world();
    sandbox.ok(&["add", "c"]);
    let source = |from: &str, to: &str| {
        let packet = sandbox.json(&["explain", "--from", from, "--to", to])["packet"].take();
        (packet["source"].as_str().expect("an address").to_owned(), packet["source_port"].as_u64())
    };
    for (from, to, address, port) in [
        ("outside", "10.0.0.1:80", "198.51.100.1", 40000),
        ("host", "10.0.0.1:80", "10.0.0.1", 40000),
        ("host", "127.0.0.1:80", "127.0.0.1", 40000),
        ("a", "10.0.0.2:80", "10.0.0.1", 31000),
        ("b", "127.3.2.1:80", "127.0.0.1", 31010),
        ("c", "10.0.0.2:80", "10.0.0.1", 63488),
    ] {
        assert_eq!(source(from, to), (address.to_owned(), Some(port)), "{from} {to}");
    }
}

#[test]
fn explain_json_is_stable() {
    let (sandbox, _daemon) = world();
    let question = ["explain", "--from", "a", "--to", "10.0.0.1:31010", "--proto", "udp"];
    let target = "to container b (slot 2, pm2, ifindex 1000002)";
    assert_eq!(
        sandbox.json(&question),
        json!({
            "packet": {
                "protocol": "udp", "source": "10.0.0.1", "source_port": 31000, "destination": "10.0.0.1",
                "destination_port": 31010,
            },
            "steps": [
                {
                    "hook": "container's lo, egress", "program": "pm_ctr_lo_out", "verdict": "to_eth0",
                    "reason": null, "target": null, "text": "out by its interface (ifindex 2)", "agrees": true,
                },
                {
                    "hook": "pm1, ingress", "program": "pm_veth_in", "verdict": "to_container", "reason": null,
                    "target": "b", "text": target, "agrees": true,
                },
            ],
            "verdict": "to_container", "reason": null, "target": "b", "text": target, "agrees": true,
        })
    );
    assert_eq!(
        sandbox.ok(&question),
        "\
udp 10.0.0.1:31000 > 10.0.0.1:31010

HOOK                    PROGRAM        VERDICT
container's lo, egress  pm_ctr_lo_out  out by its interface (ifindex 2)
pm1, ingress            pm_veth_in     to container b (slot 2, pm2, ifindex 1000002)

to container b (slot 2, pm2, ifindex 1000002)
"
    );
    let dropped = sandbox.json(&["explain", "--from", "a", "--sport", "22", "--to", "10.0.0.2:80"]);
    assert_eq!((&dropped["verdict"], &dropped["reason"]), (&json!("drop"), &json!("source_port")));
    let outside = sandbox.json(&["explain", "--from", "a", "--to", "192.0.2.1:80"]);
    assert_eq!(outside["target"], "10.0.0.2");
}

#[test]
fn explain_shows_the_rewritten_icmp_id() {
    let (sandbox, _daemon) = world();
    let pins = Pins::new(sandbox.path("/sys/fs/bpf/portmap"));
    let generation = Maps::open(&pins).expect("maps").endpoint(2).expect("an entry").generation;
    let map = MapData::from_pin(pins.map(names::MAP_ECHO)).expect("pinned");
    let mut echoes: HashMap<_, EchoKey, Echo> = HashMap::try_from(Map::LruHashMap(map)).expect("a map");
    let peer = Address6::new([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 2]);
    let key = EchoKey { peer, id: 1, version: 4 };
    let seen = clock::monotonic().expect("every kernel has it");
    echoes.insert(key, Echo { generation, slot: 2, id: 1, seen }, 0).expect("written");
    let (_, text) = explain(&sandbox, "--from a --to 10.0.0.2 --proto icmp");
    assert!(text.starts_with("to the outside by 10.0.0.2 on uplink, with the identifier "), "{text}");
    check(&sandbox, "--from b --to 10.0.0.2 --proto icmp", TO_OUTSIDE, "to the outside by 10.0.0.2");
    // Identifiers of a deleted container are released.
    let seen = seen.saturating_sub(ECHO_LIFETIME + 1);
    echoes.insert(key, Echo { generation, slot: 2, id: 1, seen }, 0).expect("written");
    check(&sandbox, "--from a --to 10.0.0.2 --proto icmp", TO_OUTSIDE, "to the outside by 10.0.0.2");
    assert_eq!(echoes.keys().count(), 1, "explain records nothing");
}

#[test]
fn explain_detects_a_disagreeing_program() {
    let (sandbox, _daemon) = world();
    let question = ["explain", "--from", "outside", "--to", "10.0.0.1:31000"];
    // The host veths' program in place of the uplink's: the MAC address of the frame identifies no
    // sender.
    let directory = Pins::new("/sys/fs/bpf/portmap").program("");
    let directory = directory.display();
    sandbox.sh(
        Netns::Host,
        &format!("cd {directory}; mv pm_uplink_in aside; bpftool prog pin pinned pm_veth_in {directory}/pm_uplink_in"),
    );
    let output = sandbox.portmap(&question);
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{text} {errors}");
    for expected in ["dropped: source_mac", "(decision code)", TO_A, "DISAGREE"] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    for expected in ["pm_uplink_in decides \"dropped: source_mac", TO_A, "restart portmapd"] {
        assert!(errors.contains(expected), "{expected}: {errors}");
    }
    assert_eq!(errors.lines().count(), 1, "{errors}");
    let output = sandbox.portmap(&[&["-o", "json"], &question[..]].concat());
    assert_eq!(output.status.code(), Some(1));
    let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(answer["agrees"], false);
    assert_eq!(answer["steps"][0]["verdict"], "drop");
    assert_eq!(answer["steps"][0]["decision_code"]["verdict"], "to_container");
    // A program that reports no verdict at all.
    sandbox.sh(
        Netns::Host,
        &format!(
            "cd {directory}; rm pm_uplink_in; id=$(bpftool prog show | \
             sed -n 's/^\\([0-9]*\\): sched_cls .*pm_dropped.*/\\1/p' | tail -1); \
             bpftool prog pin id \"$id\" {directory}/pm_uplink_in"
        ),
    );
    let output = sandbox.portmap(&question);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("reports no verdict"), "{text}");
    // Without a program there is an error; with the right one they agree again.
    sandbox.sh(Netns::Host, &format!("rm {directory}/pm_uplink_in"));
    let errors = sandbox.fails(&question, 1);
    assert!(errors.contains("progs/pm_uplink_in"), "{errors}");
    sandbox.sh(Netns::Host, &format!("mv {directory}/aside {directory}/pm_uplink_in"));
    check(&sandbox, "--from outside --to 10.0.0.1:31000", &["pm_uplink_in to_container"], TO_A);
}

#[test]
fn explain_refuses_invalid_questions() {
    let (sandbox, daemon) = world();
    for (question, code, expected) in [
        ("--from absent --to 10.0.0.1:80", 3, "\"absent\""),
        ("--from a --to 10.0.0.1", 2, "the destination 10.0.0.1 has no port"),
        (
            "--from a --to 10.0.0.2:80 --proto icmp",
            2,
            "the destination port 80 is given, but icmp has no ports",
        ),
        (
            "--from a --to 10.0.0.2 --sport 7 --proto icmp",
            2,
            "the source port 7 is given, but icmp has no ports",
        ),
        ("--from a --to 10.0.0.2 --sport 7 --proto 47", 2, "but 47 has no ports"),
        (
            "--from a --to 10.0.0.2 --proto icmp6",
            2,
            "icmp6 does not go with 10.0.0.2, which is IPv4: expected icmp",
        ),
        (
            "--from a --to fd00::2 --proto 1",
            2,
            "icmp does not go with fd00::2, which is IPv6: expected icmp6",
        ),
        ("--from a --src fd00::2 --to 10.0.0.2:80", 2, "the source fd00::2 is IPv6"),
        ("--from a --src 10.0.0.1 --to [fd00::2]:80", 2, "the destination fd00::2 is IPv6"),
    ] {
        let mut arguments = vec!["explain"];
        arguments.extend(question.split_whitespace());
        let errors = sandbox.fails(&arguments, code);
        assert!(errors.contains(expected), "{question}: {errors}");
    }
    // Errors of clap have more than one line.
    for (question, expected) in [
        ("--from a", "--to"),
        ("--to 10.0.0.2:80", "--from"),
        ("--from a --to web:80", "\"web:80\" is not a destination"),
        ("--from a --to 10.0.0.2:80 --src x", "'x'"),
        ("--from a --to 10.0.0.2:80 --sport 65536", "'65536'"),
        ("--from a --to 10.0.0.2:80 --proto igmpp", "\"igmpp\" is not a protocol"),
    ] {
        let mut arguments = vec!["explain"];
        arguments.extend(question.split_whitespace());
        let output = sandbox.portmap(&arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{question}: {errors}");
        assert!(errors.contains(expected), "{question}: {errors}");
    }
    let ask = |body: &str| {
        let mut stream = UnixStream::connect(sandbox.path("/run/portmap/portmapd.sock")).expect("connected");
        let head = "Host: portmap\r\nConnection: close\r\nContent-Type: application/json\r\n";
        write!(stream, "POST /v1/explain HTTP/1.1\r\n{head}Content-Length: {}\r\n\r\n{body}", body.len())
            .expect("sent");
        std::io::read_to_string(stream).expect("an answer")
    };
    for (body, expected) in [
        ("{}", "from"),
        ("{\"from\":\"a\",\"destination\":\"x\"}", "usage"),
        ("{\"from\":\"a\",\"destination\":\"10.0.0.2\",\"protocol\":\"x\"}", "is not a protocol"),
        ("{\"from\":\"a\",\"destination\":\"10.0.0.2\",\"port\":80}", "port"),
    ] {
        let answer = ask(body);
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains(expected), "{body}: {answer}");
    }
    daemon.stop();
    let question = ["explain", "--from", "a", "--to", "10.0.0.2:80"];
    assert!(sandbox.fails(&question, 5).contains("no daemon responds"));
    // A container whose interface cannot be recreated, because a foreign interface has its name.
    sandbox.sh(Netns::Host, "ip link del pm1; ip link add pm1 type veth peer name foreign");
    let _daemon = sandbox.daemon();
    let errors = sandbox.fails(&question, 4);
    assert!(errors.contains("container \"a\" is broken: expected one in service"), "{errors}");
}
