//! Limits that change, are added later, or are invalid.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    thread,
};

use portmap_tests::{
    sandbox::{DAEMON_FLAGS, HOST, Netns, OUTSIDE, Sandbox},
    service::{Service, Transport, ask},
    wait,
};

use crate::{A, add, counter, daemon_with, world};

#[test]
fn limit_changes_under_traffic() {
    let (sandbox, _daemon) = world(&["--egress-rate", "50mbit", "--ingress-rate", "50mbit"]);
    let listener = sandbox.inside(A, || TcpListener::bind((HOST, 31000))).expect("a listener");
    let mut client = sandbox.inside(Netns::Outside, || TcpStream::connect((HOST, 31000))).expect("connected");
    let (mut server, _) = listener.accept().expect("a connection");
    let echo = thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = server.read(&mut buffer) {
            server.write_all(&buffer[..length]).expect("written");
        }
    });
    let mut exchange = |what: &str| {
        client.write_all(&[1; 4096]).expect(what);
        client.read_exact(&mut [0; 4096]).expect(what);
    };
    exchange("before");
    let mut counted = counter(&sandbox, "a", "egress", "packets");
    for (egress, ingress, shown) in [
        ("10mbit", "20mbit", Some(1_250_000)),
        ("400mbit", "20mbit", Some(50_000_000)),
        ("0", "0", None),
        ("5mbit", "6mbit", Some(625_000)),
    ] {
        let container = sandbox.json(&["update", "a", "--egress-rate", egress, "--ingress-rate", ingress]);
        assert_eq!(container["egress"]["rate"].as_u64(), shown, "{container}");
        assert_eq!(container["ingress"].is_null(), shown.is_none(), "{container}");
        exchange(egress);
        if shown.is_some() {
            let now = counter(&sandbox, "a", "egress", "packets");
            assert!(now > counted, "counters go on: {now} after {counted}");
            counted = now;
        }
        sandbox.ok(&["doctor"]);
    }
    // Limits that are not named stay unchanged.
    assert_eq!(sandbox.json(&["update", "a", "--ingress-rate", "7mbit"])["egress"]["rate"], 625_000);
    assert_eq!(sandbox.dropped("a", "rate"), 0);
    drop(client);
    echo.join().expect("no panic");
}

#[test]
fn limit_change_loses_no_packet() {
    let (sandbox, _daemon) = world(&["--egress-rate", "100mbit"]);
    let receiver = sandbox.inside(Netns::Outside, || UdpSocket::bind((OUTSIDE, 8080))).expect("a port");
    receiver.set_read_timeout(Some(wait::LIMIT)).expect("a socket");
    let sender = sandbox.inside(A, || UdpSocket::bind((HOST, 31000))).expect("its own port");
    // Each packet waits for the previous one, so that none is lost for lack of buffers.
    let stop = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            let mut number = 0_u32;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                sender.send_to(&number.to_le_bytes(), (OUTSIDE, 8080)).expect("sent");
                let mut bytes = [0; 4];
                receiver.recv(&mut bytes).expect("nothing is lost");
                assert_eq!(u32::from_le_bytes(bytes), number);
                number += 1;
            }
            number
        });
        for rate in ["10mbit", "0", "500mbit", "20mbit", "0", "30mbit"] {
            sandbox.ok(&["update", "a", "--egress-rate", rate]);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(traffic.join().expect("no packet is lost") > 0);
    });
}

#[test]
fn limit_can_be_added_later() {
    let (sandbox, _daemon) = world(&[]);
    assert!(sandbox.json(&["show", "a"])["egress"].is_null());
    assert!(!sandbox.sh(A, "tc qdisc show dev eth0").contains("htb"));
    sandbox.ok(&["update", "a", "--egress-rate", "1mbit", "--ingress-rate", "1mbit"]);
    sandbox.ok(&["doctor"]);
    let _a = Service::both(&sandbox, A, 31000, "a");
    assert_eq!(ask(&sandbox, Netns::Outside, Transport::Tcp, (HOST, 31000)).expect("an answer").from, "a");
    assert!(
        counter(&sandbox, "a", "ingress", "packets") > 0 && counter(&sandbox, "a", "egress", "packets") > 0
    );
}

