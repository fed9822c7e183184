//! `--ports auto:N`: the daemon chooses static ports, and tells which.

use std::{collections::BTreeSet, net::TcpListener, thread};

use portmap_tests::{
    sandbox::{DAEMON_FLAGS, HOST, Netns, Sandbox},
    service::{Service, Transport, ask},
};
use serde_json::{Value, json};

/// Flags of a daemon with these static ports.
fn flags(ports: &'static str) -> Vec<&'static str> {
    let mut flags = DAEMON_FLAGS.to_vec();
    flags[1] = ports;
    flags.extend(["--ephemeral-ports-per-container", "16"]);
    flags
}

fn add(sandbox: &Sandbox, name: &str, ports: &str) -> Value {
    sandbox.json(&["add", name, "--ports", ports])
}

/// The inclusive bounds of the ranges of a field.
fn ranges(container: &Value, field: &str) -> Vec<(u16, u16)> {
    serde_json::from_value(container[field].clone()).expect("ranges")
}

fn automatic(container: &Value) -> Vec<(u16, u16)> {
    ranges(container, "automatic_ports")
}

#[test]
fn automatic_ports_are_chosen_told_and_kept() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon_with(&flags("31001-31100"));
    let a = add(&sandbox, "a", "31050,auto:10,auto:4+aligned");
    assert_eq!(a["automatic_ports"], json!([[31008, 31017], [31004, 31007]]));
    assert_eq!(a["ports"], json!([[31004, 31017], [31050, 31050]]));
    // The start of the shortest run that suffices, 31001-31003.
    assert_eq!(automatic(&add(&sandbox, "b", "auto:1")), [(31001, 31001)]);
    let service = Service::start(&sandbox, Netns::Container("a"), Transport::Tcp, 31004, "a");
    let serves = || ask(&sandbox, Netns::Outside, Transport::Tcp, (HOST, 31004)).expect("an answer").from;
    assert_eq!(serves(), "a");
    let table = sandbox.ok(&["show", "a"]);
    assert!(table.contains("automatic ports    31008-31017,31004-31007"), "{table}");
    daemon.stop();
    let daemon = sandbox.daemon_with(&flags("31001-31100"));
    assert_eq!(automatic(&sandbox.json(&["show", "a"])), automatic(&a));
    assert_eq!(sandbox.json(&["list"])[0]["automatic_ports"], a["automatic_ports"]);
    assert_eq!(serves(), "a");
    // What a restart has read is not chosen again.
    assert_eq!(automatic(&add(&sandbox, "c", "auto:39")), [(31051, 31089)]);
    // Ports of the update that the container has already stay.
    let after = sandbox.json(&["update", "a", "--ports", "auto:4+aligned,auto:1"]);
    assert_eq!(automatic(&after)[0], (31004, 31007));
    assert_eq!(serves(), "a");
    let grown = sandbox.json(&["update", "a", "--ports", "auto:6"]);
    assert_eq!(automatic(&grown), [(31004, 31009)]);
    assert_eq!(grown["ports"], grown["automatic_ports"]);
    assert_eq!(serves(), "a");
    // An update of something else keeps them; ports by number replace them.
    sandbox.ok(&["update", "a", "--label", "x=y"]);
    assert_eq!(automatic(&sandbox.json(&["show", "a"])), [(31004, 31009)]);
    let numbered = sandbox.json(&["update", "a", "--ports", "31004-31006"]);
    assert_eq!((ranges(&numbered, "ports"), automatic(&numbered)), (vec![(31004, 31006)], vec![]));
    assert_eq!(serves(), "a");
    sandbox.ok(&["doctor"]);
    drop((service, daemon));
}

#[test]
fn automatic_ports_of_parallel_requests_are_disjoint() {
    const CONTAINERS: usize = 16;
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon_with(&flags("31000-31063"));
    let answers: Vec<Value> = thread::scope(|scope| {
        let adding: Vec<_> = (0..CONTAINERS)
            .map(|number| {
                let (sandbox, name) = (&sandbox, format!("c{number}"));
                scope.spawn(move || add(sandbox, &name, "auto:3,auto:1"))
            })
            .collect();
        adding.into_iter().map(|thread| thread.join().expect("added")).collect()
    });
    let chosen: Vec<u16> =
        answers.iter().flat_map(automatic).flat_map(|(first, last)| first..=last).collect();
    assert_eq!(chosen.len(), 4 * CONTAINERS);
    assert_eq!(chosen.iter().copied().collect::<BTreeSet<u16>>(), (31000..=31063).collect());
    for answer in &answers {
        let lengths: Vec<u16> = automatic(answer).iter().map(|(first, last)| last - first + 1).collect();
        assert_eq!(lengths, [3, 1], "{answer}");
    }
    let error = sandbox.fails(&["add", "one-more", "--ports", "auto:1"], 4);
    assert!(error.contains("auto:1: no static port is free: none is left, 0 of the 64 ports"), "{error}");
    assert_eq!(sandbox.json(&["list"]).as_array().map(Vec::len), Some(CONTAINERS));
    // A removed container's ports are free at once if no others are.
    sandbox.ok(&["del", "c7"]);
    assert_eq!(automatic(&add(&sandbox, "again", "auto:3,auto:1")), automatic(&answers[7]));
}

