//! Rate limits in both directions, and attempts of root in a container to bypass them.

mod bypass;
mod changes;
mod queues;
mod uplink;

use std::net::{Ipv4Addr, UdpSocket};

use portmap_tests::{
    daemon::Daemon,
    sandbox::{DAEMON_FLAGS, Netns, Sandbox},
};
use serde_json::Value;

const A: Netns<'_> = Netns::Container("a");
const B: Netns<'_> = Netns::Container("b");

/// Payload of a datagram that fills a frame.
const LARGE: usize = 1400;
/// This many exceed a megabit per second by far while they are sent.
const MANY: usize = 4000;

fn daemon_with(sandbox: &Sandbox, flags: &[&str]) -> Daemon {
    sandbox.daemon_with(&[&DAEMON_FLAGS[..], flags].concat())
}

/// Starts a daemon with a container `a` that has ports 31000-31009 and these limits.
fn world(limits: &[&str]) -> (Sandbox, Daemon) {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    add(&sandbox, limits);
    (sandbox, daemon)
}

fn add(sandbox: &Sandbox, limits: &[&str]) -> Value {
    let command = [&["add", "a", "--ports", "31000-31009"][..], limits].concat();
    sandbox.json(&command)
}

/// Returns the leaf qdisc on this kernel.
fn leaf(sandbox: &Sandbox) -> &'static str {
    let probe =
        "tc qdisc add dev lo root fq_codel 2>/dev/null && tc qdisc del dev lo root && echo yes || true";
    if sandbox.sh(Netns::Outside, probe).contains("yes") { "fq_codel" } else { "bfifo" }
}

/// Returns a counter of the class that enforces a container's limit in one direction.
fn counter(sandbox: &Sandbox, name: &str, direction: &str, counter: &str) -> u64 {
    sandbox.fresh_stats(name)[direction][0][counter].as_u64().unwrap_or_default()
}

/// Sends many large datagrams as fast as possible, and returns their number.
fn flood(sandbox: &Sandbox, from: Netns<'_>, to: (Ipv4Addr, u16)) -> u64 {
    send(sandbox, from, to, MANY)
}

fn send(sandbox: &Sandbox, from: Netns<'_>, to: (Ipv4Addr, u16), datagrams: usize) -> u64 {
    let socket =
        sandbox.inside(from, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).expect("an ephemeral port");
    socket.connect(to).expect("there is a route");
    let payload = vec![0; LARGE];
    // A full queue and a closed port are errors of the socket.
    (0..datagrams).filter(|_| socket.send(&payload).is_ok()).count() as u64
}

fn sent_to_outside(sandbox: &Sandbox, name: &str) -> u64 {
    sandbox.json(&["stats", name])["traffic"]["tx_outside"]["packets"].as_u64().expect("a number")
}
