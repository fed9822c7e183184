//! The host, its containers, the observers, and what becomes of a batch of frames there.

use std::{
    collections::BTreeMap,
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
    sandbox::{Place, Sandbox},
    wait,
};

use crate::{
    entry::{self, Entries, LARGEST, Shot},
    frames::{FIRST_PORT, HONEST_PORT, PATTERN},
    judge::{At, Judge, MOST_SEGMENTS, number_of},
    reading::{ETHERNET, WITH_PORTS, packet},
    sockets::{Received, Socket},
};

const A: Place<'_> = Place::Container("a");
/// The slot of the container that attacks.
const SLOT: u16 = 1;
/// What may come too early for a limit, see `docs/shaping.md`: 128 KiB, and 50 ms; and one frame that came in time, with as
/// many segments as it may have.
const SLACK: u64 = 128 << 10;
const LATE: Duration = Duration::from_millis(50);
const ONE_MORE: u64 = (MOST_SEGMENTS * LARGEST) as u64;
/// Packets that the container's own stack may have sent meanwhile.
const UNASKED: u64 = 4;
/// After this long a frame that shows the end is taken for lost, and sent again.
const PATIENCE: Duration = Duration::from_millis(300);

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
    const fn at(&self, at: At) -> (u64, u64) {
        match at {
            At::Outside => self.outside,
            At::Host => self.host,
            At::Other => self.container,
        }
    }
}

/// An observer.
struct Witness {
    at: At,
    frames: Socket,
    /// Raw sockets, each with whether it is of IPv6.
    whole: Vec<(bool, Socket)>,
}

/// A host with a container that attacks, and everybody who watches.
pub(crate) struct World {
    _sandbox: Sandbox,
    _daemon: Daemon,
    maps: Maps,
    entries: Entries,
    witnesses: Vec<Witness>,
    queues: Netlink,
    uplink: u32,
    /// Packets of the host's own that went by its queue before that had classes.
    early: u64,
    /// The host's interfaces with their counters.
    interfaces: File,
    /// Bytes that its queue believed to have sent when the last batch was over.
    charged: u64,
    judge: Judge,
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
    pub(crate) troubles: Troubles,
    /// Which batch is being sent, as those say who want to see it again.
    pub(crate) at: String,
}

/// What is wrong: the first of each kind.
#[derive(Debug, Default)]
pub(crate) struct Troubles(BTreeMap<String, String>);

impl Troubles {
    /// Notes a trouble, unless one was noted that differs in numbers only.
    fn note(&mut self, trouble: &str, told: impl FnOnce() -> String) {
        let mut kind: String = trouble.chars().take(60).filter(|letter| !letter.is_ascii_digit()).collect();
        // Which address or port it is, is no difference.
        for word in [" source", " destination", " port", " tag", " ICMP error"] {
            if let Some(place) = kind.find(word) {
                kind.truncate(place + word.len() + 5);
            }
        }
        if self.0.len() < 24 {
            self.0.entry(kind).or_insert_with(told);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn told(&self) -> String {
        self.0.values().flat_map(|trouble| ["\n\n", trouble]).collect()
    }
}

impl World {
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
            Place::Host,
            "ip neigh replace 10.0.0.2 lladdr 02:00:00:00:01:02 dev uplink nud permanent
             ip neigh replace 2001:db8:0:1::2 lladdr 02:00:00:00:01:02 dev uplink nud permanent
             tc qdisc add dev uplink root handle 1: htb default 10
             for c in 10 20; do
               tc class add dev uplink parent 1: classid 1:$c htb rate 30gbit burst 20mb cburst 20mb quantum 60000
             done",
        );
        // Outside takes what is larger than the uplink's MTU, or nobody would see it.
        sandbox.sh(Place::Outside, "ip link set eth0 mtu 65000");
        if rate.is_some() {
            // Its root can do without it.
            sandbox.sh(A, "tc qdisc del dev eth0 root");
        }
        sandbox.inside(Place::Host, || entry::without_offloads("uplink"));
        let entries = Entries::open(&sandbox, A);
        let witness = |at, place, interface: &str| {
            sandbox.inside(place, || {
                let raw = |is_ipv6| WITH_PORTS.map(|protocol| (is_ipv6, Socket::raw(is_ipv6, protocol)));
                let whole = [false, true].into_iter().flat_map(raw).collect();
                Witness { at, frames: Socket::witness(interface), whole }
            })
        };
        let witnesses = vec![
            witness(At::Outside, Place::Outside, "eth0"),
            witness(At::Host, Place::Host, "lo"),
            witness(At::Other, Place::Container("b"), "eth0"),
        ];
        let (queues, uplink, interfaces) = sandbox.inside(Place::Host, || {
            let index = nix::net::if_::if_nametoindex("uplink").expect("the interface exists");
            let interfaces = File::open("/proc/thread-self/net/dev").expect("a file");
            (Netlink::open().expect("a connection"), index, interfaces)
        });
        let maps = Maps::open(&Pins::new(sandbox.path("/sys/fs/bpf/portmap"))).expect("the daemon's maps");
        stay_on_this_cpu();
        let mut world = Self {
            _sandbox: sandbox,
            _daemon: daemon,
            maps,
            entries,
            witnesses,
            queues,
            uplink,
            early: 0,
            interfaces,
            charged: 0,
            judge: Judge::new(ephemeral, block(&b)),
            ephemeral,
            limit,
            start: Instant::now(),
            fences: 0,
            is_late: false,
            sent: 0,
            refused: 0,
            seen: 0,
            troubles: Troubles::default(),
            at: String::new(),
        };
        let queues = world.queues();
        let packets = |kind: &str| {
            queues.iter().filter(|(name, _)| name == kind).map(|(_, packets)| packets).sum::<u64>()
        };
        world.early = packets("htb").saturating_sub(packets("class 1:10"));
        world
    }

