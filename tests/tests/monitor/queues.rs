//! The counters of the qdiscs that limit a container.

use portmap_tests::{
    sandbox::{HOST, Netns, OUTSIDE, Sandbox},
    wait,
};
use serde_json::Value;

use super::{A, number, statistics, udp, world};

/// The counters of a qdisc by its id.
fn qdisc(sandbox: &Sandbox, id: &str) -> Value {
    let found = statistics(sandbox)["net_traffic_control_statistics"].take();
    let found = found.as_array().into_iter().flatten().find(|qdisc| qdisc["id"] == id);
    found.cloned().unwrap_or_else(|| panic!("no entry {id}"))
}

/// The counters of the qdiscs of an interface as tc prints them: the root's, and those of the leaf below `1:1`.
fn of_tc(sandbox: &Sandbox, netns: Netns<'_>, interface: &str) -> [Value; 2] {
    let text = sandbox.sh(netns, &format!("tc -s -j qdisc show dev {interface}"));
    let all: Vec<Value> = serde_json::from_str(&text).expect("JSON");
    let find = |what: &dyn Fn(&&Value) -> bool| all.iter().find(what).cloned().expect("a qdisc");
    [find(&|qdisc| qdisc["root"] == true), find(&|qdisc| qdisc["parent"] == "1:1")]
}

/// What exceeds a megabit per second waits, is delayed and, beyond the queue's length, dropped.
#[test]
fn monitor_counts_queueing_and_drops_of_limits() {
    let (sandbox, _daemon) = world(&[], &["--egress-rate", "1mbit", "--ingress-rate", "1mbit"]);
    let (inside, outside) = (udp(&sandbox, A, 31000), udp(&sandbox, Netns::Outside, 9000));
    let veth = sandbox.json(&["show", "a"])["host_veth"].as_str().expect("a name").to_owned();
    for (prefix, from, to, netns, interface) in [
        ("", &inside, (OUTSIDE, 9000), A, "eth0"),
        ("ingress_", &outside, (HOST, 31000), Netns::Host, veth.as_str()),
    ] {
        let (limit, leaf) = (format!("{prefix}bw_limit"), format!("{prefix}bloat_reduction"));
        let before = qdisc(&sandbox, &limit);
        from.set_nonblocking(true).expect("a socket");
        let waiting = wait::for_value("packets that wait", || {
            for _ in 0..200 {
                // A full queue is an error of the socket.
                let _ = from.send_to(&[0; 1400], to);
            }
            let found = qdisc(&sandbox, &leaf);
            (number(&found, "qlen") > 0 && number(&found, "drops") > 0).then_some(found)
        });
        assert!(number(&waiting, "backlog") >= 1400, "{waiting}");
        assert!(number(&qdisc(&sandbox, &limit), "overlimits") > number(&before, "overlimits"));
        // As tc prints them, once the queue is empty.
        let keys = ["bytes", "packets", "drops", "overlimits", "requeues", "backlog", "qlen"];
        wait::until("the counters of tc", || {
            let tc = of_tc(&sandbox, netns, interface);
            let found = [&limit, &leaf].map(|id| qdisc(&sandbox, id));
            tc.iter().zip(&found).all(|(tc, found)| keys.iter().all(|key| tc[key] == found[key]))
                && tc[0]["qlen"] == 0
        });
        for key in ["ratebps", "ratepps"] {
            assert_eq!(qdisc(&sandbox, &limit)[key], 0);
        }
    }
}
