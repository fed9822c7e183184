//! Containers that end, and many requests: no answer fails, and no container is kept.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use portmap_tests::{
    sandbox::{Netns, Sandbox},
    wait,
};

use super::{ALL, monitor, world};

/// The names of the containers with a complete reading.
fn complete(sandbox: &Sandbox) -> Vec<String> {
    let has_all = |statistics: &serde_json::Value| {
        !statistics["net_snmp_statistics"].is_null() && !statistics["net_tcp_active_connections"].is_null()
    };
    let all = monitor(sandbox).into_iter().filter(|container| has_all(&container["statistics"]));
    all.map(|container| container["container_id"].as_str().expect("a name").to_owned()).collect()
}

/// A container whose namespace ends while it is read neither fails the answer for the others nor stays.
#[test]
fn monitor_survives_containers_that_end() {
    let (sandbox, _daemon) = world(&ALL, &[]);
    sandbox.ok(&["add", "b"]);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let found = complete(&sandbox);
                    assert!(found.contains(&"a".to_owned()) && found.contains(&"b".to_owned()), "{found:?}");
                }
            });
        }
        for number in 0..10 {
            let name = format!("c{number}");
            sandbox.sh(Netns::Host, &format!("ip netns add {name}"));
            sandbox.ok(&["add", &name, "--netns", &format!("/run/netns/{name}")]);
            // Its last reference: the kernel deletes the veth pair, unless the collector kept the namespace.
            sandbox.sh(Netns::Host, &format!("ip netns del {name}"));
            wait::until("the container to be removed", || {
                sandbox.json(&["list"]).as_array().expect("a list").iter().all(|found| found["name"] != *name)
            });
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(complete(&sandbox), ["a", "b"]);
}

/// A namespace that takes the place of a container's is not read as the container's.
#[test]
fn monitor_reads_no_other_namespace() {
    let (sandbox, _daemon) = world(&ALL, &["--ephemeral-ports-per-container", "16"]);
    wait::until("a reading", || complete(&sandbox) == ["a"]);
    sandbox.sh(Netns::Host, "mkdir -p /run/kept && touch /run/kept/a");
    sandbox.sh(Netns::Host, "mount --bind /run/netns/a /run/kept/a && umount /run/netns/a");
    sandbox.sh(Netns::Host, "unshare --net=/run/netns/a true");
    wait::until("the container to be incomplete", || complete(&sandbox).is_empty());
    assert_eq!(monitor(&sandbox).len(), 1, "its counters are in the maps");
    sandbox.sh(
        Netns::Host,
        "umount /run/netns/a && mount --bind /run/kept/a /run/netns/a && umount /run/kept/a",
    );
    wait::until("the container to be complete again", || complete(&sandbox) == ["a"]);
}
