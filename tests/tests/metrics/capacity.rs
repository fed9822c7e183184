//! `portmap capacity`.

use portmap_tests::sandbox::{DAEMON_FLAGS, Sandbox};
use serde_json::json;

use crate::{scrape, value};

#[test]
fn capacity_predicts_which_containers_fit() {
    let sandbox = Sandbox::new();
    let more = ["--ephemeral-ports-quarantine", "60secs", "--egress-rate-limit-per-container", "100mbit"];
    let _daemon = sandbox.daemon_with(&[&DAEMON_FLAGS[..], &more].concat());
    sandbox.ok(&["add", "a", "--ports", "31000-31009,31500", "--ephemeral-ports-per-container", "512"]);
    let capacity = sandbox.json(&["capacity"]);
    let free = &capacity["static_ports"];
    assert_eq!((&free["total"], &free["owned"], &free["free"]), (&json!(1001), &json!(11), &json!(990)));
    assert_eq!(free["largest_free_run"], json!([31501, 32000]));
    assert_eq!(free["free_ports"], json!([[31010, 31499], [31501, 32000]]));
    assert_eq!(capacity["limits"]["egress"]["per_container"], 12_500_000);
    assert_eq!(capacity["slots"], json!({ "total": 4095, "owned": 1, "free": 4094 }));
    // The ports of the largest run can be requested, and one more cannot.
    sandbox.ok(&["add", "run", "--ports", "31501-32000", "--ephemeral-ports-per-container", "16"]);
    let containers = &sandbox.json(&["capacity"])["containers"];
    // 512 and 16 ports are in one block of 1,024.
    assert_eq!(
        containers,
        &json!({
            "total": 2, "fit": 3, "fit_after_quarantine": 3, "bound_by": "ephemeral_ports"
        })
    );
    let text = scrape(&sandbox);
    for (metric, expected) in [
        ("portmap_containers_fit", 3),
        ("portmap_static_ports{state=\"free\"}", 490),
        ("portmap_static_ports_largest_free_run", 490),
        ("portmap_ephemeral_ports{state=\"owned\"}", 528),
        ("portmap_ephemeral_ports{state=\"free\"}", 4096 - 528),
        ("portmap_ephemeral_blocks_owned{size=\"512\"}", 1),
        ("portmap_ephemeral_blocks_free{size=\"1024\"}", 3),
        ("portmap_ephemeral_blocks_free{size=\"4096\"}", 0),
        ("portmap_slots{state=\"owned\"}", 2),
        ("portmap_containers{state=\"ready\"}", 2),
        ("portmap_container_ports{container=\"a\",kind=\"static\"}", 11),
        ("portmap_default_limit_bytes_per_second{direction=\"egress\"}", 12_500_000),
    ] {
        assert_eq!(value(&text, metric), Some(expected), "{metric}: {text}");
    }
    for number in 0..3 {
        sandbox.ok(&["add", &format!("more-{number}")]);
    }
    let capacity = sandbox.json(&["capacity"]);
    assert_eq!(capacity["containers"]["fit"], 0);
    assert_eq!(capacity["ephemeral_ports"]["next_free_seconds"], json!(null));
    sandbox.fails(&["add", "one-too-many"], 4);
    sandbox.ok(&["del", "more-1"]);
    let capacity = sandbox.json(&["capacity"]);
    let containers = &capacity["containers"];
    assert_eq!((&containers["fit"], &containers["fit_after_quarantine"]), (&json!(0), &json!(1)));
    assert_eq!(capacity["ephemeral_ports"]["quarantined"], 1024);
    let seconds = capacity["ephemeral_ports"]["next_free_seconds"].as_u64();
    assert!(seconds.is_some_and(|seconds| (1..=60).contains(&seconds)), "{capacity}");
    let table = sandbox.ok(&["capacity"]);
    assert!(
        table.starts_with("room for 0 more, with 1024 ephemeral ports each; bounded by blocks"),
        "{table}"
    );
    assert!(table.contains("room for 1 after the quarantine"), "{table}");
}
