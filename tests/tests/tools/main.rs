//! Third-party programs in containers and around them: each must work as its users expect.

mod checksums;
mod dns;
mod echo;
mod errors;
mod fragments;
mod mtu;
mod refused;
mod routers;
mod scapy;
mod segments;
mod tags;
mod transfers;
mod tunnels;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use portmap::{
    api::{ContainerStats, Reasons},
    client::Client,
    paths::StateDir,
};
use portmap_tests::{
    background,
    daemon::Daemon,
    packet_socket::PacketSocket,
    sandbox::{HOST, HOST6, Netns, Sandbox},
    wait,
};

const A: Netns<'_> = Netns::Container("a");
const B: Netns<'_> = Netns::Container("b");
const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LOCALHOST6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
/// The addresses by which the outside reaches the host and containers.
const SHARED: [IpAddr; 2] = [IpAddr::V4(HOST), IpAddr::V6(HOST6)];
/// The addresses by which the host and containers reach each other.
const LOCAL: [IpAddr; 4] = [SHARED[0], SHARED[1], LOCALHOST, LOCALHOST6];
/// First static ports of the two containers, and a port of the host and of the outside.
const A_PORT: u16 = 31000;
const B_PORT: u16 = 31010;
const HOST_PORT: u16 = 8080;

/// A daemon with containers `a` (31000-31009) and `b` (31010-31019).
struct World {
    /// Queries the daemon without starting a process for each of the hundreds of queries.
    client: Client,
    daemon: Daemon,
    sandbox: Sandbox,
}

impl World {
    fn new() -> Self {
        Self::with("")
    }

    /// Runs a script on the host first.
    fn with(script: &str) -> Self {
        let sandbox = Sandbox::new();
        sandbox.sh(Netns::Host, script);
        let daemon = sandbox.daemon();
        sandbox.ok(&["add", "a", "--ports", "31000-31009"]);
        sandbox.ok(&["add", "b", "--ports", "31010-31019"]);
        let client = Client::new(&StateDir::new(sandbox.path("/run/portmap"))).expect("a client");
        Self { client, daemon, sandbox }
    }

    /// Returns a non-blocking dual-stack socket on a UDP port of a namespace.
    fn receiver(&self, netns: Netns<'_>, port: u16) -> UdpSocket {
        let socket = self.sandbox.inside(netns, || UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)));
        let socket = socket.expect("the port is free");
        socket.set_nonblocking(true).expect("a socket");
        socket
    }

    fn stats(&self, name: &str) -> ContainerStats {
        self.client.container_stats(name).expect("the daemon runs")
    }

    /// Drops of packets that a container sent, by reason.
    fn drops(&self, name: &str) -> Reasons {
        self.stats(name).drops.tx
    }

    /// Sends a frame from `a` and waits until it is dropped exactly once, for this reason.
    fn expect_drop(&self, socket: &PacketSocket, what: &str, frame: &[u8], reason: &str) {
        let before = self.drops("a");
        let mut expected = before.clone();
        *expected.entry(reason.to_owned()).or_default() += 1;
        socket.send(frame);
        let after = wait::for_value(what, || Some(self.drops("a")).filter(|drops| *drops != before));
        assert_eq!(after, expected, "{what}");
    }

    /// Returns the number of packets on one of a container's paths.
    fn packets(&self, name: &str, path: &str) -> u64 {
        self.stats(name).traffic[path].packets
    }

    /// Returns the number of packets from outside that were left to the host for this reason.
    fn left_to_host(&self, reason: &str) -> u64 {
        let stats = self.client.stats().expect("the daemon runs");
        stats.host.passed["uplink"].get(reason).copied().unwrap_or_default()
    }
}
