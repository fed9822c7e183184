//! The testbed: a host, its containers and observers, and the accounting of a batch.

use std::{
    fs::File,
    io::{Read as _, Seek as _},
    thread,
    time::{Duration, Instant},
};

use nix::{
    libc,
    sched::{CpuSet, sched_getcpu, sched_setaffinity},
    unistd::Pid,
};
use portmap::{
    kernel::{maps::Maps, netlink::Netlink, qdisc},
    paths::Pins,
};
use portmap_tests::{
    daemon::Daemon,
    sandbox::{Netns, Sandbox},
    wait,
};

use crate::{
    counts::Counts,
    frames::{FENCE_PORT, PATTERN},
    oracle::{MAX_SEGMENTS, Oracle, Vantage},
    parser::{ETHERNET, WITH_PORTS},
    probe::Probe,
    send_path::{self, MAX_FRAME, Senders},
    sockets::Socket,
    violations::{Violations, listed, report},
};

const A: Netns<'_> = Netns::Container("a");
/// The slot of the attacking container.
pub(crate) const SLOT: u16 = 1;
/// Tolerance of a limit, see `docs/shaping.md`: 128 KiB and 50 ms, plus one conforming frame with the
/// maximum number of segments.
const SLACK: u64 = 128 << 10;
const MAX_QUEUE_DELAY: Duration = Duration::from_millis(50);
const ONE_FRAME: u64 = (MAX_SEGMENTS * MAX_FRAME) as u64;
/// Unsolicited packets of the container's own stack, per batch.
const UNSOLICITED: u64 = 4;
/// A fence that has not arrived after this time is sent again.
const FENCE_TIMEOUT: Duration = Duration::from_millis(300);

/// An observer.
struct Observer {
    at: Vantage,
    frames: Socket,
    /// Raw sockets; the flag means IPv6.
    whole: Vec<(bool, Socket)>,
}

/// A host with an attacking container, and the observers.
pub(crate) struct Testbed {
    _sandbox: Sandbox,
    _daemon: Daemon,
    maps: Maps,
    senders: Senders,
    observers: Vec<Observer>,
    queues: Netlink,
    uplink: u32,
    /// Packets in the host's qdisc from before it had classes.
    early: u64,
    /// `/proc/net/dev` of the host.
    interfaces: File,
    /// Bytes that the uplink's qdisc had accounted after the previous batch.
    charged: u64,
    oracle: Oracle,
    pub(crate) ephemeral: (u16, u16),
    /// The container's rate in bytes per second, and its burst.
    pub(crate) limit: Option<(u64, u64)>,
    start: Instant,
    fences: u32,
    /// Whether a fence of the previous batch may still arrive.
    is_late: bool,
    sent: u64,
    refused: u64,
    seen: u64,
    pub(crate) violations: Violations,
    /// The environment variables that replay the present batch.
    pub(crate) replay: String,
}

