//! Whatever step of an operation the daemon is killed before, or sees fail: the next start, or the next attempt, brings
//! one of two documented states, nothing is lost that is in service, and nothing is left behind.

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
/// A container with everything that one can have.
const ADD: [&str; 8] =
    ["add", "a", "--ports", "31000-31009", "--egress-rate", "100mbit", "--ingress-rate", "100mbit"];
/// The same in a namespace of somebody else.
const ADD_TO_THEIRS: [&str; 6] = ["add", "a", "--netns", "/run/netns/theirs", "--ports", "31000"];
/// More steps than any operation has.
const MANY: usize = 500;

/// The first step to be tried, and how many further on the next: all, and on emulated machines a few, which are not the same
/// in every test.
fn steps(test: &str) -> (usize, usize) {
    let stride = if sample() == 1 { 1 } else { 4 * sample() };
    (1 + test.len() % stride, stride)
}

/// Has something happen at every step of an operation, one after the other, until the operation comes to its end before
/// that. `prepare` brings about what it begins with, `attempt` runs it and says whether it succeeded, `check` looks at
/// what it left. Observers ask all the while.
fn at_every_step<T>(
    test: &str,
    sandbox: &Sandbox,
    fault: Fault,
    prepare: impl FnMut() -> T,
    attempt: impl FnMut(T) -> bool,
    check: impl FnMut(&str, bool),
) {
    observed(sandbox, |_| strike_at_every_step(test, sandbox, fault, prepare, attempt, check));
}

fn strike_at_every_step<T>(
    test: &str,
    sandbox: &Sandbox,
    fault: Fault,
    mut prepare: impl FnMut() -> T,
    mut attempt: impl FnMut(T) -> bool,
    mut check: impl FnMut(&str, bool),
) {
    let (mut step, stride) = steps(test);
    let mut struck = 0;
    while step < MANY {
        let prepared = prepare();
        sandbox.arm_fault(fault, step);
        let succeeded = attempt(prepared);
        let Some(at) = sandbox.fault_fired() else {
            assert!(succeeded, "{test} does not work by itself");
            if struck == 0 && step > 1 {
                // It has few steps, and changes nothing, or there would be nothing left to do.
                step /= 2;
                continue;
            }
            println!("{test}: {struck} faults, steps 1 to {step}");
            assert!(struck > 0, "{test} has no steps");
            return;
        };
        check(&format!("{fault:?} before step {step} of {test}, {at}"), succeeded);
        struck += 1;
        step += stride;
    }
    panic!("{test} comes to no end");
}

/// Whether the command succeeds.
fn works(sandbox: &Sandbox, arguments: &[&str]) -> bool {
    sandbox.portmap(arguments).status.success()
}

/// All containers, each of which must be in service.
fn in_service(sandbox: &Sandbox, at: &str) -> Vec<Value> {
    let Value::Array(all) = sandbox.json(&["list"]) else { panic!("a list") };
    for container in &all {
        assert_eq!(container["state"], "ready", "{at}");
    }
    all
}

fn healthy(sandbox: &Sandbox, at: &str) {
    let output = sandbox.portmap(&["doctor"]);
    assert!(output.status.success(), "{at}: {}", String::from_utf8_lossy(&output.stdout));
}

/// That the container is in service, or that there is nothing of it.
fn all_or_nothing(sandbox: &Sandbox, before: &Inventory, at: &str) {
    let all = in_service(sandbox, at);
    healthy(sandbox, at);
    if !all.is_empty() {
        sandbox.ok(&["del", "a"]);
    }
    sandbox.expect_inventory(before, at);
}

/// A daemon that is replaced when it has been killed.
struct Replaced<'a> {
    sandbox: &'a Sandbox,
    daemon: Option<Daemon>,
}

impl<'a> Replaced<'a> {
    fn start(sandbox: &'a Sandbox) -> Self {
        Self { sandbox, daemon: Some(sandbox.daemon()) }
    }

    fn replace(&mut self) {
        assert!(!self.daemon.take().expect("there always is one").wait_success(), "it was to be killed");
        self.daemon = Some(self.sandbox.daemon());
    }
}

