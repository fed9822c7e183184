//! The qdiscs of limited containers.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    thread,
};

use portmap::kernel::{
    link::{self, VethPair},
    netlink::Netlink,
    qdisc::{self, Class, Leaf, Shape},
};
use portmap_tests::{
    faults::sample,
    packet_socket::PacketSocket,
    sandbox::{HOST, HOST_MAC, HOST6, Netns, OUTSIDE, Sandbox},
    service::{Service, Transport, ask},
    wait,
};

use crate::{A, B, add, counter, daemon_with, flood, leaf, world};

#[test]
fn qdisc_parameters_match_tc() {
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
    // Creates the same qdiscs with tc on another interface, and compares the output of tc.
    sandbox.sh(
        Netns::Outside,
        "ip link add x type veth peer name y
         tc qdisc add dev x root handle 1: htb default 1 direct_qlen 0
         tc class add dev x parent 1: classid 1:1 htb rate 100mbit burst 25000 cburst 25000 quantum 60000
         tc qdisc add dev y root handle 1: htb default 1 direct_qlen 0
         tc class add dev y parent 1: classid 1:1 htb rate 10gbit burst 2500000 cburst 2500000 quantum 60000",
    );
    let shown = |netns, device: &str| {
        let text =
            sandbox.sh(netns, &format!("tc -d class show dev {device}; tc -d qdisc show dev {device}"));
        let lines = text.lines().filter(|line| line.contains("htb")).map(|line| {
            // The leaf and the reference count of an active interface are no parameters.
            let words = line.split_whitespace().filter(|word| *word != "2:" && *word != "leaf");
            words
                .collect::<Vec<_>>()
                .join(" ")
                .replace("refcnt 3", "refcnt 2")
                .replace("refcnt 9", "refcnt 2")
        });
        lines.collect::<Vec<_>>()
    };
    assert_eq!(shown(A, "eth0"), shown(Netns::Outside, "x"));
    assert_eq!(shown(Netns::Host, "pm1"), shown(Netns::Outside, "y"));
}

#[test]
fn qdisc_leaf_follows_the_rate() {
    let (sandbox, _daemon) = world(&["--egress-rate", "1mbit", "--ingress-rate", "1mbit"]);
    // At a low rate, the target of fq_codel covers two frames, and a bfifo holds two of the largest packets.
    let [slow, fast] = match leaf(&sandbox) {
        "fq_codel" => ["target 24.2ms interval 119ms", "target 5ms interval 100ms"],
        _ => ["limit 128Kb", "limit 1250000b"],
    };
    let shown = || {
        [(A, "eth0"), (Netns::Host, "pm1")]
            .map(|(netns, device)| sandbox.sh(netns, &format!("tc qdisc show dev {device} parent 1:1")))
    };
    for text in shown() {
        assert!(text.contains(slow), "{text}");
    }
    sandbox.ok(&["update", "a", "--egress-rate", "100mbit", "--ingress-rate", "100mbit"]);
    for text in shown() {
        assert!(text.contains(fast), "{text}");
    }
}

