//! Failures at every step: the operation returns an error and is rolled back, or its next attempt completes
//! it.

use portmap_tests::{
    cgroup::Cgroup,
    faults::Fault::Fail,
    sandbox::{HOST, Netns, Sandbox},
    service::{Service, Transport, ask},
    wait,
};

use crate::{
    A, ADD, MORE, PUBLISHED, at_every_step, expect_healthy, form, in_service, starts, succeeds, to_few,
    with_container,
};

#[test]
fn step_failure_in_commands() {
    let cgroup = Cgroup::new();
    let sandbox = Sandbox::new().guarded(&cgroup).publishing(PUBLISHED);
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
    let sandbox = Sandbox::new().guarded(&cgroup).publishing(PUBLISHED);
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
    let sandbox = Sandbox::new().guarded(&cgroup).publishing(PUBLISHED);
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
