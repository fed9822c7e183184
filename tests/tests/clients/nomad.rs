//! Nomad cannot run here. These are the calls of its client, which go-cni makes for it, in their order.

use portmap_tests::{
    sandbox::{HOST, Netns, Sandbox},
    service::{Service, Transport, ask},
};
use serde_json::{Value, json};

use super::calls::{Attachment, make_netns};

const ALLOCATION: &str = "5e1c0d7e-7d5c-4b43-9a51-6a0f4a1a6d2f";

/// The allocation's attachment with the port mappings and arguments of a job.
fn allocation(port: u16) -> Attachment {
    let mut allocation = Attachment::new(ALLOCATION, ALLOCATION, &[]).with(|config| {
        config["cniVersion"] = "1.0.0".into();
        let mapping = |protocol: &str| {
            json!({ "HostPort": port, "ContainerPort": port, "Protocol": protocol, "HostIP": "" })
        };
        config["runtimeConfig"]["portMappings"] = json!([mapping("tcp"), mapping("udp")]);
    });
    allocation.netns = format!("/var/run/netns/{ALLOCATION}");
    allocation.args = format!(
        "NOMAD_ALLOC_ID={ALLOCATION};IgnoreUnknown=true;NOMAD_REGION=global;NOMAD_NAMESPACE=default;NOMAD_JOB_ID=web;\
         NOMAD_GROUP_NAME=g;PORTMAP_EGRESS=100mbit;PORTMAP_PORTS=31500-31509"
    );
    allocation
}

/// Asserts that the allocation serves the outside.
fn expect_service(sandbox: &Sandbox) {
    let netns = Netns::Container(ALLOCATION);
    for port in [31000, 31500] {
        let _service = Service::start(sandbox, netns, Transport::Tcp, port, "web");
        assert_eq!(
            ask(sandbox, Netns::Outside, Transport::Tcp, (HOST, port)).expect("an answer").from,
            "web"
        );
    }
}

#[test]
fn nomad_allocation_survives_retries_and_restarts() {
    let sandbox = Sandbox::new();
    // The namespace's path is the one that Nomad uses; /var/run is /run.
    make_netns(&sandbox, ALLOCATION);
    let allocation = allocation(31000);
    // Three attempts, without DEL between them. The port is another container's until the last.
    let daemon = sandbox.daemon();
    sandbox.ok(&["add", "other", "--ports", "31000"]);
    for _ in 0..2 {
        let text = allocation.refused(&sandbox, 104);
        assert!(text.contains("owned by container \"other\""), "{text}");
    }
    sandbox.ok(&["del", "other"]);
    let result = allocation.add(&sandbox);
    expect_service(&sandbox);
    let shown = sandbox.json(&["show", ALLOCATION]);
    assert_eq!(shown["labels"], json!({ "cni.network": "portmap", "name": "web/g", "namespace": "default" }));
    assert_eq!(shown["egress"]["rate"], 12_500_000);
    // The agent restarts, and so does the daemon: CHECK with the same arguments.
    daemon.stop();
    let daemon = sandbox.daemon();
    assert_eq!(allocation.check(&sandbox, &result), Ok(Value::Null));
    expect_service(&sandbox);
    // CHECK fails: Nomad makes a new namespace at the path, and calls ADD without DEL.
    sandbox.sh(Netns::Host, &format!("ip netns del {ALLOCATION}; ip netns add {ALLOCATION}"));
    assert!(allocation.check(&sandbox, &result).is_err());
    let result = allocation.add(&sandbox);
    assert_eq!(allocation.check(&sandbox, &result), Ok(Value::Null));
    expect_service(&sandbox);
    // The same after a reboot, of which the state directory knows nothing.
    sandbox.ok(&["teardown"]);
    daemon.wait();
    let _daemon = sandbox.daemon();
    assert!(allocation.check(&sandbox, &result).is_err());
    sandbox.sh(Netns::Host, &format!("ip netns del {ALLOCATION}; ip netns add {ALLOCATION}"));
    allocation.add(&sandbox);
    expect_service(&sandbox);
    // DEL has no arguments.
    let stopped = Attachment { args: String::new(), ..allocation };
    stopped.delete(&sandbox);
    assert_eq!(sandbox.json(&["list"]), json!([]));
}

#[test]
fn nomad_fingerprint_is_a_version() {
    let sandbox = Sandbox::new();
    let output = sandbox
        .command(Netns::Host, portmap_tests::sandbox::binary("portmap-bpf"))
        .output()
        .expect("it runs");
    let text = String::from_utf8(output.stdout).expect("text");
    let numbers = text.trim_end().strip_prefix('v').expect("a version").split('.');
    assert!(
        output.status.success() && numbers.filter(|part| part.parse::<u32>().is_ok()).count() == 3,
        "{text}"
    );
}
