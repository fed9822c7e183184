//! The command line.

use portmap_tests::sandbox::{Netns, Sandbox};
use serde_json::json;

/// The command line of the isolator's documentation, as a shell reads it.
const DOCUMENTED: [&str; 5] = [
    "--isolation=network/port_mapping",
    "--resources=ports:[31000-32000];ephemeral_ports:[32768-57344]",
    "--ephemeral_ports_per_container=1024",
    "--egress_rate_limit_per_container=37500KB",
    "--egress_unique_flow_per_container",
];

#[test]
fn flags_of_the_documentation_start_the_daemon() {
    let sandbox = Sandbox::new();
    // As it says.
    sandbox.sh(Netns::Host, "echo 57345 61000 > /proc/sys/net/ipv4/ip_local_port_range");
    let daemon = sandbox.daemon_with(&DOCUMENTED);
    let added = sandbox.json(&["add", "a", "--ports", "31000-32000"]);
    assert_eq!(added["ephemeral_ports"], json!([32768, 33791]));
    assert_eq!(added["egress"]["rate"], 38_400_000);
    daemon.stop();
    // The same in other spellings, for the container that exists.
    let resources = concat!(
        r#"--resources=[{"name":"ports","type":"RANGES","ranges":{"range":[{"begin":31000,"end":32000}]}},"#,
        r#"{"name":"ephemeral_ports","type":"RANGES","role":"*","#,
        r#""ranges":{"range":[{"begin":32768,"end":57344}]}}]"#
    );
    let _daemon = sandbox.daemon_with(&[
        "--isolation=network/port_mapping",
        resources,
        "--eth0_name=uplink",
        "--lo_name=lo",
        "--ephemeral_ports_per_container=1024",
        "--egress_rate_limit_per_container=37500KB",
        "--no-egress_unique_flow_per_container",
    ]);
    assert_eq!(sandbox.json(&["show", "a"])["egress"]["rate"], 38_400_000);
    sandbox.ok(&["add", "b"]);
    sandbox.ok(&["doctor"]);
}
