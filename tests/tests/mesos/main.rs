//! What the tests of the Mesos isolator expect, with their parameters: its users must find it here.
//! docs/coming-from-mesos.md maps their names to these tests, and names what differs on purpose.

mod flags;
mod life;
mod limits;
mod nc;
mod ping;
mod statistics;

use portmap_tests::{
    daemon::Daemon,
    sandbox::{Netns, Sandbox},
};

/// The flags of those tests. Their agent has two CPUs.
const FLAGS: [&str; 5] = [
    "--isolation=network/port_mapping",
    "--resources=cpus:2;mem:1024;disk:1024;ephemeral_ports:[30001-30999];ports:[31000-32000]",
    "--ephemeral_ports_per_container=16",
    "--listen=none",
    "--ephemeral-ports-quarantine=0",
];

/// Containers and their ports in those tests.
const A: Netns<'_> = Netns::Container("a");
const A_PORTS: &str = "31000-31499";
const B: Netns<'_> = Netns::Container("b");
const B_PORTS: &str = "31500-32000";
/// A port of container `a`.
const VALID_PORT: u16 = 31001;
/// A port that no container owns.
const INVALID_PORT: u16 = 32502;

/// Starts a daemon with [`FLAGS`] and more, of which the last wins.
fn daemon(sandbox: &Sandbox, flags: &[&str]) -> Daemon {
    sandbox.daemon_with(&[&FLAGS[..], flags].concat())
}

/// Adds container `a`.
fn add_a(sandbox: &Sandbox) {
    sandbox.ok(&["add", "a", "--ports", A_PORTS]);
}
