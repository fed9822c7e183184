//! Fault injection at every step of every operation: after a kill or a failing step, the next start or the
//! next attempt reaches one of two documented states. Containers in service stay in service, and nothing
//! leaks.

mod fail;
mod kill;

use portmap_tests::{
    daemon::Daemon,
    faults::{Fault, sample},
    inventory::Inventory,
    observers::observed,
    sandbox::{DAEMON_FLAGS, Netns, Sandbox},
};
use serde_json::{Value, json};

const A: Netns<'_> = Netns::Container("a");
/// A published port of the containers.
const PUBLISHED: &str = "80";
/// Adds a container with all features.
const ADD: [&str; 8] =
    ["add", "a", "--ports", "80,31000-31009,auto:2", "--egress-rate", "100mbit", "--ingress-rate", "100mbit"];
/// Adds a container in an existing namespace.
const ADD_TO_EXISTING: [&str; 6] = ["add", "a", "--netns", "/run/netns/existing", "--ports", "31000"];
/// More steps than any operation has.
const MANY: usize = 500;

/// Returns the first step and stride: every step, and on emulated machines a sample that differs between
/// tests.
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

/// Returns whether a command succeeds.
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

/// Ports and limits before and after the update.
const FEW: [&str; 10] = [
    "update",
    "a",
    "--ports",
    "31000-31003",
    "--egress-rate",
    "0",
    "--ingress-rate",
    "0",
    "--ephemeral-ports-per-container",
    "1024",
];
const MORE: [&str; 10] = [
    "update",
    "a",
    "--ports",
    "80,31000-31001,31004",
    "--egress-rate",
    "10mbit",
    "--ingress-rate",
    "20mbit",
    "--ephemeral-ports-per-container",
    "2048",
];

fn to_few(sandbox: &Sandbox) {
    sandbox.ok(&FEW);
}

/// Ports and limits of the only container.
fn form(sandbox: &Sandbox, at: &str) -> Value {
    let all = in_service(sandbox, at);
    assert_eq!(all.len(), 1, "{at}");
    json!([all[0]["ports"], all[0]["egress"]["rate"], all[0]["ingress"]["rate"], all[0]["ephemeral_ports"]])
}

/// Returns whether a daemon becomes ready, and kills it.
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

fn with_container(sandbox: &Sandbox) -> Daemon {
    let daemon = sandbox.daemon();
    sandbox.ok(&ADD);
    daemon
}
