//! The host, its containers, the observers, and what becomes of a batch of frames there.

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
use portmap_common::reason::Reason;
use portmap_tests::{
    daemon::Daemon,
    sandbox::{Netns, Sandbox},
    wait,
};

use crate::{
    frames::{FENCE_PORT, PATTERN},
    oracle::{MAX_SEGMENTS, Oracle, Vantage},
    parser::{ETHERNET, WITH_PORTS},
    probe::Probe,
    send_path::{self, MAX_FRAME, Senders},
    sockets::Socket,
    violations::{Violations, listed, report},
};

const A: Netns<'_> = Netns::Container("a");
/// The slot of the container that attacks.
const SLOT: u16 = 1;
/// What may come too early for a limit, see `docs/shaping.md`: 128 KiB, and 50 ms; and one frame that came in time, with as
/// many segments as it may have.
const SLACK: u64 = 128 << 10;
const MAX_QUEUE_DELAY: Duration = Duration::from_millis(50);
const ONE_FRAME: u64 = (MAX_SEGMENTS * MAX_FRAME) as u64;
/// Packets that the container's own stack may have sent meanwhile.
const UNSOLICITED: u64 = 4;
/// After this long a frame that shows the end is taken for lost, and sent again.
const FENCE_TIMEOUT: Duration = Duration::from_millis(300);

/// What the host has counted of the container.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    outside: (u64, u64),
    host: (u64, u64),
    container: (u64, u64),
    dropped: u64,
}

impl Counts {
    fn total(&self) -> u64 {
        self.outside.0 + self.host.0 + self.container.0 + self.dropped
    }

    /// Packets and bytes that went to where an observer is.
    const fn at(&self, at: Vantage) -> (u64, u64) {
        match at {
            Vantage::Outside => self.outside,
            Vantage::Host => self.host,
            Vantage::Other => self.container,
        }
    }
}

/// An observer.
struct Observer {
    at: Vantage,
    frames: Socket,
    /// Raw sockets, each with whether it is of IPv6.
    whole: Vec<(bool, Socket)>,
}

/// A host with a container that attacks, and everybody who watches.
pub(crate) struct Testbed {
    _sandbox: Sandbox,
    _daemon: Daemon,
    maps: Maps,
    senders: Senders,
    observers: Vec<Observer>,
    queues: Netlink,
    uplink: u32,
    /// Packets of the host's own that went by its queue before that had classes.
    early: u64,
    /// The host's interfaces with their counters.
    interfaces: File,
    /// Bytes that its queue believed to have sent when the last batch was over.
    charged: u64,
    oracle: Oracle,
    pub(crate) ephemeral: (u16, u16),
    /// Bytes per second that the container may send, and its burst.
    pub(crate) limit: Option<(u64, u64)>,
    start: Instant,
    fences: u32,
    /// Whether a frame that shows an end may be under way still.
    is_late: bool,
    sent: u64,
    refused: u64,
    seen: u64,
    pub(crate) violations: Violations,
    /// Which batch is being sent, as those say who want to see it again.
    pub(crate) at: String,
}

