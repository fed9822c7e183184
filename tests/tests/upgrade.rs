//! Replacing programs and maps under traffic, with the same and with another layout, without packet loss.

use std::{net::Ipv4Addr, time::Duration};

use aya::programs::SchedClassifier;
use portmap::{
    kernel::{
        netlink::Netlink,
        programs::{self, AttachMode, AttachPoint},
    },
    paths::Pins,
};
use portmap_common::names::{
    PROG_CONTAINER_ETH0, PROG_CONTAINER_LO, PROG_LO_INGRESS, PROG_UPLINK_EGRESS, PROG_UPLINK_INGRESS,
    PROG_VETH_INGRESS, PROGRAMS,
};
use portmap_tests::{
    faults::sample,
    load::{Flow, Server, under_load},
    sandbox::{DAEMON_FLAGS, HOST, Netns, OUTSIDE, Sandbox},
};
use serde_json::Value;

/// No pause between requests; on an emulated machine others need the CPU, too.
fn pause() -> Duration {
    if sample() == 1 { Duration::ZERO } else { Duration::from_millis(10) }
}

const A: Netns<'_> = Netns::Container("a");
const B: Netns<'_> = Netns::Container("b");

/// Servers and flows. Every program is on the path of some of these, in both directions.
const SERVERS: [Server; 4] =
    [(A, 31000, b'a'), (B, 31001, b'b'), (Netns::Outside, 7000, b'o'), (Netns::Host, 7001, b'h')];
