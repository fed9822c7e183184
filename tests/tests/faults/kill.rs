//! Kills at every step: the next start completes the operation or rolls it back.

use std::net::Ipv4Addr;

use portmap_tests::{
    cgroup::Cgroup,
    daemon::Daemon,
    faults::Fault::Kill,
    sandbox::{HOST, Netns, Sandbox},
    service::{Service, Transport, ask},
};
use serde_json::json;

use crate::{
    A, ADD, ADD_TO_EXISTING, MORE, PUBLISHED, at_every_step, expect_all_or_nothing, expect_healthy, form,
    in_service, starts, succeeds, to_few, with_container,
};

/// A daemon that is replaced after it was killed.
struct ReplacedDaemon<'a> {
    sandbox: &'a Sandbox,
    daemon: Option<Daemon>,
}

impl<'a> ReplacedDaemon<'a> {
    fn start(sandbox: &'a Sandbox) -> Self {
        Self { sandbox, daemon: Some(sandbox.daemon()) }
    }

    fn replace(&mut self) {
        assert!(
            !self.daemon.take().expect("there always is one").wait_success(),
            "the fault must kill the daemon"
        );
        self.daemon = Some(self.sandbox.daemon());
    }
}

#[test]
fn kill_during_add() {
    let cgroup = Cgroup::new();
    let sandbox = Sandbox::new().guarded(&cgroup).publishing(PUBLISHED);
    sandbox.sh(Netns::Host, "ip netns add existing; ip -n existing link set lo up");
    // Sets the loopback MAC address once, because the kernel cannot unset it.
    let daemon = sandbox.daemon();
    sandbox.ok(&ADD_TO_EXISTING);
    sandbox.ok(&["del", "a"]);
    drop(daemon);
    let mut daemon = ReplacedDaemon::start(&sandbox);
    let existing = || {
        let snapshot =
            "ip -o link; ip -o address; ip route; cat /proc/sys/net/ipv4/ip_local_port_range; tc qdisc";
        sandbox.sh(Netns::Container("existing"), snapshot)
    };
    let (before, existing_before) = (sandbox.inventory(), existing());
    for (test, add) in [("adding", &ADD[..]), ("adding to a namespace", &ADD_TO_EXISTING)] {
        at_every_step(
            test,
            &sandbox,
            Kill,
            || (),
            |()| succeeds(&sandbox, add),
            |at, _| {
                daemon.replace();
                expect_all_or_nothing(&sandbox, &before, at);
                assert_eq!(existing(), existing_before, "{at}");
            },
        );
        sandbox.ok(&["del", "a"]);
    }
    at_every_step(
        "adding under a name in use",
        &sandbox,
        Kill,
        || (),
        |()| !succeeds(&sandbox, &["add", "existing"]),
        |at, _| {
            daemon.replace();
            sandbox.expect_inventory(&before, at);
            assert_eq!(existing(), existing_before, "{at}");
        },
    );
}

#[test]
fn kill_during_delete() {
    let cgroup = Cgroup::new();
    let sandbox = Sandbox::new().guarded(&cgroup).publishing(PUBLISHED);
    let mut daemon = ReplacedDaemon::start(&sandbox);
    let before = sandbox.inventory();
    let add = || drop(sandbox.ok(&ADD));
    at_every_step(
        "deleting",
        &sandbox,
        Kill,
        add,
        |()| succeeds(&sandbox, &["del", "a"]),
        |at, _| {
            daemon.replace();
            expect_all_or_nothing(&sandbox, &before, at);
        },
    );
    sandbox.expect_inventory(&before, "at the end");
}

#[test]
fn kill_during_update() {
    let cgroup = Cgroup::new();
    let sandbox = Sandbox::new().guarded(&cgroup).publishing(PUBLISHED);
    let mut daemon = ReplacedDaemon::start(&sandbox);
    sandbox.ok(&["add", "a"]);
    to_few(&sandbox);
    let _service = Service::start(&sandbox, A, Transport::Udp, 31000, "a");
    let few = json!([[[31000, 31003]], null, null, [61440, 62463]]);
    let more = json!([[[80, 80], [31000, 31001], [31004, 31004]], 1_250_000, 2_500_000, [61440, 63487]]);
    let reset = || to_few(&sandbox);
    at_every_step(
        "updating",
        &sandbox,
        Kill,
        reset,
        |()| succeeds(&sandbox, &MORE),
        |at, _| {
            // The container owns the unchanged port throughout.
            ask(&sandbox, Netns::Outside, Transport::Udp, (HOST, 31000)).unwrap_or_else(|_| panic!("{at}"));
            daemon.replace();
            let found = form(&sandbox, at);
            assert!(found == few || found == more, "{at}: {found}");
            expect_healthy(&sandbox, at);
        },
    );
    assert_eq!(form(&sandbox, "after it"), more);
}

