//! Programs and maps are replaced under traffic, by a daemon of the same layout and of another one, and nothing is lost.

use std::{net::Ipv4Addr, time::Duration};

use aya::programs::SchedClassifier;
use portmap::{
    kernel::programs::{self, Hook, Mechanism},
    paths::Pins,
};
use portmap_common::names::{
    PROG_CONTAINER_ETH0, PROG_CONTAINER_LO, PROG_LO_INGRESS, PROG_UPLINK_EGRESS, PROG_UPLINK_INGRESS,
    PROG_VETH_INGRESS, PROGRAMS,
};
use portmap_tests::{
    faults::sample,
    load::{Server, Way, under_load},
    sandbox::{DAEMON_FLAGS, HOST, OUTSIDE, Place, Sandbox},
};

/// As fast as they are answered; on an emulated machine others need the CPU, too.
fn pause() -> Duration {
    if sample() == 1 { Duration::ZERO } else { Duration::from_millis(10) }
}

const A: Place<'_> = Place::Container("a");
const B: Place<'_> = Place::Container("b");

/// Who answers, and who asks whom. Every program is passed by some of these, in either direction.
const SERVERS: [Server; 4] =
    [(A, 31000, b'a'), (B, 31001, b'b'), (Place::Outside, 7000, b'o'), (Place::Host, 7001, b'h')];
const WAYS: [Way; 6] = [
    (Place::Outside, 0, HOST),
    (Place::Host, 0, HOST),
    (Place::Host, 1, Ipv4Addr::LOCALHOST),
    (A, 1, HOST),
    (B, 2, OUTSIDE),
    (A, 3, HOST),
];

fn with_two() -> (Sandbox, portmap_tests::daemon::Daemon) {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    sandbox.ok(&["add", "a", "--ports", "31000", "--ingress-rate", "1gbit"]);
    sandbox.ok(&["add", "b", "--ports", "31001"]);
    (sandbox, daemon)
}

#[test]
fn a_thousand_replacements_lose_nothing() {
    let (sandbox, daemon) = with_two();
    // Nobody but this test replaces programs.
    daemon.stop();
    let bpffs = sandbox.path("/sys/fs/bpf/portmap");
    // The same programs, loaded twice.
    let (first, second) = (Pins::new(&bpffs), Pins::of_layout(&bpffs, 0));
    std::fs::create_dir_all(second.root().join("progs")).expect("a directory");
    for name in PROGRAMS {
        let mut program = SchedClassifier::from_pin(first.program(name)).expect("a program");
        program.pin(second.program(name)).expect("pinned");
    }
    sandbox.inside(Place::Host, || programs::load(&first)).expect("loaded");
    let hook = |place, interface: &str, ingress, program, link: &str| {
        // As the daemon has it: links at the host's own interfaces.
        let mechanism = if link.starts_with("pm") { Mechanism::Clsact } else { Mechanism::detect() };
        let interface = interface.to_owned();
        (place, Hook { interface, ingress, program, mechanism, link: first.link(link) })
    };
    let hooks = [
        hook(Place::Host, "uplink", true, PROG_UPLINK_INGRESS, "uplink"),
        hook(Place::Host, "uplink", false, PROG_UPLINK_EGRESS, "uplink-out"),
        hook(Place::Host, "lo", true, PROG_LO_INGRESS, "lo"),
        hook(Place::Host, "pm1", true, PROG_VETH_INGRESS, "pm1"),
        hook(A, "lo", false, PROG_CONTAINER_LO, "pm1-lo"),
        hook(A, "eth0", true, PROG_CONTAINER_ETH0, "pm1-eth0"),
    ];
    let rounds = 1000 / sample();
    under_load(&sandbox, &SERVERS, &WAYS, pause(), || {
        for (place, hook) in &hooks {
            sandbox.inside(*place, || {
                for round in 0..rounds {
                    let pins = [&first, &second][round % 2];
                    programs::attach(pins, hook).expect("attached");
                    assert_eq!(programs::is_attached(pins, hook), Ok(true), "{}", hook.program);
                }
            });
        }
    });
    println!("{rounds} replacements in each of {} hooks", hooks.len());
    sandbox.sh(Place::Host, "rm -r /sys/fs/bpf/portmap/v0");
}

