//! Ports, namespaces and interfaces over the life of containers and daemons.

use portmap_tests::{
    sandbox::{HOST, Netns, Sandbox},
    service::{Service, Transport, ask},
};
use serde_json::json;

use crate::{A, A_PORTS, FLAGS, VALID_PORT, add_a, daemon};

/// Host veths.
fn links(sandbox: &Sandbox) -> usize {
    sandbox.sh(Netns::Host, "ip -brief link").lines().filter(|line| line.starts_with("pm")).count()
}

#[test]
fn ports_are_freed_whatever_ran() {
    let sandbox = Sandbox::new();
    // One block fits.
    let daemon = daemon(&sandbox, &["--ephemeral_ports_per_container=512"]);
    add_a(&sandbox);
    assert_eq!(sandbox.json(&["show", "a"])["ephemeral_ports"], json!([30208, 30719]));
    let refusal = sandbox.fails(&["add", "b"], 4);
    assert!(refusal.contains("no aligned block of 512"), "{refusal}");
    // The namespace has a name as long as the container exists.
    sandbox.sh(Netns::Host, "ip netns list | grep -qw a && test -e /run/netns/a");
    sandbox.ok(&["del", "a"]);
    sandbox.sh(Netns::Host, "test ! -e /run/netns/a");
    add_a(&sandbox);
    sandbox.ok(&["del", "a"]);
    daemon.stop();
    // Unlike there, a block rests by default, so that peers have forgotten its connections.
    let flags: Vec<&str> = FLAGS.into_iter().filter(|flag| !flag.contains("quarantine")).collect();
    let _daemon = sandbox.daemon_with(&[&flags[..], &["--ephemeral_ports_per_container=512"]].concat());
    add_a(&sandbox);
    sandbox.ok(&["del", "a"]);
    let refusal = sandbox.fails(&["add", "b"], 4);
    assert!(refusal.contains("512 are in quarantine"), "{refusal}");
    add_a(&sandbox);
}

#[test]
fn recovery_keeps_recorded_containers_only() {
    let sandbox = Sandbox::new();
    let first = daemon(&sandbox, &[]);
    add_a(&sandbox);
    sandbox.ok(&["add", "orphan", "--ports", "31500-32000"]);
    let _service = Service::start(&sandbox, A, Transport::Tcp, VALID_PORT, "a");
    // A process without a container, as one of an agent without the isolator.
    let _host = Service::start(&sandbox, Netns::Host, Transport::Tcp, 8080, "host");
    assert_eq!(links(&sandbox), 2);
    first.kill();
    sandbox.sh(Netns::Host, "rm /run/portmap/containers/orphan.json");
    let _second = daemon(&sandbox, &[]);
    let names = sandbox.json(&["list"]);
    assert_eq!(names.as_array().map(Vec::len), Some(1), "{names}");
    assert_eq!(links(&sandbox), 1);
    for (port, name) in [(VALID_PORT, "a"), (8080, "host")] {
        let answer = ask(&sandbox, Netns::Outside, Transport::Tcp, (HOST, port)).expect("an answer");
        assert_eq!(answer.from, name);
    }
    // The orphan's ports can be given again, and so can those of a container that was recovered.
    sandbox.ok(&["add", "b", "--ports", "31500-32000"]);
    sandbox.ok(&["del", "a"]);
    sandbox.ok(&["add", "c", "--ports", A_PORTS]);
    assert_eq!(links(&sandbox), 2);
    sandbox.ok(&["doctor"]);
    // Unlike there, the namespace of an orphan keeps its name, because another tool may use it.
    sandbox.sh(Netns::Host, "ip netns del orphan");
}