#[test]
fn limit_defaults_follow_the_daemons_flags() {
    let sandbox = Sandbox::new();
    let fixed = ["--egress-rate-limit-per-container", "1MB"];
    let daemon = daemon_with(&sandbox, &fixed);
    let rate = |direction: &str| sandbox.json(&["show", "a"])[direction]["rate"].as_u64();
    add(&sandbox, &[]);
    sandbox.ok(&["add", "asked", "--egress-rate", "2MB", "--cpus", "2.5"]);
    assert_eq!(rate("egress"), Some(1 << 20));
    daemon.stop();
    // The daemon's flags apply where the container has no setting of its own.
    let flags = ["--egress_rate_per_cpu=3MB", "--ingress-rate-limit-per-container", "5MB"];
    let daemon =
        daemon_with(&sandbox, &[&flags[..], &["--ingress-isolate-existing-containers=false"]].concat());
    assert_eq!((rate("egress"), rate("ingress")), (Some(3 << 20), None));
    assert_eq!(sandbox.json(&["show", "asked"])["egress"]["rate"], 2 << 20);
    // A change of the host moves no limit that does not follow from it.
    sandbox.sh(Netns::Host, "ip link set uplink mtu 1400");
    wait::until("the container to follow the host", || {
        sandbox.sh(Netns::Container("a"), "ip link show eth0").contains("mtu 1400")
    });
    assert_eq!((rate("egress"), rate("ingress")), (Some(3 << 20), None));
    assert_eq!(sandbox.json(&["update", "asked", "--cpus", "1"])["egress"]["rate"], 2 << 20);
    sandbox.ok(&["add", "c"]);
    assert_eq!(sandbox.json(&["show", "c"])["ingress"]["rate"], 5 << 20);
    sandbox.ok(&["doctor"]);
    daemon.kill();
    let daemon = daemon_with(&sandbox, &flags);
    assert_eq!(rate("ingress"), Some(5 << 20));
    daemon.stop();
    let _daemon = sandbox.daemon();
    assert_eq!((rate("egress"), rate("ingress")), (None, None));
    sandbox.ok(&["doctor"]);
}

#[test]
fn limit_auto_is_off_at_unknown_link_speed() {
    let sandbox = Sandbox::new();
    // A veth reports 10 Gbit/s, the loopback device nothing. Here the flag sets the speed.
    let daemon = daemon_with(&sandbox, &["--egress-rate-per-cpu", "auto", "--network-link-speed", "8gbit"]);
    add(&sandbox, &[]);
    let cpus = u64::try_from(thread::available_parallelism().expect("CPUs").get()).expect("few");
    assert_eq!(sandbox.json(&["show", "a"])["egress"]["rate"], 1_000_000_000 / cpus);
    daemon.stop();
    sandbox.sh(Netns::Host, "ip link set uplink down; ip link del uplink");
    sandbox.sh(
        Netns::Host,
        "ip link add uplink type bridge; ip address add 10.0.0.1/24 dev uplink; ip link set uplink up",
    );
    let daemon = daemon_with(&sandbox, &["--egress-rate-per-cpu", "auto", "--uplink", "uplink"]);
    assert!(
        daemon.log().contains("the link speed of uplink is unknown, so the rate `auto` limits no container"),
        "{}",
        daemon.log()
    );
}

#[test]
fn limit_that_is_invalid_changes_nothing() {
    let sandbox = Sandbox::new();
    for (flags, expected) in [
        (&["--egress-rate-limit-per-container", "fast"][..], "\"fast\""),
        (&["--minimum-ingress-rate-limit", "2MB", "--maximum-ingress-rate-limit", "1MB"], "2097152B"),
        (&["--egress-flow-classifier-parent", "here"], "\"here\""),
        (&["--egress-rate-per-cpu", "1B5"], "\"1B5\""),
        (
            &["--network-link-speed", "1mbit", "--egress-rate-limit-per-container", "2mbit"],
            "--egress-rate-limit-per-container is 2 Mbit/s, which is more than the speed of uplink, 1 Mbit/s",
        ),
        (
            &["--network-link-speed", "1mbit", "--minimum-ingress-rate-limit", "2mbit"],
            "--minimum-ingress-rate-limit is 2 Mbit/s",
        ),
    ] {
        let (code, log) = sandbox.refused_daemon(&[&DAEMON_FLAGS[..], flags].concat());
        assert_eq!(code, 2, "{log}");
        assert!(log.contains(expected), "{log}");
    }
    let flags = ["--maximum-egress-rate-limit", "10mbit", "--network-link-speed", "9mbit"];
    let daemon = daemon_with(&sandbox, &flags);
    let log = daemon.log();
    assert!(log.contains("WARN --maximum-egress-rate-limit is 10 Mbit/s, which is more"), "{log}");
    add(&sandbox, &["--egress-rate", "8mbit"]);
    for (rate, code) in [("11mbit", 2), ("0", 2), ("1B", 2)] {
        sandbox.fails(&["update", "a", "--egress-rate", rate], code);
        sandbox.fails(&["add", "other", "--egress-rate", rate], code);
    }
    assert_eq!(sandbox.json(&["show", "a"])["egress"]["rate"], 1_000_000);
    assert_eq!(sandbox.json(&["list"]).as_array().expect("a list").len(), 1);
    sandbox.fails(&["update", "absent"], 3);
}
