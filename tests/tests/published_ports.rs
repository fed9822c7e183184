//! `--published-ports`: ports outside the daemon's pools, which containers get by number only.

use std::net::{TcpListener, UdpSocket};

use portmap_tests::{
    sandbox::{DAEMON_FLAGS, HOST, Netns, Sandbox},
    service::{Service, Transport, ask},
};

/// A port below 1024, and one of the host's own ephemeral range.
const LOW: u16 = 80;
const HIGH: u16 = 50_000;

fn flags(more: &[&'static str]) -> Vec<&'static str> {
    [&DAEMON_FLAGS[..], more].concat()
}

/// The ports that the host does not assign to its sockets, as the kernel prints them.
fn reserved(sandbox: &Sandbox) -> String {
    sandbox.sh(Netns::Host, "cat /proc/sys/net/ipv4/ip_local_reserved_ports").trim().to_owned()
}

/// The port that the host assigns to a socket if these are its only ephemeral ports.
fn assigned(sandbox: &Sandbox, range: &str) -> Option<u16> {
    sandbox.sh(Netns::Host, &format!("echo {range} > /proc/sys/net/ipv4/ip_local_port_range"));
    let socket = sandbox.inside(Netns::Host, || UdpSocket::bind("0.0.0.0:0"));
    sandbox.sh(Netns::Host, "echo 50000 60000 > /proc/sys/net/ipv4/ip_local_port_range");
    Some(socket.ok()?.local_addr().expect("an address").port())
}

#[test]
fn published_ports_are_a_containers_while_it_owns_them() {
    let sandbox = Sandbox::new();
    sandbox.sh(Netns::Host, "echo 81,443 > /proc/sys/net/ipv4/ip_local_reserved_ports");
    let policy = flags(&["--published-ports", "80-1023,32768-60999"]);
    let daemon = sandbox.daemon_with(&policy);
    let pools = reserved(&sandbox);
    assert_eq!(pools, "81,443,31000-32000,61440-65535");
    let host = Service::both(&sandbox, Netns::Host, 8080, "host");
    sandbox.ok(&["add", "web", "--ports", "80,443,50000,31000"]);
    assert_eq!(reserved(&sandbox), "80-81,443,31000-32000,50000,61440-65535");
    assert_eq!(assigned(&sandbox, "50000 50001"), Some(50_001), "the other one is the container's");
    let service = [LOW, HIGH].map(|port| Service::both(&sandbox, Netns::Container("web"), port, "web"));
    let serves = || {
        for (port, transport) in [(LOW, Transport::Tcp), (LOW, Transport::Udp), (HIGH, Transport::Tcp)] {
            for from in [Netns::Outside, Netns::Host] {
                let answer = ask(&sandbox, from, transport, (HOST, port)).expect("an answer");
                assert_eq!(answer.from, "web", "{from:?} to {port}");
            }
        }
    };
    serves();
    sandbox.ok(&["doctor"]);
    // The next daemon keeps the reservation, and restores it.
    daemon.kill();
    sandbox.sh(Netns::Host, "echo 81,443 > /proc/sys/net/ipv4/ip_local_reserved_ports");
    let daemon = sandbox.daemon_with(&policy);
    assert_eq!(reserved(&sandbox), "80-81,443,31000-32000,50000,61440-65535");
    serves();
    sandbox.sh(Netns::Host, "echo 81,443 > /proc/sys/net/ipv4/ip_local_reserved_ports");
    let repaired = sandbox.ok(&["doctor", "--repair"]);
    assert!(!repaired.contains("PROBLEM"), "{repaired}");
    assert_eq!(reserved(&sandbox), "80-81,443,31000-32000,50000,61440-65535");
    // Without the policy the container would lose them.
    daemon.stop();
    let (code, log) = sandbox.refused_daemon(&flags(&["--published-ports", "80"]));
    assert_eq!(code, 4, "{log}");
    assert!(
        log.contains("\"web\" owns the ports 443,50000, which --ports and --published-ports lack"),
        "{log}"
    );
    let daemon = sandbox.daemon_with(&policy);
    // The host's own list stays when they go.
    drop(service);
    sandbox.ok(&["update", "web", "--ports", "80,31000"]);
    assert_eq!(reserved(&sandbox), "80-81,443,31000-32000,61440-65535");
    sandbox.ok(&["del", "web"]);
    assert_eq!(reserved(&sandbox), pools);
    sandbox.ok(&["add", "web", "--ports", "50001"]);
    sandbox.ok(&["teardown"]);
    daemon.wait();
    assert_eq!(reserved(&sandbox), "81,443");
    sandbox.sh(Netns::Host, "echo > /proc/sys/net/ipv4/ip_local_reserved_ports");
    drop(host);
}

#[test]
fn published_ports_are_refused_without_a_policy_or_to_the_hosts_processes() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    let before = reserved(&sandbox);
    let error = sandbox.fails(&["add", "web", "--ports", "80,31000"], 2);
    let expected = "the ports 80: expected ports of --ports (31000-32000) or of --published-ports (none)";
    assert!(error.contains(expected), "{error}");
    daemon.stop();
    let _daemon = sandbox.daemon_with(&flags(&["--published-ports", "80,443,50000-50010"]));
    let error = sandbox.fails(&["add", "web", "--ports", "80-81"], 2);
    let expected = "the ports 81: expected ports of --ports (31000-32000) or of --published-ports (80,443,";
    assert!(error.contains(expected), "{error}");
    let listener =
        sandbox.inside(Netns::Host, || TcpListener::bind("0.0.0.0:443")).expect("the port is free");
    let error = sandbox.fails(&["add", "web", "--ports", "80,443"], 4);
    assert!(error.contains("the host uses TCP port 443") && error.contains("--take"), "{error}");
    assert_eq!(reserved(&sandbox), before, "a refused command leaves no reservation");
    let taken = sandbox.json(&["add", "web", "--ports", "80,443", "--take"]);
    assert!(taken["warnings"][0].as_str().is_some_and(|text| text.contains("443")), "{taken}");
    let error = sandbox.fails(&["add", "other", "--ports", "443"], 4);
    assert!(error.contains("443 are owned by container \"web\""), "{error}");
    // Automatic ports come from the pool only.
    let automatic = sandbox.json(&["add", "other", "--ports", "auto:1001,50000"]);
    assert_eq!(automatic["automatic_ports"], serde_json::json!([[31000, 32000]]));
    sandbox.fails(&["update", "web", "--ports", "80,50000"], 4);
    sandbox.ok(&["update", "web", "--ports", "80,50001"]);
    assert_eq!(reserved(&sandbox), "80,31000-32000,50000-50001,61440-65535");
    for name in ["web", "other"] {
        sandbox.ok(&["del", name]);
    }
    assert_eq!(reserved(&sandbox), before);
    drop(listener);
}
