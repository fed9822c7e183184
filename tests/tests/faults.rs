//! Fault injection at every step of every operation: after a kill or a failing step, the next start or the
//! next attempt reaches one of two documented states. Containers in service stay in service, and nothing
//! leaks.

use std::net::Ipv4Addr;

use portmap_tests::{
    cgroup::Cgroup,
    daemon::Daemon,
    faults::{
        Fault::{self, Fail, Kill},
        sample,
    },
    inventory::Inventory,
    observers::observed,
    sandbox::{DAEMON_FLAGS, HOST, Netns, Sandbox},
    service::{Service, Transport, ask},
    wait,
};
use serde_json::{Value, json};

const A: Netns<'_> = Netns::Container("a");
/// Adds a container with all features.
const ADD: [&str; 8] =
    ["add", "a", "--ports", "31000-31009", "--egress-rate", "100mbit", "--ingress-rate", "100mbit"];
/// Adds a container in an existing namespace.
const ADD_TO_EXISTING: [&str; 6] = ["add", "a", "--netns", "/run/netns/existing", "--ports", "31000"];
/// More steps than any operation has.
const MANY: usize = 500;

/// First step and stride: every step, and on emulated machines a sample that differs between tests.
fn steps(test: &str) -> (usize, usize) {
    let stride = if sample() == 1 { 1 } else { 4 * sample() };
    (1 + test.len() % stride, stride)
}

/// Injects a fault at every step of an operation, one after the other, until the operation completes before
/// the step. `prepare` sets up the initial state, `attempt` runs the operation and returns whether it
/// succeeded, `check` verifies the outcome. Observers query the daemon throughout.
fn at_every_step<T>(
    test: &str,
    sandbox: &Sandbox,
    fault: Fault,
    prepare: impl FnMut() -> T,
    attempt: impl FnMut(T) -> bool,
    check: impl FnMut(&str, bool),
) {
    observed(sandbox, |_| inject_at_every_step(test, sandbox, fault, prepare, attempt, check));
}

fn inject_at_every_step<T>(
    test: &str,
    sandbox: &Sandbox,
    fault: Fault,
    mut prepare: impl FnMut() -> T,
    mut attempt: impl FnMut(T) -> bool,
    mut check: impl FnMut(&str, bool),
) {
    let (mut step, stride) = steps(test);
    let mut fired = 0;
    while step < MANY {
        let prepared = prepare();
        sandbox.arm_fault(fault, step);
        let succeeded = attempt(prepared);
        let Some(at) = sandbox.fault_fired() else {
            assert!(succeeded, "{test} fails without a fault");
            if fired == 0 && step > 1 {
                // The operation has fewer steps than the first sampled one.
                step /= 2;
                continue;
            }
            println!("{test}: {fired} faults, steps 1 to {step}");
            assert!(fired > 0, "{test} has no steps");
            return;
        };
        check(&format!("{fault:?} before step {step} of {test}, {at}"), succeeded);
        fired += 1;
        step += stride;
    }
    panic!("{test} has more than {MANY} steps");
}

/// Whether a command succeeds.
fn succeeds(sandbox: &Sandbox, arguments: &[&str]) -> bool {
    sandbox.portmap(arguments).status.success()
}

/// Returns all containers, each of which must be in service.
fn in_service(sandbox: &Sandbox, at: &str) -> Vec<Value> {
    let Value::Array(all) = sandbox.json(&["list"]) else { panic!("a list") };
    for container in &all {
        assert_eq!(container["state"], "ready", "{at}");
    }
    all
}

fn expect_healthy(sandbox: &Sandbox, at: &str) {
    let output = sandbox.portmap(&["doctor"]);
    assert!(output.status.success(), "{at}: {}", String::from_utf8_lossy(&output.stdout));
}

/// Asserts that the container is either in service or gone without leftovers.
fn expect_all_or_nothing(sandbox: &Sandbox, before: &Inventory, at: &str) {
    let all = in_service(sandbox, at);
    expect_healthy(sandbox, at);
    if !all.is_empty() {
        sandbox.ok(&["del", "a"]);
    }
    sandbox.expect_inventory(before, at);
}

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
    let sandbox = Sandbox::new().guarded(&cgroup);
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
    let sandbox = Sandbox::new().guarded(&cgroup);
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

/// Ports and limits before and after the update.
const FEW: [&str; 8] = ["update", "a", "--ports", "31000-31003", "--egress-rate", "0", "--ingress-rate", "0"];
const MORE: [&str; 8] =
    ["update", "a", "--ports", "31000-31001,31004", "--egress-rate", "10mbit", "--ingress-rate", "20mbit"];

fn to_few(sandbox: &Sandbox) {
    sandbox.ok(&FEW);
}

/// Ports and limits of the only container.
fn form(sandbox: &Sandbox, at: &str) -> Value {
    let all = in_service(sandbox, at);
    assert_eq!(all.len(), 1, "{at}");
    json!([all[0]["ports"], all[0]["egress"]["rate"], all[0]["ingress"]["rate"]])
}