const FLOWS: [Flow; 6] = [
    (Netns::Outside, 0, HOST),
    (Netns::Host, 0, HOST),
    (Netns::Host, 1, Ipv4Addr::LOCALHOST),
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
fn replacing_programs_loses_no_packet() {
    let (sandbox, daemon) = with_two();
    // Only this test replaces programs.
    daemon.stop();
    let bpffs = sandbox.path("/sys/fs/bpf/portmap");
    // The same programs, loaded twice.
    let (first, second) = (Pins::new(&bpffs), Pins::of_layout(&bpffs, 0));
    std::fs::create_dir_all(second.root().join("progs")).expect("a directory");
    for name in PROGRAMS {
        let mut program = SchedClassifier::from_pin(first.program(name)).expect("a program");
        program.pin(second.program(name)).expect("pinned");
    }
    sandbox.inside(Netns::Host, || programs::load(&first)).expect("loaded");
    let uplink = format!("if{}", sandbox.index("uplink"));
    let hook = |netns, interface: &str, ingress, program, link: &str| {
        // As the daemon attaches them: links at the host's own interfaces.
        let attach_mode = if link.starts_with("pm") { AttachMode::Clsact } else { AttachMode::detect() };
        let interface = interface.to_owned();
        (netns, AttachPoint { interface, ingress, program, attach_mode, link: first.link(link) })
    };
    let hooks = [
        hook(Netns::Host, "uplink", true, PROG_UPLINK_INGRESS, &uplink),
        hook(Netns::Host, "uplink", false, PROG_UPLINK_EGRESS, &format!("{uplink}-out")),
        hook(Netns::Host, "lo", true, PROG_LO_INGRESS, "lo"),
        hook(Netns::Host, "pm1", true, PROG_VETH_INGRESS, "pm1"),
        hook(A, "lo", false, PROG_CONTAINER_LO, "pm1-lo"),
        hook(A, "eth0", true, PROG_CONTAINER_ETH0, "pm1-eth0"),
    ];
    let rounds = 1000 / sample();
    under_load(&sandbox, &SERVERS, &FLOWS, pause(), || {
        for (netns, hook) in &hooks {
            sandbox.inside(*netns, || {
                let netlink = Netlink::open().expect("a netlink socket");
                for round in 0..rounds {
                    let pins = [&first, &second][round % 2];
                    programs::attach(&netlink, pins, hook).expect("attached");
                    assert!(
                        matches!(programs::is_attached(&netlink, pins, hook), Ok(true)),
                        "{}",
                        hook.program
                    );
                }
            });
        }
    });
    println!("{rounds} replacements in each of {} hooks", hooks.len());
    sandbox.sh(Netns::Host, "rm -r /sys/fs/bpf/portmap/v0");
}

#[test]
fn replacing_daemons_under_load_loses_no_packet() {
    let (sandbox, mut daemon) = with_two();
    let last = under_load(&sandbox, &SERVERS, &FLOWS, pause(), || {
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
fn layout_migration_under_load() {
    let (sandbox, daemon) = with_two();
    let before = sandbox.inventory();
    let received = |sandbox: &Sandbox| {
        sandbox.json(&["stats", "a"])["traffic"]["rx_outside"]["packets"].as_u64().expect("a number")
    };
    under_load(&sandbox, &SERVERS, &FLOWS, pause(), || {
        let counted = received(&sandbox);
        assert_ne!(counted, 0);
        daemon.kill();
        // The state of an earlier version, in which these two maps had another layout, and links and the record had
        // the one uplink without its index.
        let index = sandbox.index("uplink").to_string();
        sandbox.sh(
            Netns::Host,
            &format!(
                "cd /sys/fs/bpf/portmap; mv v6 v5; rm v5/maps/pm_ports v5/maps/pm_endpoints; cd v5/links; \
                 [ ! -e if{index} ] || {{ mv if{index} uplink; mv if{index}-out uplink-out; }}"
            ),
        );
        sandbox.change_state("host.json", |file| {
            file["version"] = 7.into();
            let record = file["record"].as_object_mut().expect("a record");
            record.remove("queues").expect("as this version has it");
            record.insert("uplink_queue".to_owned(), Value::Null);
            record["interfaces"].as_object_mut().expect("by index").remove(&index).expect("the uplink");
        });
        let _daemon = sandbox.daemon();
        assert!(received(&sandbox) > counted, "what has been counted is kept");
        sandbox.ok(&["doctor"]);
        sandbox.expect_inventory(&before, "after it");
    });
}

#[test]
fn layout_lookalike_directory_is_kept() {
    let sandbox = Sandbox::new();
    // Foreign directories, below and above our version.
    let foreign = "cd /sys/fs/bpf/portmap; ls v1/maps v1/progs v99/links";
    sandbox.sh(
        Netns::Host,
        "mkdir -p /sys/fs/bpf/portmap/v1/maps /sys/fs/bpf/portmap/v1/progs /sys/fs/bpf/portmap/v99/links; \
         bpftool map create /sys/fs/bpf/portmap/v1/maps/foreign type array key 4 value 4 entries 1 name foreign",
    );
    let before = sandbox.sh(Netns::Host, foreign);
    let daemon = sandbox.daemon();
    sandbox.ok(&["add", "a"]);
    sandbox.ok(&["teardown"]);
    daemon.wait();
    assert_eq!(sandbox.sh(Netns::Host, foreign), before);
    sandbox.sh(Netns::Host, "rm -r /sys/fs/bpf/portmap/v1/maps/foreign /sys/fs/bpf/portmap/*");
    sandbox.sh(Netns::Host, "rmdir /sys/fs/bpf/portmap");
}

#[test]
fn links_of_an_earlier_version_are_kept() {
    if AttachMode::detect() == AttachMode::Clsact {
        println!("not tested: this kernel has no links");
        return;
    }
    let (sandbox, mut daemon) = with_two();
    daemon.kill();
    // The attachment at a host veth in an earlier version.
    let pins = Pins::new(sandbox.path("/sys/fs/bpf/portmap"));
    let (interface, link) = ("pm1".to_owned(), pins.link("pm1"));
    let program = PROG_VETH_INGRESS;
    let hook = AttachPoint { interface, ingress: true, program, attach_mode: AttachMode::Tcx, link };
    sandbox.inside(Netns::Host, || programs::attach(&Netlink::open()?, &pins, &hook)).expect("attached");
    sandbox.sh(Netns::Host, "tc qdisc del dev pm1 clsact");
    let before = sandbox.inventory();
    daemon = under_load(&sandbox, &SERVERS, &FLOWS, pause(), || {
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
fn layout_of_a_later_version_is_refused() {
    let sandbox = Sandbox::new();
    sandbox.sh(Netns::Host, "mkdir -p /sys/fs/bpf/portmap/v99/maps");
    let before = sandbox.inventory();
    let (code, log) = sandbox.refused_daemon(&DAEMON_FLAGS);
    assert_eq!(code, 4, "{log}");
    assert!(log.contains("/sys/fs/bpf/portmap/v99 was made by a later version of portmap"), "{log}");
    let errors = sandbox.fails(&["teardown"], 4);
    assert!(errors.contains("run its `portmap teardown` first"), "{errors}");
    sandbox.sh(Netns::Host, "rm -r /run/portmap");
    sandbox.expect_inventory(&before, "after it");
}