#[test]
fn daemons_follow_each_other_under_load() {
    let (sandbox, mut daemon) = with_two();
    let last = under_load(&sandbox, &SERVERS, &WAYS, pause(), || {
        for _ in 0..(10 / sample()).max(2) {
            daemon.kill();
            daemon = sandbox.daemon();
        }
        daemon
    });
    sandbox.ok(&["doctor"]);
    last.stop();
}

#[test]
fn an_earlier_layout_is_taken_over_under_load() {
    let (sandbox, daemon) = with_two();
    let before = sandbox.inventory();
    let received = |sandbox: &Sandbox| {
        sandbox.json(&["stats", "a"])["traffic"]["rx_outside"]["packets"].as_u64().expect("a number")
    };
    under_load(&sandbox, &SERVERS, &WAYS, pause(), || {
        let counted = received(&sandbox);
        assert_ne!(counted, 0);
        daemon.kill();
        // As an earlier version would have left it, in which these two maps had another form.
        sandbox.sh(Place::Host, "cd /sys/fs/bpf/portmap; mv v5 v4; rm v4/maps/pm_ports v4/maps/pm_endpoints");
        let _daemon = sandbox.daemon();
        assert!(received(&sandbox) > counted, "what has been counted is kept");
        sandbox.ok(&["doctor"]);
        sandbox.expect_inventory(&before, "after it");
    });
}

#[test]
fn a_directory_that_looks_like_a_layout_is_left_alone() {
    let sandbox = Sandbox::new();
    // Of somebody else, above and below ours.
    let theirs = "cd /sys/fs/bpf/portmap; ls v1/maps v1/progs v99/links";
    sandbox.sh(
        Place::Host,
        "mkdir -p /sys/fs/bpf/portmap/v1/maps /sys/fs/bpf/portmap/v1/progs /sys/fs/bpf/portmap/v99/links; \
         bpftool map create /sys/fs/bpf/portmap/v1/maps/theirs type array key 4 value 4 entries 1 name theirs",
    );
    let before = sandbox.sh(Place::Host, theirs);
    let daemon = sandbox.daemon();
    sandbox.ok(&["add", "a"]);
    sandbox.ok(&["teardown"]);
    daemon.wait();
    assert_eq!(sandbox.sh(Place::Host, theirs), before);
    sandbox.sh(Place::Host, "rm -r /sys/fs/bpf/portmap/v1/maps/theirs /sys/fs/bpf/portmap/*");
    sandbox.sh(Place::Host, "rmdir /sys/fs/bpf/portmap");
}

#[test]
fn links_of_an_earlier_version_stay() {
    if Mechanism::detect() == Mechanism::Clsact {
        portmap_tests::not_run("this kernel has no TCX links");
        return;
    }
    let (sandbox, mut daemon) = with_two();
    daemon.kill();
    // What used to be at a host veth.
    let pins = Pins::new(sandbox.path("/sys/fs/bpf/portmap"));
    let (interface, link) = ("pm1".to_owned(), pins.link("pm1"));
    let program = PROG_VETH_INGRESS;
    let hook = Hook { interface, ingress: true, program, mechanism: Mechanism::Tcx, link };
    sandbox.inside(Place::Host, || programs::attach(&pins, &hook)).expect("attached");
    sandbox.sh(Place::Host, "tc qdisc del dev pm1 clsact");
    let before = sandbox.inventory();
    daemon = under_load(&sandbox, &SERVERS, &WAYS, pause(), || {
        let first = sandbox.daemon();
        sandbox.ok(&["doctor"]);
        first.kill();
        sandbox.daemon()
    });
    sandbox.ok(&["doctor"]);
    sandbox.expect_inventory(&before, "after it");
    sandbox.ok(&["del", "a"]);
    daemon.stop();
}

#[test]
fn a_later_layout_is_refused() {
    let sandbox = Sandbox::new();
    sandbox.sh(Place::Host, "mkdir -p /sys/fs/bpf/portmap/v99/maps");
    let before = sandbox.inventory();
    let (code, log) = sandbox.refused_daemon(&DAEMON_FLAGS);
    assert_eq!(code, 4, "{log}");
    assert!(log.contains("/sys/fs/bpf/portmap/v99 was made by a later version of portmap"), "{log}");
    let errors = sandbox.fails(&["teardown"], 4);
    assert!(errors.contains("run its `portmap teardown` first"), "{errors}");
    sandbox.sh(Place::Host, "rm -r /run/portmap");
    sandbox.expect_inventory(&before, "after it");
}