impl Testbed {
    /// A world; with a limit of so many bytes per second on what the container sends.
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
        // Nobody has to be asked for an address, and the operator has classes of his own.
        sandbox.sh(
            Netns::Host,
            "ip neigh replace 10.0.0.2 lladdr 02:00:00:00:01:02 dev uplink nud permanent
             ip neigh replace 2001:db8:0:1::2 lladdr 02:00:00:00:01:02 dev uplink nud permanent
             tc qdisc add dev uplink root handle 1: htb default 10
             for c in 10 20; do
               tc class add dev uplink parent 1: classid 1:$c htb rate 30gbit burst 20mb cburst 20mb quantum 60000
             done",
        );
        // Outside takes what is larger than the uplink's MTU, or nobody would see it.
        sandbox.sh(Netns::Outside, "ip link set eth0 mtu 65000");
        if rate.is_some() {
            // Its root can do without it.
            sandbox.sh(A, "tc qdisc del dev eth0 root");
        }
        sandbox.inside(Netns::Host, || send_path::without_offloads("uplink"));
        let senders = Senders::open(&sandbox, A);
        let observer = |at, place, interface: &str| {
            sandbox.inside(place, || {
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
            at: String::new(),
        };
        let queues = testbed.queues();
        let packets = |kind: &str| {
            queues.iter().filter(|(name, _)| name == kind).map(|(_, packets)| packets).sum::<u64>()
        };
        testbed.early = packets("htb").saturating_sub(packets("class 1:10"));
        testbed
    }

    /// Sends a batch and judges what becomes of it; an error if the world is not as it was made. Returns how many of its
    /// packets have not been dropped, at least.
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
            // What shows the end would be dropped as well as anything else, so only the sum counts.
            self.drain(probes, self.fences);
            if let Some(violation) = self.over_limit() {
                self.violations
                    .note(&violation, || format!("{}: {violation}\nlast of:{}", self.at, listed(probes)));
            }
            return Ok(0);
        }
        let fences = self.wait_for_fence(probes)?;
        min_count += 1;
        max_count =
            max_count.map(|max_count| max_count + fences + UNSOLICITED + if was_late { fences } else { 0 });
        let (after, transmitted) = (self.counts(), self.transmitted() - transmitted);
        let is_whole = !probes.iter().any(Probe::is_gso);
        let mut violations = self.compare(&before, &after, min_count, max_count, is_whole);
        let whole = after.outside.0 - before.outside.0;
        if transmitted > whole.max(1) * MAX_SEGMENTS as u64 {
            violations.push(format!("{transmitted} segments are made of {whole} frames"));
        }
        // What the operator's queue takes a frame for is time in which nobody else sends.
        let charged = self.charged();
        let more = charged - self.charged;
        self.charged = charged;
        if more > whole.max(1) * (MAX_SEGMENTS * MAX_FRAME) as u64 {
            violations.push(format!("{whole} frames are taken for {more} bytes by the uplink's queue"));
        }
        for violation in violations {
            self.violations
                .note(&violation, || format!("{}: {violation}\nof one of:{}", self.at, listed(probes)));
        }
        let left = |counts: &Counts| counts.total() - counts.dropped;
        Ok((left(&after) - left(&before)).saturating_sub(fences))
    }

    /// What the host has counted, compared with what was sent and with what was seen.
    fn compare(
        &self,
        before: &Counts,
        after: &Counts,
        min_count: u64,
        max_count: Option<u64>,
        is_whole: bool,
    ) -> Vec<String> {
        let mut violations = Vec::new();
        let counted = after.total() - before.total();
        // What is over the limit is dropped, and counted, as well.
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
            // What is cut later has more packets and headers than were counted.
            let is_whole = at != Vantage::Outside || is_whole;
            if sum.payload > bytes || (is_whole && (sum.packets > packets || sum.bytes > bytes)) {
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
        // What has no class is in none of them. They are read after the queue itself.
        if packets("class 1:20") > 0 || packets("htb") > packets("class 1:10") + self.early {
            violations.push(format!("packets in classes that are the operator's to choose: {queues:?}"));
        }
        violations
    }

    /// Says so if more has been seen than the limit allows.
    fn over_limit(&self) -> Option<String> {
        let (rate, burst) = self.limit?;
        let time = self.start.elapsed() + MAX_QUEUE_DELAY;
        let allowed = u128::from(rate) * time.as_micros() / 1_000_000 + u128::from(burst + SLACK + ONE_FRAME);
        let total = self.oracle.total;
        (u128::from(total) > allowed)
            .then(|| format!("{total} bytes in {time:?}, of which {allowed} are allowed"))
    }

    /// Looks at everything that arrives until a frame that was sent last has.
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
                    // A slow machine still has the batch before it.
                    Err(error) if !matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN)) => {
                        return Err(format!("{error}"));
                    }
                    _ => {}
                }
                sent = Some(Instant::now());
            }
            if self.drain(probes, first) {
                // What came to the others was there before it.
                self.drain(probes, first);
                return Ok(fences);
            }
            if start.elapsed() > wait::LIMIT {
                return Err(format!("a frame without fault does not arrive by {path:?}"));
            }
            thread::sleep(Duration::from_micros(200));
        }
    }

    /// Judges all that has arrived; true if the frame is among it that shows the end.
    fn drain(&mut self, probes: &[Probe], first: u32) -> bool {
        let mut buffer = vec![0; 1 << 17];
        let mut control = vec![0; 256];
        let mut is_over = false;
        for Observer { at, frames, whole } in &self.observers {
            while let Some(received) = frames.receive(&mut buffer, &mut control) {
                self.seen += 1;
                if let Err(violation) = self.oracle.frame(*at, &received) {
                    self.violations.note(&format!("{at:?}: {violation}"), || {
                        format!("{}: {}", self.at, report(*at, &received, &violation, probes))
                    });
                }
                is_over |= is_fence(&received.bytes, self.fences, self.fences - first);
            }
            for (is_ipv6, socket) in whole {
                while let Some(received) = socket.receive(&mut buffer, &mut control) {
                    if let Err(violation) = self.oracle.whole(*at, *is_ipv6, &received) {
                        self.violations.note(&format!("{at:?}: {violation}"), || {
                            format!("{}: {}", self.at, report(*at, &received, &violation, probes))
                        });
                    }
                }
            }
        }
        is_over
    }

    fn counts(&self) -> Counts {
        let counters = self.maps.counters(SLOT).expect("a map");
        let drops = self.maps.drops(SLOT).expect("a map").tx;
        let pair = |tally: portmap_common::counters::Tally| (tally.packets, tally.bytes);
        Counts {
            outside: pair(counters.tx_outside),
            host: pair(counters.tx_host),
            container: pair(counters.tx_container),
            dropped: Reason::ALL.iter().map(|reason| drops.get(*reason)).sum(),
        }
    }

    /// Packets that were made for the uplink, whether or not there was room for them at its other end.
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
        // Sent, and dropped while they were sent.
        counters[9] + counters[11]
    }

    /// Bytes that the uplink's queue believes to have sent.
    fn charged(&self) -> u64 {
        let stats = qdisc::stats_of(&self.queues, self.uplink).expect("the kernel tells");
        stats.iter().find(|stats| stats.kind == "htb").map_or(0, |stats| stats.bytes)
    }

    /// Packets in the uplink's queue and in each of its classes.
    fn queues(&self) -> Vec<(String, u64)> {
        let stats = qdisc::stats_of(&self.queues, self.uplink).expect("the kernel tells");
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

/// Keeps the calling thread where it is, so that what it sends comes in the order in which it was sent.
fn stay_on_this_cpu() {
    let mut cpus = CpuSet::new();
    cpus.set(sched_getcpu().expect("a CPU")).expect("a CPU");
    sched_setaffinity(Pid::from_raw(0), &cpus).expect("a thread may");
}

/// Whether a frame is one of the last so many that show an end, the newest of which has the number of all.
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