#[test]
fn qdisc_queues_both_directions() {
    let (sandbox, _daemon) = world(&["--egress-rate", "100mbit", "--ingress-rate", "100mbit"]);
    sandbox.ok(&["add", "b", "--ports", "31010-31019"]);
    let _a = Service::both(&sandbox, A, 31000, "a");
    let _outside = Service::both(&sandbox, Netns::Outside, 8080, "outside");
    let _host = Service::both(&sandbox, Netns::Host, 8081, "host");
    let packets = |direction| counter(&sandbox, "a", direction, "packets");
    for transport in [Transport::Tcp, Transport::Udp] {
        for (from, to) in [
            (Netns::Outside, HOST),
            (Netns::Host, HOST),
            (Netns::Host, Ipv4Addr::LOCALHOST),
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
        // Also for IPv6, and for ::1, which containers accept on their loopback devices only.
        for to in [HOST6, std::net::Ipv6Addr::LOCALHOST] {
            let before = packets("ingress");
            assert_eq!(ask(&sandbox, B, transport, (to, 31000)).expect("an answer").from, "a");
            assert!(packets("ingress") > before, "{transport:?} from b to {to}");
        }
    }
    assert_eq!(sandbox.dropped("a", "rate"), 0, "the queue holds what the host would drop");
}

/// The qdisc at the host veth is created when both ends are up. Created earlier, it would become active
/// only when a kernel thread has seen the second end, and packets before that would be lost.
#[test]
fn qdisc_works_at_once_when_both_ends_are_up() {
    let sandbox = Sandbox::new();
    let outside = sandbox.namespace(Netns::Outside);
    let there = outside.run(|_session| Netlink::open()).expect("a connection");
    let pair = VethPair {
        host_name: "near",
        host_index: 501,
        alias: "near",
        container_name: "far",
        container_index: 502,
        container: &outside,
        mac: HOST_MAC,
        mtu: 1500,
    };
    let class =
        Class { rate: 125_000_000, ceil: 125_000_000, burst: 250_000, ceil_burst: 250_000, quantum: 60_000 };
    let shape = Shape { class, local_is_free: false, leaf: Leaf::Bfifo };
    let frame = [0xff; 64];
    let here = sandbox.inside(Netns::Host, || Netlink::open().expect("a connection"));
    for number in 0..30 / sample().min(10) {
        link::create_veth(&here, &pair).expect("a pair");
        let near = sandbox.inside(Netns::Host, || PacketSocket::open(pair.host_name));
        let far = sandbox.inside(Netns::Outside, || PacketSocket::listening(pair.container_name));
        link::set_up(&here, pair.host_index, pair.host_name).expect("up");
        link::set_up(&there, pair.container_index, pair.container_name).expect("up");
        qdisc::shape(&here, pair.host_index, &shape).expect("a queue");
        near.send(&frame);
        // The kernel sends some packets of its own.
        wait::until(&format!("frame {number}"), || far.receive().is_some_and(|got| got == frame));
        link::delete(&here, pair.host_index, pair.host_name).expect("deleted");
    }
}

#[test]
fn qdisc_is_bypassed_by_oversized_datagrams() {
    let (sandbox, _daemon) = world(&["--ingress-rate", "100mbit"]);
    let receiver = sandbox.inside(A, || UdpSocket::bind((HOST, 31000))).expect("its own port");
    receiver.set_read_timeout(Some(wait::LIMIT)).expect("a socket");
    let sender = sandbox.inside(Netns::Host, || UdpSocket::bind((HOST, 0))).expect("a port");
    assert_eq!(sender.send_to(&vec![7; 60_000], (HOST, 31000)).expect("sent"), 60_000);
    assert_eq!(receiver.recv(&mut vec![0; 65_536]).expect("received"), 60_000);
}

#[test]
fn qdisc_at_low_rate_passes_a_whole_stream() {
    let (sandbox, _daemon) = world(&["--egress-rate", "20mbit", "--ingress-rate", "20mbit"]);
    for (server, client, port) in [(A, Netns::Outside, 31000), (Netns::Outside, A, 8080)] {
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
fn limit_local_traffic_is_optional() {
    for limited in [true, false] {
        let sandbox = Sandbox::new();
        let flag = format!("--limit-local-traffic={limited}");
        let _daemon = daemon_with(&sandbox, &[&flag]);
        add(&sandbox, &["--egress-rate", "1mbit", "--ingress-rate", "1mbit"]);
        sandbox.ok(&["add", "b", "--ports", "31010-31019"]);
        let _b = Service::both(&sandbox, B, 31010, "b");
        assert_eq!(ask(&sandbox, A, Transport::Udp, (HOST, 31010)).expect("an answer").from, "b");
        assert_eq!(counter(&sandbox, "a", "ingress", "packets") > 0, limited, "the answer waits in a queue");
        let stats = sandbox.fresh_stats("a");
        let of_class = |class: &str| {
            let queues = stats["egress"].as_array().expect("queues").iter();
            queues.filter(|queue| queue["kind"] == class).find_map(|queue| queue["packets"].as_u64())
        };
        assert_eq!(of_class("class 1:1").is_some_and(|packets| packets > 0), limited, "{stats}");
        assert_eq!(of_class("class 1:2").is_some_and(|packets| packets > 0), !limited, "{stats}");
        // Without the qdisc, packets to other containers are dropped only if local traffic counts.
        sandbox.sh(A, "tc qdisc del dev eth0 root");
        flood(&sandbox, A, (HOST, 31010));
        assert_eq!(sandbox.dropped("a", "rate") > 0, limited);
        let before = sandbox.dropped("a", "rate");
        flood(&sandbox, A, (OUTSIDE, 9));
        assert!(sandbox.dropped("a", "rate") > before, "the outside always counts");
    }
}

#[test]
fn ecn_is_requested_if_the_host_does() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    let ecn = "/proc/sys/net/ipv4/tcp_ecn";
    sandbox.sh(
        Netns::Host,
        &format!("echo 1 > {ecn}; echo 999 > /proc/sys/net/core/somaxconn; ip netns add own"),
    );
    add(&sandbox, &[]);
    assert_eq!(sandbox.sh(A, &format!("cat {ecn} /proc/sys/net/core/somaxconn")), "1\n999\n");
    // An existing namespace keeps its own setting.
    let before = sandbox.sh(Netns::Container("own"), &format!("cat {ecn}"));
    sandbox.ok(&["add", "own", "--netns", "/run/netns/own"]);
    assert_eq!(sandbox.sh(Netns::Container("own"), &format!("cat {ecn}")), before);
}

#[test]
fn ecn_streams_are_marked_not_dropped() {
    let (sandbox, _daemon) = world(&["--ingress-rate", "20mbit"]);
    if leaf(&sandbox) != "fq_codel" {
        assert_eq!(sandbox.json(&["show", "a"])["ingress"]["leaf"], "bfifo");
        return;
    }
    for netns in [A, Netns::Outside] {
        sandbox.sh(netns, "echo 1 > /proc/sys/net/ipv4/tcp_ecn");
    }
    // The sender's own stack senses the queue here and limits each stream's share of it, so several
    // streams are needed.
    let listener = sandbox.inside(A, || TcpListener::bind((HOST, 31000))).expect("a listener");
    let mut clients = Vec::new();
    let mut readers = Vec::new();
    for _ in 0..32 {
        let connect = || TcpStream::connect((HOST, 31000)).expect("connected");
        clients.push(sandbox.inside(Netns::Outside, connect));
        let (mut server, _) = listener.accept().expect("a connection");
        readers.push(thread::spawn(move || server.read_to_end(&mut Vec::new())));
    }
    let marks = || sandbox.fresh_stats("a")["ingress"][1]["ecn_marks"].as_u64().expect("it marks");
    wait::until("a mark", || {
        for client in &mut clients {
            client.set_nonblocking(true).expect("a socket");
            // As much as the queue holds.
            let _ = client.write(&vec![0; 100_000]);
        }
        marks() > 0
    });
    // A retransmission, as on a slow machine, is not ECN-capable (RFC 3168, section 6.1.5).
    let dropped = counter(&sandbox, "a", "ingress", "drops");
    let tcp = sandbox.sh(Netns::Outside, "grep '^Tcp:' /proc/net/snmp");
    let mut lines = tcp.lines().map(str::split_whitespace);
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let again =
        names.zip(values).find_map(|(name, value)| (name == "RetransSegs").then(|| value.parse().ok()));
    let again: u64 = again.flatten().expect("a number");
    assert!(dropped <= again, "{dropped} dropped, of which only {again} could not be marked");
    drop(clients);
    for reader in readers {
        reader.join().expect("no panic").expect("read");
    }
}
