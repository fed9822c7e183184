//! Limits on what containers send and receive, and how their roots could get around them.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    process::Stdio,
    thread,
};

use nix::libc;
use portmap_tests::{
    frames::Frame,
    packet_socket::PacketSocket,
    sandbox::{DAEMON_FLAGS, HOST, HOST_MAC, HOST6, OUTSIDE, Place, Sandbox},
    service::{Service, Transport, ask},
    wait,
};
use serde_json::Value;

const A: Place<'_> = Place::Container("a");
const B: Place<'_> = Place::Container("b");

/// A datagram of a full frame.
const LARGE: usize = 1400;
/// So many of them are far more than a megabit per second carries while they are sent.
const MANY: usize = 4000;

fn daemon_with(sandbox: &Sandbox, flags: &[&str]) -> portmap_tests::daemon::Daemon {
    sandbox.daemon_with(&[&DAEMON_FLAGS[..], flags].concat())
}

/// A daemon with a container `a` that has ports 31000-31009 and these limits.
fn world(limits: &[&str]) -> (Sandbox, portmap_tests::daemon::Daemon) {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon();
    add(&sandbox, limits);
    (sandbox, daemon)
}

fn add(sandbox: &Sandbox, limits: &[&str]) -> Value {
    let command = [&["add", "a", "--ports", "31000-31009"][..], limits].concat();
    sandbox.json(&command)
}

/// What packets wait in on this kernel.
fn leaf(sandbox: &Sandbox) -> &'static str {
    let probe =
        "tc qdisc add dev lo root fq_codel 2>/dev/null && tc qdisc del dev lo root && echo yes || true";
    if sandbox.sh(Place::Outside, probe).contains("yes") { "fq_codel" } else { "bfifo" }
}

/// A counter of the queues of a container in one direction, that of the limit itself.
fn counter(sandbox: &Sandbox, name: &str, direction: &str, counter: &str) -> u64 {
    sandbox.json(&["stats", name])[direction][0][counter].as_u64().unwrap_or_default()
}

/// Sends many large datagrams as fast as it goes, and returns how many were sent.
fn flood(sandbox: &Sandbox, from: Place<'_>, to: (Ipv4Addr, u16)) -> u64 {
    send(sandbox, from, to, MANY)
}

fn send(sandbox: &Sandbox, from: Place<'_>, to: (Ipv4Addr, u16), datagrams: usize) -> u64 {
    let socket =
        sandbox.inside(from, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).expect("an ephemeral port");
    socket.connect(to).expect("there is a route");
    let payload = vec![0; LARGE];
    // What a queue has no room for, and ports that are closed, are errors of the socket's.
    (0..datagrams).filter(|_| socket.send(&payload).is_ok()).count() as u64
}

fn sent_to_outside(sandbox: &Sandbox, name: &str) -> u64 {
    sandbox.json(&["stats", name])["traffic"]["tx_outside"]["packets"].as_u64().expect("a number")
}

