//! `/monitor/statistics`, and the use of ephemeral ports: every key moves for the right reason.

mod counters;
mod queues;
mod robustness;
mod shape;
mod sockets;

use std::net::UdpSocket;

use portmap_tests::{
    daemon::Daemon,
    sandbox::{DAEMON_FLAGS, Netns, Sandbox},
};
use serde_json::Value;

const A: Netns<'_> = Netns::Container("a");
/// Flags of all statistics.
const ALL: [&str; 8] = [
    "--network_enable_socket_statistics_summary",
    "--network_enable_socket_statistics_details",
    "--network_enable_snmp_statistics",
    "--network_enable_rate_statistics",
    "--network_rate_statistics_window",
    "2secs",
    "--network_rate_statistics_interval",
    "50ms",
];

/// Starts a daemon with these flags, and a container `a` with the ports 31000-31009 and these options.
///
/// Without IPv6 a container sends no packets by itself.
fn world(flags: &[&str], options: &[&str]) -> (Sandbox, Daemon) {
    let sandbox = Sandbox::new();
    sandbox.sh(Netns::Host, "echo 1 > /proc/sys/net/ipv6/conf/uplink/disable_ipv6");
    let daemon = sandbox.daemon_with(&[&DAEMON_FLAGS[..], flags].concat());
    sandbox.ok(&[&["add", "a", "--ports", "31000-31009"][..], options].concat());
    (sandbox, daemon)
}

fn get(sandbox: &Sandbox, path: &str) -> String {
    let get = format!("curl -sf --unix-socket /run/portmap/portmapd.sock http://portmap{path}");
    sandbox.sh(Netns::Host, &get)
}

/// The statistics of all containers.
fn monitor(sandbox: &Sandbox) -> Vec<Value> {
    serde_json::from_str(&get(sandbox, "/monitor/statistics")).expect("JSON")
}

/// The statistics of container `a`.
fn statistics(sandbox: &Sandbox) -> Value {
    let all = monitor(sandbox);
    let a = all.into_iter().find(|container| container["container_id"] == "a");
    a.expect("container a is in service")["statistics"].take()
}

fn number(statistics: &Value, key: &str) -> u64 {
    statistics[key].as_u64().unwrap_or_else(|| panic!("{key} is a number in {statistics}"))
}

/// A UDP socket on this port, or on any.
fn udp(sandbox: &Sandbox, netns: Netns<'_>, port: u16) -> UdpSocket {
    sandbox.inside(netns, || UdpSocket::bind(("0.0.0.0", port))).expect("the port is free")
}
