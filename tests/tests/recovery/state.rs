//! What was written down, and no longer agrees with what is there.

use std::fs;

use portmap_tests::{
    sandbox::{DAEMON_FLAGS, Place, Sandbox},
    wait,
};
use serde_json::{Value, json};

use crate::A;

/// Changes a file in the state directory, and returns what it said.
fn change_state(sandbox: &Sandbox, file: &str, change: impl FnOnce(&mut Value)) -> Value {
    let path = sandbox.path("/run/portmap").join(file);
    let mut now = serde_json::from_slice(&fs::read(&path).expect("a file")).expect("JSON");
    let before = Value::clone(&now);
    change(&mut now);
    fs::write(&path, serde_json::to_vec(&now).expect("JSON")).expect("written");
    before
}

#[test]
fn a_container_whose_namespace_is_made_again_is_forgotten() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    let before = sandbox.inventory();
    for name in ["a", "b"] {
        sandbox.ok(&["add", name, "--egress-rate", "1gbit"]);
    }
    daemon.stop();
    sandbox.sh(Place::Host, "ip netns del a; ip netns del b");
    wait::until("the interfaces to go", || !sandbox.sh(Place::Host, "ip -o link").contains("pm"));
    // Its name and number can be somebody else's by then; most often they are, if nobody else makes a namespace.
    sandbox.sh(Place::Host, "ip netns add b; ip -n b link set lo up");
    let number = sandbox.sh(Place::Host, "stat -L -c %i /run/netns/b");
    let number: u64 = number.trim().parse().expect("a number");
    change_state(&sandbox, "containers/b.json", |file| file["record"]["namespace"]["inode"] = json!(number));
    let _daemon = sandbox.daemon();
    assert_eq!(sandbox.json(&["list"]), json!([]));
    assert_eq!(sandbox.sh(Place::Host, "ip -n b -o link").lines().count(), 1);
    // With a daemon, too.
    sandbox.ok(&["add", "a"]);
    sandbox.sh(Place::Host, "ip netns del a; ip netns add a; ip -n a link set lo up");
    wait::until("the container to be forgotten", || sandbox.json(&["list"]) == json!([]));
    assert_eq!(sandbox.sh(Place::Host, "ip -n a -o link").lines().count(), 1);
    sandbox.sh(Place::Host, "ip netns del a; ip netns del b");
    sandbox.expect_inventory(&before, "at the end");
}

#[test]
fn orphans_are_removed_and_their_likes_left_alone() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    sandbox.ok(&["add", "kept", "--ports", "31001"]);
    let before = sandbox.inventory();
    sandbox.ok(&["add", "lost", "--ports", "31000", "--egress-rate", "1gbit"]);
    daemon.kill();
    // A record that is cut off leads nowhere.
    let record = sandbox.path("/run/portmap/containers/lost.json");
    let text = fs::read_to_string(&record).expect("a record");
    fs::write(&record, &text[..text.len() / 2]).expect("written");
    // Each lacks something that ours have.
    sandbox.sh(
        Place::Host,
        "ip link add pm7 index 1000007 type veth peer name a7; \
         ip link add pm8 type veth peer name a8; ip link set pm8 alias portmap:eight; \
         ip link add x9 index 1000009 type veth peer name a9; ip link set x9 alias portmap:nine; \
         ip netns add theirs",
    );
    let daemon = sandbox.daemon();
    let log = daemon.log();
    for expected in ["lost.json is damaged", "lost.json.damaged", "removing pm2"] {
        assert!(log.contains(expected), "{expected}: {log}");
    }
    let links = sandbox.sh(Place::Host, "ip -o link");
    assert!(!links.contains("pm2"), "{links}");
    for kept in ["pm1@", "pm7@", "pm8@", "x9@"] {
        assert!(links.contains(kept), "{kept}: {links}");
    }
    sandbox.ok(&["doctor"]);
    // The namespace's name could be anybody's; it stays, like the file.
    sandbox.sh(
        Place::Host,
        "for i in pm7 pm8 x9; do ip link del $i; done; ip netns del theirs; ip netns del lost; \
         rm /run/portmap/containers/lost.json.damaged",
    );
    sandbox.expect_inventory(&before, "at the end");
}

#[test]
fn a_record_from_the_future_is_refused() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    sandbox.ok(&["add", "a"]);
    daemon.stop();
    let file = "containers/a.json";
    let now = change_state(&sandbox, file, |file| file["version"] = json!(99));
    let (code, log) = sandbox.refused_daemon(&DAEMON_FLAGS);
    assert_eq!(code, 4, "{log}");
    assert!(log.contains("a.json has version 99, expected 3 to 5: run the portmapd that wrote it"), "{log}");
    change_state(&sandbox, file, |file| *file = now);
    let _daemon = sandbox.daemon();
    sandbox.ok(&["doctor"]);
}

