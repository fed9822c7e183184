//! The uplink's qdisc with one flow per container.

use portmap_tests::{
    sandbox::{DAEMON_FLAGS, Netns, OUTSIDE, Sandbox},
    service::{Service, Transport, ask},
    wait,
};

use crate::{A, B, add, daemon_with, leaf, send};

#[test]
fn uplink_qdisc_has_one_flow_per_container() {
    let sandbox = Sandbox::new();
    let has_flows = leaf(&sandbox) == "fq_codel";
    let daemon = daemon_with(&sandbox, &["--egress-unique-flow-per-container"]);
    add(&sandbox, &[]);
    let _outside = Service::both(&sandbox, Netns::Outside, 8080, "outside");
    for from in [A, Netns::Host] {
        assert_eq!(ask(&sandbox, from, Transport::Tcp, (OUTSIDE, 8080)).expect("an answer").from, "outside");
    }
    let root = || sandbox.sh(Netns::Host, "tc qdisc show dev uplink root");
    if !has_flows {
        assert!(
            daemon.log().contains("--egress-unique-flow-per-container has no effect at uplink"),
            "{}",
            daemon.log()
        );
        assert!(!root().contains("504d:"), "{}", root());
        return;
    }
    assert!(root().contains("qdisc fq_codel 504d: root") && root().contains("flows 4097"), "{}", root());
    sandbox.ok(&["doctor"]);
    daemon.stop();
    let daemon = daemon_with(&sandbox, &["--egress-unique-flow-per-container=true"]);
    assert!(root().contains("504d:"), "it stays as it is");
    sandbox.sh(Netns::Host, "tc qdisc del dev uplink root");
    wait::until("it to be restored", || root().contains("504d:"));
    daemon.stop();
    let daemon = sandbox.daemon();
    assert!(!root().contains("504d:"), "the flag is gone");
    daemon.stop();
    let _daemon = daemon_with(&sandbox, &["--egress-unique-flow-per-container"]);
    sandbox.ok(&["teardown"]);
    assert!(!root().contains("504d:"), "{}", root());
}

#[test]
fn uplink_qdisc_of_another_tool_is_kept() {
    let sandbox = Sandbox::new();
    let has_flows = leaf(&sandbox) == "fq_codel";
    sandbox.sh(
        Netns::Host,
        "tc qdisc add dev uplink root handle 1: htb default 10
         tc class add dev uplink parent 1: classid 1:10 htb rate 10gbit quantum 60000",
    );
    let qdiscs = || sandbox.sh(Netns::Host, "tc qdisc show dev uplink");
    if !has_flows {
        // Without fq_codel there is no such qdisc, and a foreign one does not matter.
        let _daemon = daemon_with(&sandbox, &["--egress-unique-flow-per-container"]);
        sandbox.ok(&["teardown"]);
        assert!(qdiscs().contains("htb 1: root"), "{}", qdiscs());
        return;
    }
    let (code, log) =
        sandbox.refused_daemon(&[&DAEMON_FLAGS[..], &["--egress-unique-flow-per-container"]].concat());
    assert_eq!(code, 4, "{log}");
    assert!(log.contains("uplink has the qdisc htb 1:"), "{log}");
    let flags = ["--egress-unique-flow-per-container", "--egress_flow_classifier_parent=1:10"];
    let _daemon = daemon_with(&sandbox, &flags);
    assert!(qdiscs().contains("fq_codel 504d: parent 1:10"), "{}", qdiscs());
    // On a slow link the backlog shows the flow of each sender: flow 1 is the host's, a container's is
    // its slot plus 2.
    sandbox
        .sh(Netns::Host, "tc class change dev uplink parent 1: classid 1:10 htb rate 100kbit quantum 1514");
    add(&sandbox, &[]);
    sandbox.ok(&["add", "b"]);
    for (from, flow) in [(Netns::Host, "504d:1 "), (A, "504d:3 "), (B, "504d:4 ")] {
        send(&sandbox, from, (OUTSIDE, 9), 20);
        wait::until(flow, || sandbox.sh(Netns::Host, "tc class show dev uplink").contains(flow));
    }
    sandbox.ok(&["teardown"]);
    assert!(qdiscs().contains("htb 1: root") && !qdiscs().contains("504d:"), "{}", qdiscs());
}

#[test]
fn uplink_qdisc_replaces_mq() {
    let sandbox = Sandbox::new();
    let has_flows = leaf(&sandbox) == "fq_codel";
    sandbox.sh(
        Netns::Host,
        "ip link del uplink; ip link add uplink numtxqueues 4 type ifb
         ip address add 10.0.0.1/24 dev uplink; ip link set uplink up",
    );
    let root = || sandbox.sh(Netns::Host, "tc qdisc show dev uplink root");
    assert!(root().contains("qdisc mq 0: root"), "{}", root());
    let flags = ["--uplink", "uplink"];
    let daemon = daemon_with(&sandbox, &[&flags[..], &["--egress-unique-flow-per-container"]].concat());
    let (expected, logged) = if has_flows {
        ("qdisc fq_codel 504d: root", "one flow per container replaces mq at uplink")
    } else {
        ("qdisc mq 0: root", "--egress-unique-flow-per-container has no effect at uplink")
    };
    assert!(root().contains(expected), "{}", root());
    assert!(daemon.log().contains(logged), "{}", daemon.log());
    daemon.stop();
    let _daemon = daemon_with(&sandbox, &flags);
    assert!(root().contains("qdisc mq 0: root"), "{}", root());
}