impl Testbed {
    /// Creates a testbed, optionally with a limit on the container's sending in bytes per second.
    pub(crate) fn new(rate: Option<u64>) -> Self {
        let sandbox = Sandbox::new();
        let daemon = sandbox.daemon();
        let mut add = vec!["add".to_owned(), "a".to_owned(), "--ports=31000-31009".to_owned()];
        add.extend(rate.map(|rate| format!("--egress-rate={}bit", 8 * rate)));
        let a = sandbox.json(&add.iter().map(String::as_str).collect::<Vec<_>>());
        let b = sandbox.json(&["add", "b", "--ports", "31010-31019"]);
        let port =
            |value: &serde_json::Value| u16::try_from(value.as_u64().expect("a port")).expect("a port");
        let block =
            |of: &serde_json::Value| (port(&of["ephemeral_ports"][0]), port(&of["ephemeral_ports"][1]));
        let ephemeral = block(&a);
        assert_eq!(a["slot"], SLOT);
        let limit = rate.map(|rate| (rate, a["egress"]["burst"].as_u64().expect("a number")));
        // Static neighbours, so that no resolution is needed; and a qdisc of the operator with two
        // classes.
        sandbox.sh(
            Netns::Host,
            "ip neigh replace 10.0.0.2 lladdr 02:00:00:00:01:02 dev uplink nud permanent
             ip neigh replace 2001:db8:0:1::2 lladdr 02:00:00:00:01:02 dev uplink nud permanent
             tc qdisc add dev uplink root handle 1: htb default 10
             for c in 10 20; do
               tc class add dev uplink parent 1: classid 1:$c htb rate 30gbit burst 20mb cburst 20mb quantum 60000
             done",
        );
        // The outside accepts frames above the uplink's MTU, because the oracle must observe them.
        sandbox.sh(Netns::Outside, "ip link set eth0 mtu 65000");
        if rate.is_some() {
            // Root in the container can delete its qdisc.
            sandbox.sh(A, "tc qdisc del dev eth0 root");
        }
        sandbox.inside(Netns::Host, || send_path::without_offloads("uplink"));
        let senders = Senders::open(&sandbox, A);
        let observer = |at, netns, interface: &str| {
            sandbox.inside(netns, || {
                let raw = |is_ipv6| WITH_PORTS.map(|protocol| (is_ipv6, Socket::raw(is_ipv6, protocol)));
                let whole = [false, true].into_iter().flat_map(raw).collect();
                Observer { at, frames: Socket::capture(interface), whole }
            })
        };
        let observers = vec![
            observer(Vantage::Outside, Netns::Outside, "eth0"),
            observer(Vantage::Host, Netns::Host, "lo"),
            observer(Vantage::Other, Netns::Container("b"), "eth0"),
        ];
        let (queues, uplink, interfaces) = sandbox.inside(Netns::Host, || {
            let index = nix::net::if_::if_nametoindex("uplink").expect("the interface exists");
            let interfaces = File::open("/proc/thread-self/net/dev").expect("a file");
            (Netlink::open().expect("a connection"), index, interfaces)
        });
        let maps = Maps::open(&Pins::new(sandbox.path("/sys/fs/bpf/portmap"))).expect("the daemon's maps");
        stay_on_this_cpu();
        let mut testbed = Self {
            _sandbox: sandbox,
            _daemon: daemon,
            maps,
            senders,
            observers,
            queues,
            uplink,
            early: 0,
            interfaces,
            charged: 0,
            oracle: Oracle::new(ephemeral, block(&b)),
            ephemeral,
            limit,
            start: Instant::now(),
            fences: 0,
            is_late: false,
            sent: 0,
            refused: 0,
            seen: 0,
            violations: Violations::default(),
            replay: String::new(),
        };
        let queues = testbed.queues();
        let packets = |kind: &str| {
            queues.iter().filter(|(name, _)| name == kind).map(|(_, packets)| packets).sum::<u64>()
        };
        testbed.early = packets("htb").saturating_sub(packets("class 1:10"));
        testbed
    }

    /// Sends a batch and checks its outcome. Fails if the testbed does not work. Returns a lower bound
    /// on the number of packets that were not dropped.
    pub(crate) fn send_batch(&mut self, probes: &[Probe]) -> Result<u64, String> {
        let (before, transmitted) = (self.counts(), self.transmitted());
        self.oracle.begin();
        self.oracle.expect(probes.iter().filter_map(|probe| probe.starts_datagram));
        let was_late = self.is_late;
        let (mut min_count, mut max_count) = (0, Some(0));
        for probe in probes {
            self.sent += 1;
            if self.senders.send(probe).is_ok() {
                min_count += probe.min_count;
                max_count = max_count.zip(probe.max_count).map(|(max_count, more)| max_count + more);
            } else {
                self.refused += 1;
            }
        }
        if self.limit.is_some() {
            // A fence would be policed like any other frame, so only the total is checked.
            self.drain(probes, self.fences);
            if let Some(violation) = self.over_limit() {
                self.violations
                    .note(&violation, || format!("{}: {violation}\nlast of:{}", self.replay, listed(probes)));
            }
            return Ok(0);
        }
        let fences = self.wait_for_fence(probes)?;
        min_count += 1;
        max_count =
            max_count.map(|max_count| max_count + fences + UNSOLICITED + if was_late { fences } else { 0 });
        let (after, transmitted) = (self.counts(), self.transmitted() - transmitted);
        let mut violations = self.compare(&before, &after, min_count, max_count);
        let counted = after.outside.0 - before.outside.0;
        if transmitted > counted + UNSOLICITED {
            violations.push(format!("{counted} packets are counted, and {transmitted} are sent"));
        }
        // The bytes that the operator's qdisc accounts for a frame delay all others.
        let charged = self.charged();
        let more = charged - self.charged;
        self.charged = charged;
        if more > counted.max(1) * (MAX_SEGMENTS * MAX_FRAME) as u64 {
            violations.push(format!("{counted} packets are taken for {more} bytes by the uplink's queue"));
        }
        for violation in violations {
            self.violations
                .note(&violation, || format!("{}: {violation}\nof one of:{}", self.replay, listed(probes)));
        }
        let left = |counts: &Counts| counts.total() - counts.dropped;
        Ok((left(&after) - left(&before)).saturating_sub(fences))
    }