#[test]
fn a_record_of_an_earlier_version_is_completed() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    sandbox.ok(&["add", "a"]);
    let before = sandbox.inventory();
    daemon.stop();
    let file = "containers/a.json";
    let now = change_state(&sandbox, file, |file| {
        file["version"] = json!(4);
        let namespace = file["record"]["namespace"].as_object_mut().expect("an object");
        namespace.remove("cookie").expect("a cookie");
    });
    let _daemon = sandbox.daemon();
    sandbox.ok(&["doctor"]);
    sandbox.expect_inventory(&before, "with a daemon again");
    assert_eq!(change_state(&sandbox, file, |_same| {}), now);
}

#[test]
fn state_of_another_host_is_refused() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    sandbox.ok(&["add", "a", "--ports", "31000"]);
    let before = sandbox.inventory();
    daemon.stop();
    // The number alone would be the same.
    let file = "host.json";
    let now = change_state(&sandbox, file, |file| file["record"]["namespace"]["cookie"] = json!(1));
    let (code, log) = sandbox.refused_daemon(&DAEMON_FLAGS);
    let expected = "(cookie 1), this is net:[";
    assert!(code == 4 && log.contains(expected), "{log}");
    assert!(sandbox.fails(&["teardown"], 4).contains(expected));
    sandbox.expect_inventory(&before, "after refusals");
    change_state(&sandbox, file, |file| *file = now);
    let _daemon = sandbox.daemon();
    sandbox.ok(&["doctor"]);
}

#[test]
fn state_from_before_a_reboot_is_forgotten() {
    let sandbox = Sandbox::new();
    let flags = [&DAEMON_FLAGS[..], &["--ephemeral-ports-rest", "60secs"]].concat();
    let daemon = sandbox.daemon_with(&flags);
    let added = sandbox.json(&["add", "b"]);
    sandbox.ok(&["add", "a"]);
    sandbox.ok(&["del", "b"]);
    daemon.stop();
    sandbox.sh(Place::Host, "cp -r /run/portmap /run/kept");
    sandbox.ok(&["teardown"]);
    // Somebody's, to whom all numbers are given as if for the first time.
    sandbox.sh(Place::Host, "ip netns add a");
    let before = sandbox.inventory();
    let boot_again = || {
        sandbox.sh(Place::Host, "cp -r /run/kept /run/portmap");
        change_state(&sandbox, "host.json", |file| file["record"]["boot"] = json!("another"));
        let id = json!(sandbox.namespace(A).id().expect("a namespace"));
        change_state(&sandbox, "containers/a.json", |file| file["record"]["namespace"] = id);
    };
    boot_again();
    let daemon = sandbox.daemon_with(&flags);
    assert_eq!(sandbox.json(&["list"]), json!([]));
    assert!(daemon.log().contains("before the machine was started"), "{}", daemon.log());
    assert_eq!(sandbox.json(&["add", "b"])["ephemeral_ports"], added["ephemeral_ports"], "none of them rest");
    daemon.stop();
    sandbox.ok(&["teardown"]);
    sandbox.expect_inventory(&before, "with a daemon");
    boot_again();
    sandbox.ok(&["teardown"]);
    sandbox.expect_inventory(&before, "without a daemon");
    sandbox.sh(Place::Host, "rm -r /run/kept; ip netns del a");
}

#[test]
fn ports_rest_although_the_daemon_is_replaced() {
    let sandbox = Sandbox::new();
    let flags =
        "--ephemeral-ports-rest 60secs --ephemeral-ports 65504-65535 --ephemeral-ports-per-container 16";
    let flags: Vec<&str> = DAEMON_FLAGS.into_iter().chain(flags.split(' ')).collect();
    let daemon = sandbox.daemon_with(&flags);
    let block = |name: &str| sandbox.json(&["add", name])["ephemeral_ports"].clone();
    let first = block("a");
    sandbox.ok(&["del", "a"]);
    daemon.kill();
    let daemon = sandbox.daemon_with(&flags);
    assert_ne!(block("b"), first);
    let refusal = sandbox.fails(&["add", "c"], 4);
    assert!(refusal.contains("16 rest"), "{refusal}");
    // Nobody needs to wait for it who does not want to.
    daemon.stop();
    let flags: Vec<&str> = flags.into_iter().chain(["--ephemeral-ports-rest", "0"]).collect();
    let _daemon = sandbox.daemon_with(&flags);
    assert_eq!(block("c"), first);
}