#[test]
fn limits_are_what_tc_would_make_of_them() {
    let (sandbox, _daemon) = world(&["--egress-rate", "100mbit", "--ingress-rate", "10gbit"]);
    let leaf = leaf(&sandbox);
    let container = sandbox.json(&["show", "a"]);
    assert_eq!(
        container["egress"],
        serde_json::json!({"rate": 12_500_000, "ceil": 12_500_000, "burst": 25_000, "leaf": leaf})
    );
    assert_eq!(
        container["ingress"],
        serde_json::json!({"rate": 1_250_000_000_u64, "ceil": 1_250_000_000_u64, "burst": 2_500_000, "leaf": leaf})
    );
    // The same by tc on an interface of its own, shown by tc.
    sandbox.sh(
        Place::Outside,
        "ip link add x type veth peer name y
         tc qdisc add dev x root handle 1: htb default 1 direct_qlen 0
         tc class add dev x parent 1: classid 1:1 htb rate 100mbit burst 25000 cburst 25000 quantum 60000
         tc qdisc add dev y root handle 1: htb default 1 direct_qlen 0
         tc class add dev y parent 1: classid 1:1 htb rate 10gbit burst 2500000 cburst 2500000 quantum 60000",
    );
    let shown = |place, device: &str| {
        let text =
            sandbox.sh(place, &format!("tc -d class show dev {device}; tc -d qdisc show dev {device}"));
        let lines = text.lines().filter(|line| line.contains("htb")).map(|line| {
            // The leaf, and how many refer to an interface that is up, are nothing that tc was told.
            let words = line.split_whitespace().filter(|word| *word != "2:" && *word != "leaf");
            words
                .collect::<Vec<_>>()
                .join(" ")
                .replace("refcnt 3", "refcnt 2")
                .replace("refcnt 9", "refcnt 2")
        });
        lines.collect::<Vec<_>>()
    };
    assert_eq!(shown(A, "eth0"), shown(Place::Outside, "x"));
    assert_eq!(shown(Place::Host, "pm1"), shown(Place::Outside, "y"));
}

#[test]
fn what_a_container_sends_and_receives_waits_in_its_queues() {
    let (sandbox, _daemon) = world(&["--egress-rate", "100mbit", "--ingress-rate", "100mbit"]);
    sandbox.ok(&["add", "b", "--ports", "31010-31019"]);
    let _a = Service::both(&sandbox, A, 31000, "a");
    let _outside = Service::both(&sandbox, Place::Outside, 8080, "outside");
    let _host = Service::both(&sandbox, Place::Host, 8081, "host");
    let packets = |direction| counter(&sandbox, "a", direction, "packets");
    for transport in [Transport::Tcp, Transport::Udp] {
        for (from, to) in [
            (Place::Outside, HOST),
            (Place::Host, HOST),
            (Place::Host, Ipv4Addr::LOCALHOST),
            (B, HOST),
            (B, Ipv4Addr::LOCALHOST),
        ] {
            let before = (packets("ingress"), packets("egress"));
            assert_eq!(ask(&sandbox, from, transport, (to, 31000)).expect("an answer").from, "a");
            assert!(packets("ingress") > before.0, "{transport:?} from {from:?} to {to}");
            assert!(packets("egress") > before.1, "{transport:?} to {from:?}");
        }
        for (to, who) in [((OUTSIDE, 8080), "outside"), ((HOST, 8081), "host")] {
            let before = packets("egress");
            assert_eq!(ask(&sandbox, A, transport, to).expect("an answer").from, who);
            assert!(packets("egress") > before, "{transport:?} to {who}");
        }
        // By IPv6, too, and by ::1, which containers accept on their loopback devices only.
        for to in [HOST6, std::net::Ipv6Addr::LOCALHOST] {
            let before = packets("ingress");
            assert_eq!(ask(&sandbox, B, transport, (to, 31000)).expect("an answer").from, "a");
            assert!(packets("ingress") > before, "{transport:?} from b to {to}");
        }
    }
    assert_eq!(sandbox.dropped("a", "rate"), 0, "the queue holds what the host would drop");
}

#[test]
fn a_datagram_larger_than_the_queues_interface_carries_arrives() {
    let (sandbox, _daemon) = world(&["--ingress-rate", "100mbit"]);
    let receiver = sandbox.inside(A, || UdpSocket::bind((HOST, 31000))).expect("its own port");
    receiver.set_read_timeout(Some(wait::LIMIT)).expect("a socket");
    let sender = sandbox.inside(Place::Host, || UdpSocket::bind((HOST, 0))).expect("a port");
    assert_eq!(sender.send_to(&vec![7; 60_000], (HOST, 31000)).expect("sent"), 60_000);
    assert_eq!(receiver.recv(&mut vec![0; 65_536]).expect("received"), 60_000);
}

