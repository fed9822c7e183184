//! Netcat between containers and the host, by loopback and shared address: only owned ports are reached.

use portmap_tests::{
    background::Background,
    sandbox::{HOST, Netns, Sandbox},
    wait,
};

use crate::{A, B, B_PORTS, INVALID_PORT, VALID_PORT, add_a, daemon};

/// `a` listens on its own port, at both addresses, and on a port that it does not own; clients send to all.
fn exchange(udp: bool) {
    let sandbox = Sandbox::new();
    let _daemon = daemon(&sandbox, &[]);
    add_a(&sandbox);
    sandbox.ok(&["add", "b", "--ports", B_PORTS]);
    let (transport, quit) = if udp { ("-u", "-q0") } else { ("", "-N") };
    let listen = |address: &str, port: u16| {
        Background::start(&sandbox, A, &format!("nc {transport} -kl {address} {port}"))
    };
    let servers = ["127.0.0.1", "10.0.0.1"].map(|address| listen(address, VALID_PORT));
    let invalid = listen("0.0.0.0", INVALID_PORT);
    wait::until("three servers", || sandbox.sh(A, "ss -Hlntu").lines().count() == 3);
    for (from, name) in [(B, "container"), (Netns::Host, "host")] {
        let send = |text: &str, address: &str, port: u16| {
            let script = format!("echo {text} | nc {transport} {quit} {address} {port}");
            let sent = sandbox.command(from, "sh").args(["-c", &script]).output().expect("a shell");
            // A datagram is sent whatever becomes of it.
            assert_eq!(sent.status.success(), udp || port == VALID_PORT, "{script}: {sent:?}");
        };
        // First, so that they would have arrived when the others have.
        for address in ["127.0.0.1", "10.0.0.1"] {
            send("invalid", address, INVALID_PORT);
        }
        for (address, server) in ["127.0.0.1", "10.0.0.1"].into_iter().zip(&servers) {
            let text = format!("{name}-{address}");
            send(&text, address, VALID_PORT);
            wait::until(&text, || server.count(&text) == 1);
        }
    }
    assert_eq!(invalid.lines(), [""; 0], "it receives nothing");
    // Nor does it from outside.
    let script = format!("echo invalid | nc {transport} {quit} -w5 {HOST} {INVALID_PORT}");
    let _refused = sandbox.command(Netns::Outside, "sh").args(["-c", &script]).output().expect("a shell");
    let script = format!("echo outside | nc {transport} {quit} {HOST} {VALID_PORT}");
    sandbox.sh(Netns::Outside, &script);
    wait::until("the outside", || servers[1].count("outside") == 1);
    assert_eq!(invalid.lines(), [""; 0], "it receives nothing");
    for server in &servers {
        assert!(server.lines().iter().all(|line| line != "invalid"), "{:?}", server.lines());
    }
}

#[test]
fn nc_over_tcp_reaches_owned_ports_only() {
    exchange(false);
}

#[test]
fn nc_over_udp_reaches_owned_ports_only() {
    exchange(true);
}