#[test]
fn kill_during_add() {
    let cgroup = Cgroup::new();
    let sandbox = Sandbox::new().guarded(&cgroup);
    sandbox.sh(Netns::Host, "ip netns add theirs; ip -n theirs link set lo up");
    // Our MAC address is in it from now on, which the kernel does not let go.
    let daemon = sandbox.daemon();
    sandbox.ok(&ADD_TO_THEIRS);
    sandbox.ok(&["del", "a"]);
    drop(daemon);
    let mut daemon = Replaced::start(&sandbox);
    let theirs = || {
        let look =
            "ip -o link; ip -o address; ip route; cat /proc/sys/net/ipv4/ip_local_port_range; tc qdisc";
        sandbox.sh(Netns::Container("theirs"), look)
    };
    let (before, theirs_before) = (sandbox.inventory(), theirs());
    for (test, add) in [("adding", &ADD[..]), ("adding to a namespace", &ADD_TO_THEIRS)] {
        at_every_step(
            test,
            &sandbox,
            Kill,
            || (),
            |()| works(&sandbox, add),
            |at, _| {
                daemon.replace();
                all_or_nothing(&sandbox, &before, at);
                assert_eq!(theirs(), theirs_before, "{at}");
            },
        );
        sandbox.ok(&["del", "a"]);
    }
    at_every_step(
        "adding theirs",
        &sandbox,
        Kill,
        || (),
        |()| !works(&sandbox, &["add", "theirs"]),
        |at, _| {
            daemon.replace();
            sandbox.expect_inventory(&before, at);
            assert_eq!(theirs(), theirs_before, "{at}");
        },
    );
}

#[test]
fn kill_during_delete() {
    let cgroup = Cgroup::new();
    let sandbox = Sandbox::new().guarded(&cgroup);
    let mut daemon = Replaced::start(&sandbox);
    let before = sandbox.inventory();
    let add = || drop(sandbox.ok(&ADD));
    at_every_step(
        "deleting",
        &sandbox,
        Kill,
        add,
        |()| works(&sandbox, &["del", "a"]),
        |at, _| {
            daemon.replace();
            all_or_nothing(&sandbox, &before, at);
        },
    );
    sandbox.expect_inventory(&before, "at the end");
}

/// What a container has, before and after an update.
const FEW: [&str; 8] = ["update", "a", "--ports", "31000-31003", "--egress-rate", "0", "--ingress-rate", "0"];
const MORE: [&str; 8] =
    ["update", "a", "--ports", "31000-31001,31004", "--egress-rate", "10mbit", "--ingress-rate", "20mbit"];

fn to_few(sandbox: &Sandbox) {
    sandbox.ok(&FEW);
}

/// The ports and limits of the only container.
fn form(sandbox: &Sandbox, at: &str) -> Value {
    let all = in_service(sandbox, at);
    assert_eq!(all.len(), 1, "{at}");
    json!([all[0]["ports"], all[0]["egress"]["rate"], all[0]["ingress"]["rate"]])
}

#[test]
fn kill_during_update() {
    let cgroup = Cgroup::new();
    let sandbox = Sandbox::new().guarded(&cgroup);
    let mut daemon = Replaced::start(&sandbox);
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
        |()| works(&sandbox, &MORE),
        |at, _| {
            // The port that stays is the container's all the time.
            ask(&sandbox, Netns::Outside, Transport::Udp, (HOST, 31000)).unwrap_or_else(|_| panic!("{at}"));
            daemon.replace();
            let found = form(&sandbox, at);
            assert!(found == few || found == more, "{at}: {found}");
            healthy(&sandbox, at);
        },
    );
    assert_eq!(form(&sandbox, "after it"), more);
}

/// Whether a daemon becomes ready. It is stopped then.
fn starts(sandbox: &Sandbox) -> bool {
    let mut daemon = sandbox.start_daemon(&DAEMON_FLAGS);
    let ready = daemon.wait_ready();
    // Its end may have steps, too.
    if ready {
        // It goes on with what it found.
        daemon.wait_checked();
        daemon.kill();
    } else {
        assert!(!daemon.wait_success(), "it was to become ready");
    }
    ready
}