    /// Sends a batch and judges what becomes of it; an error if the world is not as it was made. Returns how many of its
    /// packets have not been dropped, at least.
    pub(crate) fn fire(&mut self, shots: &[Shot]) -> Result<u64, String> {
        let (before, made) = (self.counts(), self.made());
        self.judge.begin();
        self.judge.expect(shots.iter().filter_map(|shot| shot.begins));
        let was_late = self.is_late;
        let (mut least, mut most) = (0, Some(0));
        for shot in shots {
            self.sent += 1;
            if self.entries.send(shot).is_ok() {
                least += shot.least;
                most = most.zip(shot.most).map(|(most, more)| most + more);
            } else {
                self.refused += 1;
            }
        }
        if self.limit.is_some() {
            // What shows the end would be dropped as well as anything else, so only the sum counts.
            self.drain(shots, self.fences);
            if let Some(trouble) = self.over_limit() {
                self.troubles.note(&trouble, || format!("{}: {trouble}\nlast of:{}", self.at, listed(shots)));
            }
            return Ok(0);
        }
        let fences = self.look(shots)?;
        least += 1;
        most = most.map(|most| most + fences + UNASKED + if was_late { fences } else { 0 });
        let (after, made) = (self.counts(), self.made() - made);
        let is_whole = !shots.iter().any(Shot::is_cut);
        let mut troubles = self.compare(&before, &after, least, most, is_whole);
        let whole = after.outside.0 - before.outside.0;
        if made > whole.max(1) * MOST_SEGMENTS as u64 {
            troubles.push(format!("{made} segments are made of {whole} frames"));
        }
        // What the operator's queue takes a frame for is time in which nobody else sends.
        let charged = self.charged();
        let more = charged - self.charged;
        self.charged = charged;
        if more > whole.max(1) * (MOST_SEGMENTS * LARGEST) as u64 {
            troubles.push(format!("{whole} frames are taken for {more} bytes by the uplink's queue"));
        }
        for trouble in troubles {
            self.troubles.note(&trouble, || format!("{}: {trouble}\nof one of:{}", self.at, listed(shots)));
        }
        let left = |counts: &Counts| counts.total() - counts.dropped;
        Ok((left(&after) - left(&before)).saturating_sub(fences))
    }

    /// What the host has counted, compared with what was sent and with what was seen.
    fn compare(
        &self,
        before: &Counts,
        after: &Counts,
        least: u64,
        most: Option<u64>,
        is_whole: bool,
    ) -> Vec<String> {
        let mut troubles = Vec::new();
        let counted = after.total() - before.total();
        // What is over the limit is dropped, and counted, as well.
        if counted < least || most.is_some_and(|most| counted > most) {
            let range =
                format!("{least} to {}", most.map_or("any number".to_owned(), |most| most.to_string()));
            troubles.push(format!("{counted} packets are counted, of {range}: {before:?}, {after:?}"));
        }
        for at in At::ALL {
            let sum = self.judge.sums[at as usize];
            let ((packets, bytes), (packets_before, bytes_before)) = (after.at(at), before.at(at));
            let (packets, bytes) = (packets - packets_before, bytes - bytes_before);
            // What is cut later has more packets and headers than were counted.
            let is_whole = at != At::Outside || is_whole;
            if sum.payload > bytes || (is_whole && (sum.packets > packets || sum.bytes > bytes)) {
                troubles.push(format!(
                    "{at:?}: {packets} packets with {bytes} bytes are counted, and {sum:?} is seen"
                ));
            }
        }
        let marked = self.entries.marked();
        if marked != 0 {
            troubles.push(format!("{marked} packets leave with a mark"));
        }
        let queues = self.queues();
        let packets =
            |kind: &str| queues.iter().find(|(name, _)| name == kind).map_or(0, |(_, packets)| *packets);
        // What has no class is in none of them. They are read after the queue itself.
        if packets("class 1:20") > 0 || packets("htb") > packets("class 1:10") + self.early {
            troubles.push(format!("packets in classes that are the operator's to choose: {queues:?}"));
        }
        troubles
    }

