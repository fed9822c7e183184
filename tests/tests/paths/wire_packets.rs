//! The counters of traffic match the wire, whatever the stack merges and segments later: they are compared with
//! the counters of the kernel's qdiscs, and with the frames that an observer outside captures.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Shutdown, TcpListener, TcpStream},
    thread,
};

use portmap_tests::{
    packet_socket::PacketSocket,
    sandbox::{HOST, HOST6, Netns, Sandbox},
    wait,
};
use serde_json::Value;

use crate::{A, A_PORT, B, LOCALHOST, LOCALHOST6};

/// Bytes of each direction of a stream.
const LENGTH: usize = 1 << 18;
/// Streams of each pair: one per IP version.
const STREAMS: u64 = 2;
/// The most payload of one segment: an MTU of 1500 without the headers of IPv4 and TCP.
const MAX_SEGMENT: u64 = 1460;

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    packets: u64,
    bytes: u64,
}

impl Count {
    fn of(value: &Value) -> Self {
        let number = |unit: &str| value[unit].as_u64().unwrap_or_else(|| panic!("{unit} of {value}"));
        Self { packets: number("packets"), bytes: number("bytes") }
    }

    fn plus(self, other: Self) -> Self {
        Self { packets: self.packets + other.packets, bytes: self.bytes + other.bytes }
    }

    fn since(self, before: Self) -> Self {
        Self { packets: self.packets - before.packets, bytes: self.bytes - before.bytes }
    }
}

/// What portmap counts for container `a`, and what the kernel counts for the same packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sums {
    counted: [Count; 3],
    kernel: [Count; 3],
}

impl Sums {
    /// Reads what `a` has sent, received, and sent to itself.
    fn read(sandbox: &Sandbox) -> Self {
        let stats = sandbox.json(&["stats", "a"]);
        let sum = |paths: [&str; 3]| {
            paths.iter().fold(Count::default(), |sum, path| sum.plus(Count::of(&stats["traffic"][path])))
        };
        let qdiscs = sandbox.sh(A, "tc -s -j qdisc show dev lo");
        let qdiscs: Value = serde_json::from_str(&qdiscs).expect("JSON");
        Self {
            counted: [
                sum(["tx_outside", "tx_host", "tx_container"]),
                sum(["rx_outside", "rx_host", "rx_container"]),
                Count::of(&stats["traffic"]["own"]),
            ],
            kernel: [
                Count::of(&stats["egress"][0]),
                Count::of(&stats["ingress"][0]),
                Count::of(qdiscs.as_array().and_then(|all| all.first()).expect("a qdisc")),
            ],
        }
    }

    fn since(self, before: Self) -> Self {
        let difference = |now: [Count; 3], then: [Count; 3]| [0, 1, 2].map(|at| now[at].since(then[at]));
        Self {
            counted: difference(self.counted, before.counted),
            kernel: difference(self.kernel, before.kernel),
        }
    }
}

/// Sends a stream in both directions, and waits until both ends have closed it.
fn exchange(sandbox: &Sandbox, listener: &TcpListener, from: Netns<'_>, to: IpAddr) {
    let mut client = sandbox.inside(from, || TcpStream::connect((to, A_PORT))).expect("connected");
    let (mut server, _) = listener.accept().expect("a connection");
    let answering = thread::spawn(move || {
        let mut bytes = Vec::new();
        server.read_to_end(&mut bytes).expect("received");
        server.write_all(&bytes).expect("sent");
    });
    client.write_all(&vec![7; LENGTH]).expect("sent");
    client.shutdown(Shutdown::Write).expect("a socket");
    let mut bytes = Vec::new();
    client.read_to_end(&mut bytes).expect("received");
    answering.join().expect("answered");
    assert_eq!(bytes.len(), LENGTH, "{from:?} to {to}");
}

/// Returns the sums of captured frames of TCP: from and to port [`A_PORT`].
fn captured(capture: &PacketSocket) -> [Count; 2] {
    let mut sums = [Count::default(); 2];
    while let Some(frame) = capture.receive() {
        let (protocol, ports) = match frame.get(12..14) {
            Some([0x08, 0x00]) => (frame[23], 34),
            Some([0x86, 0xdd]) => (frame[20], 54),
            _ => continue,
        };
        if protocol == 6 {
            let direction = usize::from(frame[ports..ports + 2] != A_PORT.to_be_bytes());
            let frame = Count { packets: 1, bytes: frame.len() as u64 };
            sums[direction] = sums[direction].plus(frame);
        }
    }
    sums
}

#[test]
fn counters_match_the_wire() {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    // Limits that do not limit, for the counters of their qdiscs.
    let limits = ["--egress-rate", "20gbit", "--ingress-rate", "20gbit"];
    sandbox.ok(&[&["add", "a", "--ports", "31000-31009"][..], &limits].concat());
    sandbox.ok(&["add", "b"]);
    sandbox.sh(
        A,
        "tc qdisc add dev lo root handle 1: htb default 1
         tc class add dev lo parent 1: classid 1:1 htb rate 20gbit quantum 60000
         tc qdisc add dev lo parent 1:1 pfifo limit 100000",
    );
    // What the containers send is segmented behind the programs, and what the outside sends is merged before
    // them.
    sandbox.sh(Netns::Host, "ethtool -K uplink tso off gso off gro on");
    sandbox.sh(Netns::Outside, "ethtool -K eth0 tso off gso off gro off");
    let listener = sandbox.inside(A, || TcpListener::bind(("::", A_PORT))).expect("the port is free");
    let capture = sandbox.inside(Netns::Outside, || PacketSocket::listening("eth0"));
    capture.enlarge_buffer(256 << 20);
    let before = Sums::read(&sandbox);
    for from in [Netns::Outside, Netns::Host, B, A] {
        for to in [HOST.into(), HOST6.into()] {
            exchange(&sandbox, &listener, from, to);
        }
    }
    for to in [LOCALHOST, LOCALHOST6] {
        exchange(&sandbox, &listener, A, to);
    }
    let mut outside = [Count::default(); 2];
    // A difference that stays fails the test. Until the streams are over, it may not stay.
    let mut last = None;
    let agreed = wait::for_value("portmap and the kernel to count the same", || {
        for (sum, more) in outside.iter_mut().zip(captured(&capture)) {
            *sum = sum.plus(more);
        }
        let now = Sums::read(&sandbox).since(before);
        let stats = ["a", "b"].map(|name| sandbox.json(&["stats", name])["traffic"].take());
        let path = |of: usize, path: &str| Count::of(&stats[of][path]);
        let pairs = [
            ([path(0, "tx_outside"), path(0, "rx_outside")], outside),
            (
                [path(1, "tx_container"), path(1, "rx_container")],
                [path(0, "rx_container"), path(0, "tx_container")],
            ),
        ];
        let agrees = now.counted == now.kernel && pairs.iter().all(|(counted, seen)| counted == seen);
        if last.as_ref() != Some(&(now, pairs)) {
            println!("{now:?}\n{pairs:?}");
        }
        last = Some((now, pairs));
        agrees.then_some(stats)
    });
    // Not in units of the stack, which are up to 64 KiB here.
    for path in ["rx_outside", "tx_outside", "rx_host", "tx_host", "rx_container", "tx_container", "own"] {
        let expected = STREAMS * (LENGTH as u64).div_ceil(MAX_SEGMENT);
        let count = Count::of(&agreed[0][path]);
        assert!(count.packets >= expected, "{path}: {count:?}");
    }
}