#[test]
fn kill_during_start() {
    let cgroup = Cgroup::new();
    let sandbox = Sandbox::new().guarded(&cgroup);
    let virgin = sandbox.inventory();
    let start = |()| starts(&sandbox);
    let mut again = false;
    at_every_step(
        "the first start",
        &sandbox,
        Kill,
        || (),
        start,
        |at, _| {
            // What is left is of use to the next daemon, and no obstacle to its removal without one.
            again = !again;
            if again {
                let _daemon = sandbox.daemon();
                healthy(&sandbox, at);
            }
            sandbox.ok(&["teardown"]);
            sandbox.expect_inventory(&virgin, at);
        },
    );
}

#[test]
fn kill_during_start_with_a_container() {
    kill_during_start_after("a start", "true");
}

#[test]
fn kill_during_layout_migration() {
    // One map is of another form.
    let earlier = "cd /sys/fs/bpf/portmap; mv v5 v4; rm v4/maps/pm_ports";
    kill_during_start_after("a start from an earlier layout", earlier);
}

/// Kills a daemon at every step of its start where there is a container, after what a script does.
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
            healthy(&sandbox, at);
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
    let virgin = sandbox.inventory();
    // By the daemon, and by the command line alone.
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
        let attempt =
            |daemon: Option<Daemon>| works(&sandbox, &["teardown"]) & daemon.is_none_or(Daemon::wait_success);
        at_every_step("tearing down", &sandbox, Kill, prepare, attempt, |at, _| {
            // What is said of a host for the case that its state is lost does not outlive the state.
            sandbox
                .sh(Netns::Host, "test -e /run/portmap/host.json || ! ls /run/portmap-places/* 2>/dev/null");
            sandbox.ok(&["teardown"]);
            sandbox.expect_inventory(&virgin, at);
        });
        sandbox.expect_inventory(&virgin, "at the end");
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
        "forgetting",
        &sandbox,
        Kill,
        || sandbox.reboot("/run/kept", "a"),
        |()| works(&sandbox, &["teardown"]),
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
        |()| works(&sandbox, &ADD),
        |at, succeeded| {
            assert_eq!(in_service(&sandbox, at).len(), usize::from(succeeded), "{at}");
            if succeeded {
                sandbox.ok(&["del", "a"]);
            }
            healthy(&sandbox, at);
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
        |()| works(&sandbox, &["del", "a"]),
        |at, succeeded| {
            if !succeeded {
                sandbox.ok(&["del", "a"]);
            }
            healthy(&sandbox, at);
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
        |()| works(&sandbox, &MORE),
        |at, succeeded| {
            assert_eq!(form(&sandbox, at) != few, succeeded, "{at}");
            healthy(&sandbox, at);
        },
    );
    // What the daemon does by itself has some for a moment.
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
        "a start",
        &sandbox,
        Fail,
        || (),
        start,
        |at, _| {
            ask(&sandbox, Netns::Outside, Transport::Tcp, (HOST, 31000)).unwrap_or_else(|_| panic!("{at}"));
            let daemon = sandbox.daemon();
            assert_eq!(in_service(&sandbox, at), std::slice::from_ref(&added), "{at}");
            healthy(&sandbox, at);
            daemon.stop();
        },
    );
}

#[test]
fn step_failure_in_shutdown() {
    let cgroup = Cgroup::new();
    let sandbox = Sandbox::new().guarded(&cgroup);
    let virgin = sandbox.inventory();
    let prepare = || with_container(&sandbox).kill();
    at_every_step(
        "an end",
        &sandbox,
        Fail,
        prepare,
        |()| works(&sandbox, &["teardown"]),
        |at, succeeded| {
            if !succeeded {
                sandbox.ok(&["teardown"]);
            }
            sandbox.expect_inventory(&virgin, at);
        },
    );
    sandbox.expect_inventory(&virgin, "at the end");
}