    /// Says so if more has been seen than the limit allows.
    fn over_limit(&self) -> Option<String> {
        let (rate, burst) = self.limit?;
        let time = self.start.elapsed() + LATE;
        let allowed = u128::from(rate) * time.as_micros() / 1_000_000 + u128::from(burst + SLACK + ONE_MORE);
        let total = self.judge.total;
        (u128::from(total) > allowed)
            .then(|| format!("{total} bytes in {time:?}, of which {allowed} are allowed"))
    }

    /// Looks at everything that arrives until a frame that was sent last has.
    fn look(&mut self, shots: &[Shot]) -> Result<u64, String> {
        let entry = shots[0].entry;
        let (mut fences, first) = (0, self.fences);
        let start = Instant::now();
        let mut sent = None::<Instant>;
        self.is_late = false;
        loop {
            if sent.is_none_or(|sent| sent.elapsed() > PATIENCE) {
                self.is_late = fences > 0;
                self.fences += 1;
                fences += 1;
                match self.entries.send(&Shot::honest(entry, u32::MAX - self.fences)) {
                    // A slow machine still has the batch before it.
                    Err(error) if !matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN)) => {
                        return Err(format!("{error}"));
                    }
                    _ => {}
                }
                sent = Some(Instant::now());
            }
            if self.drain(shots, first) {
                // What came to the others was there before it.
                self.drain(shots, first);
                return Ok(fences);
            }
            if start.elapsed() > wait::LIMIT {
                return Err(format!("a frame without fault does not arrive by {entry:?}"));
            }
            thread::sleep(Duration::from_micros(200));
        }
    }

    /// Judges all that has arrived; true if the frame is among it that shows the end.
    fn drain(&mut self, shots: &[Shot], first: u32) -> bool {
        let mut buffer = vec![0; 1 << 17];
        let mut control = vec![0; 256];
        let mut is_over = false;
        for Witness { at, frames, whole } in &self.witnesses {
            while let Some(received) = frames.receive(&mut buffer, &mut control) {
                self.seen += 1;
                if let Err(trouble) = self.judge.frame(*at, &received) {
                    self.troubles.note(&format!("{at:?}: {trouble}"), || {
                        format!("{}: {}", self.at, told(*at, &received, &trouble, shots))
                    });
                }
                is_over |= is_fence(&received.bytes, self.fences, self.fences - first);
            }
            for (is_ipv6, socket) in whole {
                while let Some(received) = socket.receive(&mut buffer, &mut control) {
                    if let Err(trouble) = self.judge.whole(*at, *is_ipv6, &received) {
                        self.troubles.note(&format!("{at:?}: {trouble}"), || {
                            format!("{}: {}", self.at, told(*at, &received, &trouble, shots))
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
        let pair = |tally: portmap_common::counters::PacketCount| (tally.packets, tally.bytes);
        Counts {
            outside: pair(counters.tx_outside),
            host: pair(counters.tx_host),
            container: pair(counters.tx_container),
            dropped: Reason::ALL.iter().map(|reason| drops.get(*reason)).sum(),
        }
    }

    /// Packets that were made for the uplink, whether or not there was room for them at its other end.
    fn made(&self) -> u64 {
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
    u16::from_be_bytes([*p, *q]) == HONEST_PORT
        && (u32::MAX - newest..u32::MAX - newest + how_many).contains(&number)
}

/// What is wrong with what was seen, and with which frame that was sent.
fn told(at: At, received: &Received, trouble: &str, shots: &[Shot]) -> String {
    let bytes = &received.bytes;
    let number =
        number_of(bytes, shots[0].number).or_else(|| by_port(bytes).map(|index| shots[0].number + index));
    let sent = number.and_then(|number| shots.iter().find(|shot| shot.number == number));
    let sent = sent.map_or_else(|| listed(shots), |shot| format!("\n  {shot}"));
    let shown = entry::hex(&bytes[..bytes.len().min(256)]);
    format!("{at:?}: {trouble}: {} bytes: {shown}\nof:{sent}", bytes.len())
}

/// The place in its batch of what went to a port of its own.
fn by_port(frame: &[u8]) -> Option<u32> {
    let (header, rest) = frame.split_first_chunk::<ETHERNET>()?;
    let (_, to) = packet(rest, header[12] == 0x86, false).ok()?.ports()?;
    to.checked_sub(FIRST_PORT).map(u32::from)
}

fn listed(shots: &[Shot]) -> String {
    shots.iter().flat_map(|shot| ["\n  ".to_owned(), shot.to_string()]).collect()
}
