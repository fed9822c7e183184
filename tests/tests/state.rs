//! State files of another version, of another host, from before a reboot, or of an earlier daemon.

use portmap_tests::sandbox::{DAEMON_FLAGS, Netns, Sandbox};
use serde_json::json;

#[test]
fn record_of_a_later_version_is_refused() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    sandbox.ok(&["add", "a"]);
    daemon.stop();
    let file = "containers/a.json";
    let now = sandbox.change_state(file, |file| file["version"] = json!(99));
    let (code, log) = sandbox.refused_daemon(&DAEMON_FLAGS);
    assert_eq!(code, 4, "{log}");
    assert!(log.contains("a.json has version 99, expected 3 to 9: run the portmapd that wrote it"), "{log}");
    sandbox.change_state(file, |file| *file = now);
    let _daemon = sandbox.daemon();
    sandbox.ok(&["doctor"]);
}

#[test]
fn record_of_an_earlier_version_is_completed() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    sandbox.ok(&["add", "a"]);
    let before = sandbox.inventory();
    daemon.stop();
    let file = "containers/a.json";
    let now = sandbox.change_state(file, |file| {
        file["version"] = json!(4);
        let namespace = file["record"]["namespace"].as_object_mut().expect("an object");
        namespace.remove("cookie").expect("a cookie");
        file["record"].as_object_mut().expect("an object").remove("labels").expect("labels");
    });
    let _daemon = sandbox.daemon();
    sandbox.ok(&["doctor"]);
    sandbox.expect_inventory(&before, "with a daemon again");
    assert_eq!(sandbox.change_state(file, |_same| {}), now);
}

#[test]
fn state_of_another_host_is_refused() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    sandbox.ok(&["add", "a", "--ports", "31000"]);
    let before = sandbox.inventory();
    daemon.stop();
    // The inode number alone would be equal.
    let file = "host.json";
    let now = sandbox.change_state(file, |file| file["record"]["namespace"]["cookie"] = json!(1));
    let (code, log) = sandbox.refused_daemon(&DAEMON_FLAGS);
    let expected = "(cookie 1), this is net:[";
    assert!(code == 4 && log.contains(expected), "{log}");
    assert!(sandbox.fails(&["teardown"], 4).contains(expected));
    sandbox.expect_inventory(&before, "after refusals");
    sandbox.change_state(file, |file| *file = now);
    let _daemon = sandbox.daemon();
    sandbox.ok(&["doctor"]);
}

#[test]
fn state_from_before_a_reboot_is_discarded() {
    let sandbox = Sandbox::new();
    let flags = [&DAEMON_FLAGS[..], &["--ephemeral-ports-quarantine", "60secs"]].concat();
    let daemon = sandbox.daemon_with(&flags);
    let added = sandbox.json(&["add", "b"]);
    sandbox.ok(&["add", "a"]);
    sandbox.ok(&["del", "b"]);
    daemon.stop();
    sandbox.sh(Netns::Host, "cp -r /run/portmap /run/kept");
    sandbox.ok(&["teardown"]);
    // A foreign namespace, with all identities as after a reboot.
    sandbox.sh(Netns::Host, "ip netns add a");
    let before = sandbox.inventory();
    sandbox.reboot("/run/kept", "a");
    let daemon = sandbox.daemon_with(&flags);
    assert_eq!(sandbox.json(&["list"]), json!([]));
    assert!(daemon.log().contains("from an earlier boot"), "{}", daemon.log());
    assert_eq!(sandbox.json(&["add", "b"])["ephemeral_ports"], added["ephemeral_ports"], "none of them rest");
    daemon.stop();
    sandbox.ok(&["teardown"]);
    sandbox.expect_inventory(&before, "with a daemon");
    sandbox.reboot("/run/kept", "a");
    sandbox.ok(&["teardown"]);
    sandbox.expect_inventory(&before, "without a daemon");
    sandbox.sh(Netns::Host, "rm -r /run/kept; ip netns del a");
}

#[test]
fn quarantine_survives_daemon_replacement() {
    let sandbox = Sandbox::new();
    let flags = "--ephemeral-ports-quarantine 60secs --ephemeral-ports 65504-65535 --ephemeral-ports-per-container 16";
    let flags: Vec<&str> = DAEMON_FLAGS.into_iter().chain(flags.split(' ')).collect();
    let daemon = sandbox.daemon_with(&flags);
    let block = |name: &str| sandbox.json(&["add", name])["ephemeral_ports"].clone();
    let first = block("a");
    sandbox.ok(&["del", "a"]);
    daemon.kill();
    let daemon = sandbox.daemon_with(&flags);
    assert_ne!(block("b"), first);
    let refusal = sandbox.fails(&["add", "c"], 4);
    assert!(refusal.contains("16 are in quarantine"), "{refusal}");
    // A duration of 0 disables the quarantine.
    daemon.stop();
    let flags: Vec<&str> = flags.into_iter().chain(["--ephemeral-ports-quarantine", "0"]).collect();
    let _daemon = sandbox.daemon_with(&flags);
    assert_eq!(block("c"), first);
}