    /// Compares the host's counters with the sent and the observed packets.
    fn compare(
        &self,
        before: &Counts,
        after: &Counts,
        min_count: u64,
        max_count: Option<u64>,
    ) -> Vec<String> {
        let mut violations = Vec::new();
        let counted = after.total() - before.total();
        // Excess traffic is dropped, and counted as well.
        if counted < min_count || max_count.is_some_and(|max_count| counted > max_count) {
            let range = format!(
                "{min_count} to {}",
                max_count.map_or("any number".to_owned(), |max_count| max_count.to_string())
            );
            violations.push(format!("{counted} packets are counted, of {range}: {before:?}, {after:?}"));
        }
        for at in Vantage::ALL {
            let sum = self.oracle.sums[at as usize];
            let ((packets, bytes), (packets_before, bytes_before)) = (after.at(at), before.at(at));
            let (packets, bytes) = (packets - packets_before, bytes - bytes_before);
            if sum.packets > packets || sum.bytes > bytes {
                violations.push(format!(
                    "{at:?}: {packets} packets with {bytes} bytes are counted, and {sum:?} is seen"
                ));
            }
        }
        let marked = self.senders.marked();
        if marked != 0 {
            violations.push(format!("{marked} packets leave with a mark"));
        }
        let queues = self.queues();
        let packets =
            |kind: &str| queues.iter().find(|(name, _)| name == kind).map_or(0, |(_, packets)| *packets);
        // Unclassified packets are in no class. The classes are read after the qdisc.
        if packets("class 1:20") > 0 || packets("htb") > packets("class 1:10") + self.early {
            violations.push(format!("packets in classes that are the operator's to choose: {queues:?}"));
        }
        violations
    }

    /// Returns a violation if the observed bytes exceed the limit.
    fn over_limit(&self) -> Option<String> {
        let (rate, burst) = self.limit?;
        let time = self.start.elapsed() + MAX_QUEUE_DELAY;
        let allowed = u128::from(rate) * time.as_micros() / 1_000_000 + u128::from(burst + SLACK + ONE_FRAME);
        let total = self.oracle.total;
        (u128::from(total) > allowed)
            .then(|| format!("{total} bytes in {time:?}, of which {allowed} are allowed"))
    }

