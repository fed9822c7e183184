//! Attempts of root in a container to bypass its limit.

use std::{net::UdpSocket, os::fd::AsRawFd as _, process::Stdio, thread};

use nix::libc;
use portmap_tests::{
    frames::Frame,
    packet_socket::PacketSocket,
    sandbox::{HOST, HOST_MAC, Netns, OUTSIDE, Sandbox},
    wait,
};

use crate::{A, LARGE, MANY, add, counter, daemon_with, flood, sent_to_outside, world};

#[test]
fn limit_holds_without_the_containers_qdisc() {
    let (sandbox, _daemon) = world(&["--egress-rate", "1mbit"]);
    sandbox.sh(A, "tc qdisc del dev eth0 root");
    let sent = flood(&sandbox, A, (OUTSIDE, 9));
    let dropped = sandbox.dropped("a", "rate");
    assert!(dropped > sent / 2, "{dropped} of {sent} are dropped");
    // doctor reports it, and an update restores the qdisc.
    let output = sandbox.portmap(&["doctor"]);
    assert_eq!(output.status.code(), Some(7));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("the qdisc of eth0 that limits it is missing"), "{text}");
    sandbox.ok(&["update", "a"]);
    sandbox.ok(&["doctor"]);
    assert!(sandbox.sh(A, "tc class show dev eth0").contains("rate 1Mbit"));
    // A wider qdisc of the container's own.
    sandbox.sh(A, "tc class change dev eth0 parent 1: classid 1:1 htb rate 10gbit");
    let before = sandbox.dropped("a", "rate");
    let sent = flood(&sandbox, A, (OUTSIDE, 9));
    let dropped = sandbox.dropped("a", "rate") - before;
    assert!(dropped > sent / 2, "{dropped} of {sent} are dropped");
}

#[test]
fn limit_holds_with_a_foreign_qdisc() {
    let sandbox = Sandbox::new();
    let daemon = daemon_with(&sandbox, &["--egress-rate-limit-per-container", "1GB"]);
    add(&sandbox, &[]);
    // A qdisc like ours, whose class accepts no leaf.
    let entrench = "tc qdisc del dev eth0 root; tc qdisc add dev eth0 root handle 1: htb default 10; \
                    tc class add dev eth0 parent 1: classid 1:1 htb rate 10gbit; \
                    tc class add dev eth0 parent 1:1 classid 1:10 htb rate 10gbit";
    let expect = |what: &str, rate: &str| {
        let class = sandbox.sh(A, "tc class show dev eth0");
        assert!(class.contains(rate) && !class.contains("10Gbit"), "{what}: {class}");
        assert!(sandbox.portmap(&["doctor"]).status.success(), "{what}");
    };
    sandbox.sh(A, entrench);
    sandbox.ok(&["update", "a", "--egress-rate", "250KB"]);
    expect("an update", "2048Kbit");
    sandbox.sh(A, entrench);
    daemon.stop();
    let _daemon = daemon_with(&sandbox, &["--egress-rate-limit-per-container", "1GB"]);
    expect("a start", "2048Kbit");
    // A qdisc that keeps returning does not change the enforcement on the host.
    let mut again = sandbox.command(A, "sh");
    let again = again.args(["-c", &format!("while :; do {entrench}; done")]).stderr(Stdio::null());
    let mut again = again.spawn().expect("a shell");
    sandbox.ok(&["update", "a", "--egress-rate", "125KB"]);
    let sent = flood(&sandbox, A, (OUTSIDE, 9));
    let arrived = sent_to_outside(&sandbox, "a");
    again.kill().expect("it runs");
    again.wait().expect("it ends");
    assert!(arrived < sent / 2, "{arrived} of {sent} get out");
    assert!(!String::from_utf8_lossy(&sandbox.portmap(&["doctor"]).stdout).contains("pm_limits"));
}

#[test]
fn limit_without_a_qdisc_is_reported() {
    let (sandbox, _daemon) = world(&["--egress-rate", "1mbit"]);
    // Until unshare has run in the child, the kernel moves eth0 to where it is already.
    let away = "unshare --net sleep 600 >&- 2>&- & \
        while ip link show eth0 > /dev/null 2>&1; do \
            ip link set eth0 netns $! 2> /run/away || true; sleep 0.05; done; echo $!";
    let pid = sandbox.sh(A, away);
    let changed = sandbox.json(&["update", "a", "--egress-rate", "2mbit"]);
    let warnings = changed["warnings"].as_array().expect("warnings");
    let first = warnings.first().and_then(|warning| warning.as_str()).unwrap_or_default();
    assert!(first.starts_with("the host drops the excess that it sends"), "{changed}");
    sandbox.sh(Netns::Host, &format!("kill {pid}"));
}

#[test]
fn limit_holds_for_qdisc_bypass_sockets() {
    let (sandbox, _daemon) = world(&["--egress-rate", "1mbit"]);
    let socket = sandbox.inside(A, || PacketSocket::open("eth0"));
    socket.bypass_qdisc();
    let frame = Frame {
        from_mac: HOST_MAC,
        to_mac: HOST_MAC,
        payload: vec![0; LARGE],
        ..Frame::udp((HOST, 31000), (OUTSIDE, 9))
    };
    let bytes = frame.bytes();
    // Two threads, so that packets arrive concurrently on machines with several CPUs.
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| (0..MANY / 2).for_each(|_| socket.send(&bytes)));
        }
    });
    let dropped = sandbox.dropped("a", "rate");
    assert!(dropped > MANY as u64 / 2, "{dropped} of {MANY} are dropped");
    assert_eq!(dropped + sent_to_outside(&sandbox, "a"), MANY as u64, "each one is counted once");
}

#[test]
fn limit_holds_for_any_so_priority() {
    let (sandbox, _daemon) = world(&["--egress-rate", "100mbit"]);
    let witness = sandbox.inside(Netns::Outside, || UdpSocket::bind((OUTSIDE, 8080))).expect("a port");
    witness.set_nonblocking(true).expect("a socket");
    let socket = sandbox.inside(A, || UdpSocket::bind((HOST, 31000))).expect("its own port");
    let send = |priority: libc::c_int| {
        let length = u32::try_from(size_of_val(&priority)).expect("small");
        // SAFETY: the option's value is a whole int, and its size is passed with it.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PRIORITY,
                (&raw const priority).cast(),
                length,
            )
        };
        assert_eq!(set, 0, "root may");
        socket.send_to(b"urgent", (OUTSIDE, 8080)).expect("sent");
    };
    // HTB treats its own handle as "direct". The first packet may wait for neighbour resolution, hence
    // the second.
    for number in 1..=2 {
        send(0x1_0000);
        wait::until("the packet to be dropped", || counter(&sandbox, "a", "egress", "drops") == number);
    }
    assert!(witness.recv(&mut [0; 16]).is_err());
    send(0x1_0001);
    wait::until("an ordinary packet", || witness.recv(&mut [0; 16]).is_ok());
}
