//! IPsec policies of the host, which do not apply to containers: commands name them.

use portmap_tests::sandbox::{Netns, Sandbox};
use serde_json::Value;

use crate::findings;

const SUBJECT: &str = "host IPsec";
const POLICY: &str = "dir out src 10.0.0.0/8 dst 192.0.2.0/24";

#[test]
fn ipsec_policies_are_named() {
    let sandbox = Sandbox::new();
    let change =
        |word: &str, policy: &str| sandbox.sh(Netns::Host, &format!("ip xfrm policy {word} {policy}"));
    change("add", &format!("{POLICY} action block"));
    // One of an XFRM interface applies to containers, too.
    change("add", "dir out src 10.0.0.0/8 dst 198.51.100.0/24 if_id 7 action block");
    let daemon = sandbox.daemon();
    assert!(daemon.log().contains(POLICY), "{}", daemon.log());
    sandbox.ok(&["add", "a", "--ports", "31000-31001"]);
    let found = findings(&sandbox, SUBJECT);
    assert!(found.len() == 1 && found[0].starts_with("notice IPsec policies do not apply"), "{found:?}");
    assert!(found[0].contains(POLICY) && !found[0].contains("198.51.100"), "{found:?}");
    let notes = |from: &str, to: &str| -> Vec<String> {
        let explanation = sandbox.json(&["explain", "--from", from, "--to", to]);
        let notes = explanation["notes"].as_array().into_iter().flatten().filter_map(Value::as_str);
        notes.filter(|note| note.contains("IPsec")).map(str::to_owned).collect()
    };
    assert_eq!(notes("a", "192.0.2.9:80").len(), 1);
    assert_eq!(notes("a", "198.51.100.9:80"), [""; 0]);
    assert_eq!(notes("outside", "10.0.0.1:31000"), [""; 0], "it is for packets to that network");
    // It lets packets pass.
    change("add", "dir in src 10.0.0.0/16 dst 10.0.0.0/8");
    assert_eq!(notes("outside", "10.0.0.1:31000"), [""; 0]);
    change("add", "dir in src 0.0.0.0/0 dst 10.0.0.0/8 tmpl proto esp mode transport");
    assert_eq!(notes("outside", "10.0.0.1:31000").len(), 1);
    change("flush", "");
    assert_eq!(findings(&sandbox, SUBJECT), ["ok the host has no policies"]);
}