    /// Checks all observed packets until a fence, sent after the batch, has arrived.
    fn wait_for_fence(&mut self, probes: &[Probe]) -> Result<u64, String> {
        let path = probes[0].path;
        let (mut fences, first) = (0, self.fences);
        let start = Instant::now();
        let mut sent = None::<Instant>;
        self.is_late = false;
        loop {
            if sent.is_none_or(|sent| sent.elapsed() > FENCE_TIMEOUT) {
                self.is_late = fences > 0;
                self.fences += 1;
                fences += 1;
                match self.senders.send(&Probe::well_formed(path, u32::MAX - self.fences)) {
                    // A slow machine still has the batch in its queues.
                    Err(error) if !matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN)) => {
                        return Err(format!("{error}"));
                    }
                    _ => {}
                }
                sent = Some(Instant::now());
            }
            if self.drain(probes, first) {
                // Packets at the other vantage points have arrived before it.
                self.drain(probes, first);
                return Ok(fences);
            }
            if start.elapsed() > wait::LIMIT {
                return Err(format!("a well-formed frame does not arrive by {path:?}"));
            }
            thread::sleep(Duration::from_micros(200));
        }
    }

    /// Checks all packets that have arrived. Returns whether the fence is among them.
    fn drain(&mut self, probes: &[Probe], first: u32) -> bool {
        let mut buffer = vec![0; 1 << 17];
        let mut control = vec![0; 256];
        let mut is_over = false;
        for Observer { at, frames, whole } in &self.observers {
            while let Some(received) = frames.receive(&mut buffer, &mut control) {
                self.seen += 1;
                if let Err(violation) = self.oracle.frame(*at, &received) {
                    self.violations.note(&format!("{at:?}: {violation}"), || {
                        format!("{}: {}", self.replay, report(*at, &received, &violation, probes))
                    });
                }
                is_over |= is_fence(&received.bytes, self.fences, self.fences - first);
            }
            for (is_ipv6, socket) in whole {
                while let Some(received) = socket.receive(&mut buffer, &mut control) {
                    if let Err(violation) = self.oracle.whole(*at, *is_ipv6, &received) {
                        self.violations.note(&format!("{at:?}: {violation}"), || {
                            format!("{}: {}", self.replay, report(*at, &received, &violation, probes))
                        });
                    }
                }
            }
        }
        is_over
    }

    fn counts(&self) -> Counts {
        Counts::read(&self.maps)
    }

    /// Packets that were transmitted on the uplink, including those that its peer had no room for.
    fn transmitted(&self) -> u64 {
        let mut text = String::new();
        (&self.interfaces)
            .rewind()
            .and_then(|()| (&self.interfaces).read_to_string(&mut text))
            .expect("a file");
        let line =
            text.lines().find_map(|line| line.trim().strip_prefix("uplink:")).expect("the interface exists");
        let counters: Vec<u64> =
            line.split_whitespace().map(|word| word.parse().expect("a number")).collect();
        // Transmitted, and dropped during transmission.
        counters[9] + counters[11]
    }

    /// Bytes that the uplink's qdisc has accounted.
    fn charged(&self) -> u64 {
        let stats = qdisc::stats_of(&self.queues, self.uplink, |_any| true).expect("the kernel tells");
        stats.iter().find(|stats| stats.kind == "htb").map_or(0, |stats| stats.bytes)
    }

    /// Packets in the uplink's qdisc and in each of its classes.
    fn queues(&self) -> Vec<(String, u64)> {
        let stats = qdisc::stats_of(&self.queues, self.uplink, |_any| true).expect("the kernel tells");
        stats.into_iter().map(|stats| (stats.kind, stats.packets)).collect()
    }

    pub(crate) fn summary(&self) -> String {
        let counts = self.counts();
        format!(
            "{} frames sent, {} refused by the kernel, {} seen; {counts:?}; {:?}",
            self.sent,
            self.refused,
            self.seen,
            self.start.elapsed()
        )
    }
}

/// Pins the calling thread to its CPU, so that its packets stay in order.
fn stay_on_this_cpu() {
    let mut cpus = CpuSet::new();
    cpus.set(sched_getcpu().expect("a CPU")).expect("a CPU");
    sched_setaffinity(Pid::from_raw(0), &cpus).expect("a thread may");
}

/// Returns whether a frame is one of the most recent fences.
fn is_fence(frame: &[u8], newest: u32, how_many: u32) -> bool {
    let Some(udp) = frame.get(ETHERNET + 20..) else { return false };
    let [_, _, p, q, _, _, _, _, payload @ ..] = udp else { return false };
    let Some((PATTERN, number)) = payload.split_first_chunk().map(|(pattern, rest)| (*pattern, rest)) else {
        return false;
    };
    let number = number.first_chunk().map_or(0, |number| u32::from_be_bytes(*number));
    u16::from_be_bytes([*p, *q]) == FENCE_PORT
        && (u32::MAX - newest..u32::MAX - newest + how_many).contains(&number)
}