#[test]
fn a_stream_gets_through_a_narrow_queue_whole() {
    let (sandbox, _daemon) = world(&["--egress-rate", "20mbit", "--ingress-rate", "20mbit"]);
    for (server, client, port) in [(A, Place::Outside, 31000), (Place::Outside, A, 8080)] {
        let address = if server == A { HOST } else { OUTSIDE };
        let listener = sandbox.inside(server, || TcpListener::bind((address, port))).expect("a listener");
        let sent: Vec<u8> = (0..2_000_000_u32).map(|number| number.to_le_bytes()[1]).collect();
        let expected = sent.clone();
        let sender = thread::spawn(move || listener.accept().expect("a connection").0.write_all(&sent));
        let mut stream =
            sandbox.inside(client, || TcpStream::connect((address, port))).expect("a connection");
        let mut received = Vec::new();
        stream.read_to_end(&mut received).expect("the stream");
        sender.join().expect("no panic").expect("sent");
        assert_eq!(received, expected);
    }
    assert!(counter(&sandbox, "a", "egress", "overlimits") > 0, "something has had to wait");
    assert!(counter(&sandbox, "a", "ingress", "overlimits") > 0, "something has had to wait");
    assert_eq!(sandbox.dropped("a", "rate"), 0);
}

#[test]
fn a_queue_that_the_container_deletes_does_not_free_it() {
    let (sandbox, _daemon) = world(&["--egress-rate", "1mbit"]);
    sandbox.sh(A, "tc qdisc del dev eth0 root");
    let sent = flood(&sandbox, A, (OUTSIDE, 9));
    let dropped = sandbox.dropped("a", "rate");
    assert!(dropped > sent / 2, "{dropped} of {sent} are dropped");
    // Doctor says so, and an update puts the queue back.
    let output = sandbox.portmap(&["doctor"]);
    assert_eq!(output.status.code(), Some(7));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("the queue of eth0 that limits it is gone"), "{text}");
    sandbox.ok(&["update", "a"]);
    sandbox.ok(&["doctor"]);
    assert!(sandbox.sh(A, "tc class show dev eth0").contains("rate 1Mbit"));
    // So does a wider one of the container's own making.
    sandbox.sh(A, "tc class change dev eth0 parent 1: classid 1:1 htb rate 10gbit");
    let before = sandbox.dropped("a", "rate");
    let sent = flood(&sandbox, A, (OUTSIDE, 9));
    let dropped = sandbox.dropped("a", "rate") - before;
    assert!(dropped > sent / 2, "{dropped} of {sent} are dropped");
}