#[test]
fn kill_during_update() {
    let cgroup = Cgroup::new();
    let sandbox = Sandbox::new().guarded(&cgroup);
    let mut daemon = ReplacedDaemon::start(&sandbox);
    sandbox.ok(&["add", "a"]);
    to_few(&sandbox);
    let _service = Service::start(&sandbox, A, Transport::Udp, 31000, "a");
    let few = json!([[[31000, 31003]], null, null]);
    let more = json!([[[31000, 31001], [31004, 31004]], 1_250_000, 2_500_000]);
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

/// Whether a daemon becomes ready. It is then killed.
fn starts(sandbox: &Sandbox) -> bool {
    let mut daemon = sandbox.start_daemon(&DAEMON_FLAGS);
    let ready = daemon.wait_ready();
    // Its shutdown would add steps.
    if ready {
        // The background checks have steps, too.
        daemon.wait_checked();
        daemon.kill();
    } else {
        assert!(!daemon.wait_success(), "a daemon that is not ready must fail");
    }
    ready
}

#[test]
fn kill_during_start() {
    let cgroup = Cgroup::new();
    let sandbox = Sandbox::new().guarded(&cgroup);
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
    let earlier = "cd /sys/fs/bpf/portmap; mv v5 v4; rm v4/maps/pm_ports";
    kill_during_start_after("start with an earlier layout", earlier);
}

/// Kills a daemon at every step of its start with one container, after a script.
fn kill_during_start_after(test: &str, script: &str) {
    let cgroup = Cgroup::new();
    let sandbox = Sandbox::new().guarded(&cgroup);
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
    let sandbox = Sandbox::new().guarded(&cgroup);
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
    let sandbox = Sandbox::new();
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

fn with_container(sandbox: &Sandbox) -> Daemon {
    let daemon = sandbox.daemon();
    sandbox.ok(&ADD);
    daemon
}

#[test]
fn step_failure_in_commands() {
    let cgroup = Cgroup::new();
    let sandbox = Sandbox::new().guarded(&cgroup);
    let daemon = sandbox.daemon();
    let before = sandbox.inventory();
    let files = daemon.open_files();
    at_every_step(
        "adding",
        &sandbox,
        Fail,
        || (),
        |()| succeeds(&sandbox, &ADD),
        |at, succeeded| {
            assert_eq!(in_service(&sandbox, at).len(), usize::from(succeeded), "{at}");
            if succeeded {
                sandbox.ok(&["del", "a"]);
            }
            expect_healthy(&sandbox, at);
            sandbox.expect_inventory(&before, at);
        },
    );
    sandbox.ok(&["del", "a"]);
    let add = || drop(sandbox.ok(&ADD));
    at_every_step(
        "deleting",
        &sandbox,
        Fail,
        add,
        |()| succeeds(&sandbox, &["del", "a"]),
        |at, succeeded| {
            if !succeeded {
                sandbox.ok(&["del", "a"]);
            }
            expect_healthy(&sandbox, at);
            sandbox.expect_inventory(&before, at);
        },
    );
    sandbox.ok(&["add", "a"]);
    to_few(&sandbox);
    let few = form(&sandbox, "before it");
    let reset = || to_few(&sandbox);
    at_every_step(
        "updating",
        &sandbox,
        Fail,
        reset,
        |()| succeeds(&sandbox, &MORE),
        |at, succeeded| {
            assert_eq!(form(&sandbox, at) != few, succeeded, "{at}");
            expect_healthy(&sandbox, at);
        },
    );
    // Background work opens files for a moment.
    wait::until("no more files to be open than before", || daemon.open_files() == files);
}

#[test]
fn step_failure_in_start() {
    let cgroup = Cgroup::new();
    let sandbox = Sandbox::new().guarded(&cgroup);
    let daemon = sandbox.daemon();
    sandbox.ok(&ADD);
    let added = sandbox.json(&["show", "a"]);
    daemon.kill();
    let _service = Service::start(&sandbox, A, Transport::Tcp, 31000, "a");
    let start = |()| starts(&sandbox);
    at_every_step(
        "start",
        &sandbox,
        Fail,
        || (),
        start,
        |at, _| {
            ask(&sandbox, Netns::Outside, Transport::Tcp, (HOST, 31000)).unwrap_or_else(|_| panic!("{at}"));
            let daemon = sandbox.daemon();
            assert_eq!(in_service(&sandbox, at), std::slice::from_ref(&added), "{at}");
            expect_healthy(&sandbox, at);
            daemon.stop();
        },
    );
}

#[test]
fn step_failure_in_shutdown() {
    let cgroup = Cgroup::new();
    let sandbox = Sandbox::new().guarded(&cgroup);
    let initial = sandbox.inventory();
    let prepare = || with_container(&sandbox).kill();
    at_every_step(
        "shutdown",
        &sandbox,
        Fail,
        prepare,
        |()| succeeds(&sandbox, &["teardown"]),
        |at, succeeded| {
            if !succeeded {
                sandbox.ok(&["teardown"]);
            }
            sandbox.expect_inventory(&initial, at);
        },
    );
    sandbox.expect_inventory(&initial, "at the end");
}