#[test]
fn kill_during_start() {
    let cgroup = Cgroup::new();
    let sandbox = Sandbox::new().guarded(&cgroup).publishing(PUBLISHED);
    let initial = sandbox.inventory();
    let start = |()| starts(&sandbox);
    let mut again = false;
    at_every_step(
        "first start",
        &sandbox,
        Kill,
        || (),
        start,
        |at, _| {
            // Leftovers do not prevent the next daemon, nor a teardown without one.
            again = !again;
            if again {
                let _daemon = sandbox.daemon();
                expect_healthy(&sandbox, at);
            }
            sandbox.ok(&["teardown"]);
            sandbox.expect_inventory(&initial, at);
        },
    );
}

#[test]
fn kill_during_start_with_a_container() {
    kill_during_start_after("start", "true");
}

#[test]
fn kill_during_layout_migration() {
    // One map has an incompatible layout.
    let earlier = "cd /sys/fs/bpf/portmap; mv v6 v5; rm v5/maps/pm_ports";
    kill_during_start_after("start with an earlier layout", earlier);
}

/// Kills a daemon at every step of its start with one container, after a script.
fn kill_during_start_after(test: &str, script: &str) {
    let cgroup = Cgroup::new();
    let sandbox = Sandbox::new().guarded(&cgroup).publishing(PUBLISHED);
    let start = |()| starts(&sandbox);
    let daemon = sandbox.daemon();
    sandbox.ok(&ADD);
    let added = sandbox.json(&["show", "a"]);
    daemon.kill();
    let _service = Service::start(&sandbox, A, Transport::Tcp, 31000, "a");
    let inventory = sandbox.inventory();
    at_every_step(
        test,
        &sandbox,
        Kill,
        || drop(sandbox.sh(Netns::Host, script)),
        start,
        |at, _| {
            let all_well = |at: &str| {
                for address in [HOST, Ipv4Addr::LOCALHOST] {
                    ask(&sandbox, Netns::Host, Transport::Tcp, (address, 31000))
                        .unwrap_or_else(|_| panic!("{at}"));
                }
                ask(&sandbox, Netns::Outside, Transport::Tcp, (HOST, 31000))
                    .unwrap_or_else(|_| panic!("{at}"));
            };
            all_well(at);
            let daemon = sandbox.daemon();
            assert_eq!(in_service(&sandbox, at), std::slice::from_ref(&added), "{at}");
            expect_healthy(&sandbox, at);
            all_well(at);
            daemon.kill();
            sandbox.expect_inventory(&inventory, at);
        },
    );
}

#[test]
fn kill_during_teardown() {
    let cgroup = Cgroup::new();
    let sandbox = Sandbox::new().guarded(&cgroup).publishing(PUBLISHED);
    let initial = sandbox.inventory();
    // With a daemon, and by the command line alone.
    for with_daemon in [true, false] {
        let prepare = || {
            let daemon = with_container(&sandbox);
            if with_daemon {
                Some(daemon)
            } else {
                daemon.kill();
                None
            }
        };
        let attempt = |daemon: Option<Daemon>| {
            succeeds(&sandbox, &["teardown"]) & daemon.is_none_or(Daemon::wait_success)
        };
        at_every_step("teardown", &sandbox, Kill, prepare, attempt, |at, _| {
            // The backup of the host's settings does not outlive the state.
            sandbox
                .sh(Netns::Host, "test -e /run/portmap/host.json || ! ls /run/portmap-places/* 2>/dev/null");
            sandbox.ok(&["teardown"]);
            sandbox.expect_inventory(&initial, at);
        });
        sandbox.expect_inventory(&initial, "at the end");
    }
}

#[test]
fn kill_during_cleanup_after_a_reboot() {
    let sandbox = Sandbox::new().publishing(PUBLISHED);
    with_container(&sandbox).kill();
    sandbox.sh(Netns::Host, "cp -r /run/portmap /run/kept");
    sandbox.ok(&["teardown"]);
    sandbox.sh(Netns::Host, "ip netns add a");
    let before = sandbox.inventory();
    at_every_step(
        "cleanup after a reboot",
        &sandbox,
        Kill,
        || sandbox.reboot("/run/kept", "a"),
        |()| succeeds(&sandbox, &["teardown"]),
        |at, _| {
            sandbox.ok(&["teardown"]);
            sandbox.expect_inventory(&before, at);
        },
    );
    sandbox.expect_inventory(&before, "at the end");
}