#[test]
fn a_queue_of_its_own_does_not_keep_a_container_from_being_limited() {
    let sandbox = Sandbox::new();
    let daemon = daemon_with(&sandbox, &["--egress-rate-limit-per-container", "1GB"]);
    add(&sandbox, &[]);
    // One that looks like ours but takes no other queue below its class.
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
    // One that is put back all the time changes nothing of what is held at the host.
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
fn a_socket_past_the_queue_does_not_free_it() {
    let (sandbox, _daemon) = world(&["--egress-rate", "1mbit"]);
    let socket = sandbox.inside(A, || PacketSocket::open("eth0"));
    socket.bypass_queues();
    let frame = Frame {
        from_mac: HOST_MAC,
        to_mac: HOST_MAC,
        payload: vec![0; LARGE],
        ..Frame::udp((HOST, 31000), (OUTSIDE, 9))
    };
    let bytes = frame.bytes();
    // Two threads, so on machines with several CPUs their packets come at once.
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
fn a_priority_does_not_lead_past_the_queue() {
    let (sandbox, _daemon) = world(&["--egress-rate", "100mbit"]);
    let witness = sandbox.inside(Place::Outside, || UdpSocket::bind((OUTSIDE, 8080))).expect("a port");
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
    // The handle of HTB means "past all classes" to it. The first packet may wait for a neighbour, hence the second.
    for number in 1..=2 {
        send(0x1_0000);
        wait::until("the packet to be dropped", || counter(&sandbox, "a", "egress", "drops") == number);
    }
    assert!(witness.recv(&mut [0; 16]).is_err());
    send(0x1_0001);
    wait::until("an ordinary packet", || witness.recv(&mut [0; 16]).is_ok());
}

#[test]
fn local_traffic_is_limited_unless_the_operator_says_otherwise() {
    for limited in [true, false] {
        let sandbox = Sandbox::new();
        let flag = format!("--limit-local-traffic={limited}");
        let _daemon = daemon_with(&sandbox, &[&flag]);
        add(&sandbox, &["--egress-rate", "1mbit", "--ingress-rate", "1mbit"]);
        sandbox.ok(&["add", "b", "--ports", "31010-31019"]);
        let _b = Service::both(&sandbox, B, 31010, "b");
        assert_eq!(ask(&sandbox, A, Transport::Udp, (HOST, 31010)).expect("an answer").from, "b");
        assert_eq!(counter(&sandbox, "a", "ingress", "packets") > 0, limited, "the answer waits in a queue");
        let stats = sandbox.json(&["stats", "a"]);
        let of_class = |class: &str| {
            let queues = stats["egress"].as_array().expect("queues").iter();
            queues.filter(|queue| queue["kind"] == class).find_map(|queue| queue["packets"].as_u64())
        };
        assert_eq!(of_class("class 1:1").is_some_and(|packets| packets > 0), limited, "{stats}");
        assert_eq!(of_class("class 1:2").is_some_and(|packets| packets > 0), !limited, "{stats}");
        // Without its queue, what the container sends to others is dropped only if it counts.
        sandbox.sh(A, "tc qdisc del dev eth0 root");
        flood(&sandbox, A, (HOST, 31010));
        assert_eq!(sandbox.dropped("a", "rate") > 0, limited);
        let before = sandbox.dropped("a", "rate");
        flood(&sandbox, A, (OUTSIDE, 9));
        assert!(sandbox.dropped("a", "rate") > before, "the outside always counts");
    }
}

#[test]
fn limits_change_while_traffic_flows() {
    let (sandbox, _daemon) = world(&["--egress-rate", "50mbit", "--ingress-rate", "50mbit"]);
    let listener = sandbox.inside(A, || TcpListener::bind((HOST, 31000))).expect("a listener");
    let mut client = sandbox.inside(Place::Outside, || TcpStream::connect((HOST, 31000))).expect("connected");
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
    // What is not named stays as it was.
    assert_eq!(sandbox.json(&["update", "a", "--ingress-rate", "7mbit"])["egress"]["rate"], 625_000);
    assert_eq!(sandbox.dropped("a", "rate"), 0);
    drop(client);
    echo.join().expect("no panic");
}

#[test]
fn no_packet_is_lost_when_a_limit_changes() {
    let (sandbox, _daemon) = world(&["--egress-rate", "100mbit"]);
    let receiver = sandbox.inside(Place::Outside, || UdpSocket::bind((OUTSIDE, 8080))).expect("a port");
    receiver.set_read_timeout(Some(wait::LIMIT)).expect("a socket");
    let sender = sandbox.inside(A, || UdpSocket::bind((HOST, 31000))).expect("its own port");
    // Each packet waits for the one before, so that none can be lost for want of room.
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
fn a_container_without_limits_gets_them_later() {
    let (sandbox, _daemon) = world(&[]);
    assert!(sandbox.json(&["show", "a"])["egress"].is_null());
    assert!(!sandbox.sh(A, "tc qdisc show dev eth0").contains("htb"));
    sandbox.ok(&["update", "a", "--egress-rate", "1mbit", "--ingress-rate", "1mbit"]);
    sandbox.ok(&["doctor"]);
    let _a = Service::both(&sandbox, A, 31000, "a");
    assert_eq!(ask(&sandbox, Place::Outside, Transport::Tcp, (HOST, 31000)).expect("an answer").from, "a");
    assert!(
        counter(&sandbox, "a", "ingress", "packets") > 0 && counter(&sandbox, "a", "egress", "packets") > 0
    );
}

#[test]
fn another_daemon_brings_its_own_limits() {
    let sandbox = Sandbox::new();
    let fixed = ["--egress-rate-limit-per-container", "1MB"];
    let daemon = daemon_with(&sandbox, &fixed);
    let rate = |direction: &str| sandbox.json(&["show", "a"])[direction]["rate"].as_u64();
    add(&sandbox, &[]);
    sandbox.ok(&["add", "asked", "--egress-rate", "2MB", "--cpus", "2.5"]);
    assert_eq!(rate("egress"), Some(1 << 20));
    daemon.stop();
    // Of the flags, a container has what it was not asked otherwise.
    let flags = ["--egress_rate_per_cpu=3MB", "--ingress-rate-limit-per-container", "5MB"];
    let daemon =
        daemon_with(&sandbox, &[&flags[..], &["--ingress-isolate-existing-containers=false"]].concat());
    assert_eq!((rate("egress"), rate("ingress")), (Some(3 << 20), None));
    assert_eq!(sandbox.json(&["show", "asked"])["egress"]["rate"], 2 << 20);
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
fn an_unknown_speed_of_the_link_stops_nobody() {
    let sandbox = Sandbox::new();
    // A veth says 10 Gbit/s; the loopback device's kind says nothing. Here the flag says it.
    let daemon = daemon_with(&sandbox, &["--egress-rate-per-cpu", "auto", "--network-link-speed", "8gbit"]);
    add(&sandbox, &[]);
    let cpus = u64::try_from(thread::available_parallelism().expect("CPUs").get()).expect("few");
    assert_eq!(sandbox.json(&["show", "a"])["egress"]["rate"], 1_000_000_000 / cpus);
    daemon.stop();
    sandbox.sh(Place::Host, "ip link set uplink down; ip link del uplink");
    sandbox.sh(
        Place::Host,
        "ip link add uplink type bridge; ip address add 10.0.0.1/24 dev uplink; ip link set uplink up",
    );
    let daemon = daemon_with(&sandbox, &["--egress-rate-per-cpu", "auto", "--uplink", "uplink"]);
    assert!(daemon.log().contains("the speed of uplink is not known"), "{}", daemon.log());
}

#[test]
fn wrong_limits_are_refused_and_change_nothing() {
    let sandbox = Sandbox::new();
    for (flags, expected) in [
        (&["--egress-rate-limit-per-container", "fast"][..], "\"fast\""),
        (&["--minimum-ingress-rate-limit", "2MB", "--maximum-ingress-rate-limit", "1MB"], "2097152B"),
        (&["--egress-flow-classifier-parent", "here"], "\"here\""),
        (&["--egress-rate-per-cpu", "1B5"], "\"1B5\""),
    ] {
        let (code, log) = sandbox.refused_daemon(&[&DAEMON_FLAGS[..], flags].concat());
        assert_eq!(code, 2, "{log}");
        assert!(log.contains(expected), "{log}");
    }
    let _daemon = daemon_with(&sandbox, &["--maximum-egress-rate-limit", "10mbit"]);
    add(&sandbox, &["--egress-rate", "8mbit"]);
    for (rate, code) in [("11mbit", 2), ("0", 2), ("1B", 2)] {
        sandbox.fails(&["update", "a", "--egress-rate", rate], code);
        sandbox.fails(&["add", "other", "--egress-rate", rate], code);
    }
    assert_eq!(sandbox.json(&["show", "a"])["egress"]["rate"], 1_000_000);
    assert_eq!(sandbox.json(&["list"]).as_array().expect("a list").len(), 1);
    sandbox.fails(&["update", "nobody"], 3);
}

#[test]
fn everybody_has_a_flow_of_the_uplinks_queue() {
    let sandbox = Sandbox::new();
    let has_flows = leaf(&sandbox) == "fq_codel";
    let daemon = daemon_with(&sandbox, &["--egress-unique-flow-per-container"]);
    add(&sandbox, &[]);
    let _outside = Service::both(&sandbox, Place::Outside, 8080, "outside");
    for from in [A, Place::Host] {
        assert_eq!(ask(&sandbox, from, Transport::Tcp, (OUTSIDE, 8080)).expect("an answer").from, "outside");
    }
    let root = || sandbox.sh(Place::Host, "tc qdisc show dev uplink root");
    if !has_flows {
        assert!(daemon.log().contains("has no fq_codel, so containers have no flows"), "{}", daemon.log());
        assert!(!root().contains("504d:"), "{}", root());
        return;
    }
    assert!(root().contains("qdisc fq_codel 504d: root") && root().contains("flows 4097"), "{}", root());
    sandbox.ok(&["doctor"]);
    daemon.stop();
    let daemon = daemon_with(&sandbox, &["--egress-unique-flow-per-container=true"]);
    assert!(root().contains("504d:"), "it stays as it is");
    sandbox.sh(Place::Host, "tc qdisc del dev uplink root");
    wait::until("it to be put back", || root().contains("504d:"));
    daemon.stop();
    let daemon = sandbox.daemon();
    assert!(!root().contains("504d:"), "nobody asks for it any more");
    daemon.stop();
    let _daemon = daemon_with(&sandbox, &["--egress-unique-flow-per-container"]);
    sandbox.ok(&["teardown"]);
    assert!(!root().contains("504d:"), "{}", root());
}

#[test]
fn somebody_elses_queue_stays() {
    let sandbox = Sandbox::new();
    let has_flows = leaf(&sandbox) == "fq_codel";
    sandbox.sh(
        Place::Host,
        "tc qdisc add dev uplink root handle 1: htb default 10
         tc class add dev uplink parent 1: classid 1:10 htb rate 10gbit quantum 60000",
    );
    let qdiscs = || sandbox.sh(Place::Host, "tc qdisc show dev uplink");
    if !has_flows {
        // There is no such queue then, and nobody's is in the way.
        let _daemon = daemon_with(&sandbox, &["--egress-unique-flow-per-container"]);
        sandbox.ok(&["teardown"]);
        assert!(qdiscs().contains("htb 1: root"), "{}", qdiscs());
        return;
    }
    let (code, log) =
        sandbox.refused_daemon(&[&DAEMON_FLAGS[..], &["--egress-unique-flow-per-container"]].concat());
    assert_eq!(code, 4, "{log}");
    assert!(log.contains("uplink has the qdisc htb 1:"), "{log}");
    let flags = ["--egress-unique-flow-per-container", "--egress_flow_classifier_parent=1:10"];
    let _daemon = daemon_with(&sandbox, &flags);
    assert!(qdiscs().contains("fq_codel 504d: parent 1:10"), "{}", qdiscs());
    // On a link that is slow, what waits shows in which flow it does: the host's is the first, a container's the third
    // and further, by its slot.
    sandbox
        .sh(Place::Host, "tc class change dev uplink parent 1: classid 1:10 htb rate 100kbit quantum 1514");
    add(&sandbox, &[]);
    sandbox.ok(&["add", "b"]);
    for (from, flow) in [(Place::Host, "504d:1 "), (A, "504d:3 "), (B, "504d:4 ")] {
        send(&sandbox, from, (OUTSIDE, 9), 20);
        wait::until(flow, || sandbox.sh(Place::Host, "tc class show dev uplink").contains(flow));
    }
    sandbox.ok(&["teardown"]);
    assert!(qdiscs().contains("htb 1: root") && !qdiscs().contains("504d:"), "{}", qdiscs());
}

#[test]
fn an_uplink_with_several_queues_gets_one_for_all() {
    let sandbox = Sandbox::new();
    let has_flows = leaf(&sandbox) == "fq_codel";
    sandbox.sh(
        Place::Host,
        "ip link del uplink; ip link add uplink numtxqueues 4 type ifb
         ip address add 10.0.0.1/24 dev uplink; ip link set uplink up",
    );
    let root = || sandbox.sh(Place::Host, "tc qdisc show dev uplink root");
    assert!(root().contains("qdisc mq 0: root"), "{}", root());
    let flags = ["--uplink", "uplink"];
    let daemon = daemon_with(&sandbox, &[&flags[..], &["--egress-unique-flow-per-container"]].concat());
    let (expected, logged) = if has_flows {
        ("qdisc fq_codel 504d: root", "takes the place of mq at uplink")
    } else {
        ("qdisc mq 0: root", "has no fq_codel, so containers have no flows")
    };
    assert!(root().contains(expected), "{}", root());
    assert!(daemon.log().contains(logged), "{}", daemon.log());
    daemon.stop();
    let _daemon = daemon_with(&sandbox, &flags);
    assert!(root().contains("qdisc mq 0: root"), "{}", root());
}

#[test]
fn containers_ask_for_ecn_if_the_host_does() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    let ecn = "/proc/sys/net/ipv4/tcp_ecn";
    sandbox.sh(
        Place::Host,
        &format!("echo 1 > {ecn}; echo 999 > /proc/sys/net/core/somaxconn; ip netns add own"),
    );
    add(&sandbox, &[]);
    assert_eq!(sandbox.sh(A, &format!("cat {ecn} /proc/sys/net/core/somaxconn")), "1\n999\n");
    // A namespace that somebody else has made is as that one wants it.
    let before = sandbox.sh(Place::Container("own"), &format!("cat {ecn}"));
    sandbox.ok(&["add", "own", "--netns", "/run/netns/own"]);
    assert_eq!(sandbox.sh(Place::Container("own"), &format!("cat {ecn}")), before);
}

#[test]
fn streams_that_agree_on_ecn_are_marked_rather_than_dropped() {
    let (sandbox, _daemon) = world(&["--ingress-rate", "20mbit"]);
    if leaf(&sandbox) != "fq_codel" {
        assert_eq!(sandbox.json(&["show", "a"])["ingress"]["leaf"], "bfifo");
        return;
    }
    for place in [A, Place::Outside] {
        sandbox.sh(place, "echo 1 > /proc/sys/net/ipv4/tcp_ecn");
    }
    // Here the sender's own stack feels the queue and keeps each stream's part of it short, so it takes several.
    let listener = sandbox.inside(A, || TcpListener::bind((HOST, 31000))).expect("a listener");
    let mut clients = Vec::new();
    let mut readers = Vec::new();
    for _ in 0..32 {
        let connect = || TcpStream::connect((HOST, 31000)).expect("connected");
        clients.push(sandbox.inside(Place::Outside, connect));
        let (mut server, _) = listener.accept().expect("a connection");
        readers.push(thread::spawn(move || server.read_to_end(&mut Vec::new())));
    }
    let marks = || sandbox.json(&["stats", "a"])["ingress"][1]["ecn_marks"].as_u64().expect("it marks");
    wait::until("a mark", || {
        for client in &mut clients {
            client.set_nonblocking(true).expect("a socket");
            // As much as there is room for.
            let _ = client.write(&vec![0; 100_000]);
        }
        marks() > 0
    });
    assert_eq!(counter(&sandbox, "a", "ingress", "drops"), 0, "nothing is dropped");
    drop(clients);
    for reader in readers {
        reader.join().expect("no panic").expect("read");
    }
}