#[test]
fn automatic_ports_avoid_the_hosts_and_those_of_late() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon_with(&flags("31000-31019"));
    let listen = |port: u16| {
        sandbox.inside(Netns::Host, || TcpListener::bind(("0.0.0.0", port)).expect("the port is free"))
    };
    let listener = listen(31004);
    assert_eq!(automatic(&add(&sandbox, "a", "auto:4")), [(31000, 31003)]);
    assert_eq!(automatic(&add(&sandbox, "b", "auto:15")), [(31005, 31019)]);
    let error = sandbox.fails(&["add", "c", "--ports", "auto:1"], 4);
    assert!(error.contains("1 more are skipped, because the host uses them"), "{error}");
    let shared = sandbox.fails(&["add", "c", "--ports", "31004"], 4);
    assert!(shared.contains("the host uses TCP port 31004"), "a request by number is refused: {shared}");
    // The ports of `a` are released before those of `b`, so they are chosen first.
    sandbox.ok(&["del", "a"]);
    sandbox.ok(&["del", "b"]);
    assert_eq!(automatic(&add(&sandbox, "d", "auto:2")), [(31000, 31001)]);
    assert_eq!(automatic(&add(&sandbox, "e", "auto:8+aligned")), [(31008, 31015)]);
    drop(listener);
    // The longest run is 31002-31007, since the listener is gone.
    let error = sandbox.fails(&["add", "f", "--ports", "auto:7"], 4);
    assert!(error.contains("the longest run is 31002-31007 (6)"), "{error}");
    let error = sandbox.fails(&["add", "f", "--ports", "auto:8+aligned"], 4);
    let expected = "auto:8+aligned: no 8 adjacent static ports that start at a multiple of 8 are free";
    assert!(error.contains(expected), "{error}");
    assert_eq!(
        automatic(&add(&sandbox, "f", "auto:4+aligned,auto:4+aligned")),
        [(31016, 31019), (31004, 31007)]
    );
}

#[test]
fn automatic_ports_are_variables_of_a_command() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon_with(&flags("31000-31999"));
    let run = |ports: &[&str]| {
        let script = "echo $PORT0 $PORT1 $PORT2 $PORT3 $PORT_RANGE; env | grep -c '^PORT[0-9_]' || true";
        let all = [&["run"], ports, &["--", "sh", "-c", script]].concat();
        let output =
            sandbox.portmap_command(&all).env("PORT3", "7").env("PORT_HOME", "/x").output().expect("it runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text").lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(run(&["--ports", "auto:3"]), ["31000 31001 31002 31000-31002", "5"]);
    assert_eq!(run(&["--ports", "31500,auto:1"])[0].split(' ').next(), Some("31500"));
    assert_eq!(run(&["--ports", "31600-31899"])[1], "102");
    assert_eq!(run(&[]), ["7", "2"], "without ports the environment is unchanged");
}

#[test]
fn automatic_ports_invalid_requests_change_nothing() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon_with(&flags("31000-31009"));
    add(&sandbox, "a", "auto:8");
    for (ports, code, part) in [
        (
            "auto:3",
            4,
            "auto:3: no 3 adjacent static ports are free: the longest run is 31008-31009 (2), 2 of the 10",
        ),
        ("31008,auto:2", 4, "the longest run is 31009 (1)"),
    ] {
        let error = sandbox.fails(&["add", "b", "--ports", ports], code);
        assert!(error.contains(part), "{ports}: {error}");
    }
    for ports in ["auto:0", "auto:65536", "31000,auto:3+algined"] {
        let output = sandbox.portmap(&["add", "b", "--ports", ports]);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{ports}: {error}");
        assert!(error.contains("expected auto:N or auto:N+aligned"), "{ports}: {error}");
    }
    let many = ["auto:1"; 257].join(",");
    assert!(sandbox.fails(&["add", "b", "--ports", &many], 2).contains("257 automatic ranges"));
    let error = sandbox.fails(&["update", "a", "--ports", "auto:11"], 4);
    assert!(error.contains("10 of the 10 ports of --ports are free"), "{error}");
    let containers = sandbox.json(&["list"]);
    assert_eq!(containers.as_array().map(Vec::len), Some(1));
    assert_eq!(automatic(&containers[0]), [(31000, 31007)]);
    sandbox.ok(&["del", "a"]);
    daemon.stop();
    let _daemon = sandbox.daemon_with(&flags("[]"));
    let error = sandbox.fails(&["add", "a", "--ports", "auto:1"], 2);
    assert!(
        error.contains("no static ports of which it could choose auto:1: start it with --ports"),
        "{error}"
    );
}
