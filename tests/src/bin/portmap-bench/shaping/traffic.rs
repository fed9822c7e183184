//! Traffic: streams at full speed, and requests with replies.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use portmap_tests::sandbox::{Netns, OUTSIDE, Sandbox};
use serde::{Deserialize, Serialize};

/// Interval at which a thread checks whether it must stop.
const BLINK: Duration = Duration::from_millis(100);
/// Bytes of a write or a read.
const CHUNK: usize = 1 << 18;
/// Bytes of payload in a datagram.
const DATAGRAM: usize = 1448;
/// Bytes of an Ethernet header.
const ETHERNET: u64 = 14;
/// Bytes of payload in a full TCP segment with a timestamp.
const SEGMENT: u64 = 1448;
/// Bytes of the headers of a TCP segment with a timestamp: Ethernet, IPv4, TCP.
const SEGMENT_HEADERS: u64 = ETHERNET + 20 + 32;

/// A transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Transport {
    #[serde(rename = "TCP")]
    Tcp,
    #[serde(rename = "UDP")]
    Udp,
}

impl Transport {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }
}

/// Streams that send at full speed from a namespace to the outside. They end on drop.
#[derive(Debug)]
pub(crate) struct Bulk {
    /// Received bytes of payload.
    payload: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    /// Destination sockets of datagrams, which no thread reads.
    sinks: Vec<UdpSocket>,
}

impl Bulk {
    /// Starts a number of streams to a port outside. `at_most` limits the sum of all datagrams, in bits per
    /// second, because datagrams that a short queue drops only cost CPU time.
    pub(crate) fn start(
        (sandbox, from): (&Sandbox, Netns<'_>),
        transport: Transport,
        flows: u16,
        port: u16,
        at_most: Option<u64>,
    ) -> Result<Self> {
        let mut bulk =
            Self { payload: Arc::default(), stop: Arc::default(), threads: Vec::new(), sinks: Vec::new() };
        for flow in 0..flows {
            match transport {
                Transport::Tcp => bulk.stream(sandbox, from, port)?,
                Transport::Udp => {
                    bulk.datagrams(sandbox, from, port + flow, at_most.map(|most| most / u64::from(flows)))?;
                }
            }
        }
        Ok(bulk)
    }

    fn stream(&mut self, sandbox: &Sandbox, from: Netns<'_>, port: u16) -> Result<()> {
        let (mut sender, mut receiver) = connect(sandbox, from, port)?;
        sender.set_write_timeout(Some(BLINK))?;
        receiver.set_read_timeout(Some(BLINK))?;
        let chunk = vec![0x5a; CHUNK];
        self.until_stopped(move || {
            let _ = sender.write(&chunk);
        });
        let payload = Arc::clone(&self.payload);
        let mut buffer = vec![0; CHUNK];
        self.until_stopped(move || {
            let read = receiver.read(&mut buffer).unwrap_or_default();
            payload.fetch_add(read as u64, Ordering::Relaxed);
        });
        Ok(())
    }

    fn datagrams(
        &mut self,
        sandbox: &Sandbox,
        from: Netns<'_>,
        port: u16,
        at_most: Option<u64>,
    ) -> Result<()> {
        let open = |place, address| sandbox.inside(place, move || UdpSocket::bind(address));
        self.sinks.push(open(Netns::Outside, (OUTSIDE, port))?);
        let sender = open(from, (Ipv4Addr::UNSPECIFIED, 0))?;
        sender.connect((OUTSIDE, port))?;
        sender.set_write_timeout(Some(BLINK))?;
        let bits = DATAGRAM as u64 * 8 * 1_000_000_000;
        let pause = at_most.map(|most| Duration::from_nanos(bits / most.max(1)));
        let mut due = Instant::now();
        self.until_stopped(move || {
            if let Some(pause) = pause {
                let now = Instant::now();
                thread::sleep(due.saturating_duration_since(now));
                due = due.max(now) + pause;
            }
            let _ = sender.send(&[0x5a; DATAGRAM]);
        });
        Ok(())
    }

    fn until_stopped(&mut self, mut work: impl FnMut() + Send + 'static) {
        let stop = Arc::clone(&self.stop);
        self.threads.push(thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                work();
            }
        }));
    }

    /// Returns the bytes of payload received from all streams so far.
    pub(crate) fn payload(&self) -> u64 {
        self.payload.load(Ordering::Relaxed)
    }
}

impl Drop for Bulk {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Counters of the packets that have arrived outside, from the network namespace.
#[derive(Clone, Copy, Debug)]
struct Arrived {
    at: Instant,
    /// Packets; a GRO packet with several segments counts as one.
    packets: u64,
    /// Bytes from the IP header on.
    bytes: u64,
}

impl Arrived {
    fn read(sandbox: &Sandbox) -> Result<Self> {
        // The file of this thread, which reads it inside the other namespace.
        let read = |file: &str| fs::read_to_string(format!("/proc/thread-self/net/{file}"));
        let (snmp, netstat) = sandbox.inside(Netns::Outside, || (read("snmp"), read("netstat")));
        let (snmp, netstat, at) = (snmp?, netstat?, Instant::now());
        Ok(Self {
            at,
            packets: field(&snmp, "Ip:", "InReceives")?,
            bytes: field(&netstat, "IpExt:", "InOctets")?,
        })
    }

    /// Reads the counters right after the arrival of a packet, so that a measurement begins and ends with
    /// one.
    fn next(sandbox: &Sandbox) -> Result<Self> {
        let before = Self::read(sandbox)?;
        let patience = Instant::now() + Duration::from_secs(1);
        loop {
            let now = Self::read(sandbox)?;
            if now.packets != before.packets || now.at > patience {
                return Ok(now);
            }
            thread::sleep(Duration::from_micros(200));
        }
    }
}

/// Returns a counter of `/proc/net/snmp` or `/proc/net/netstat`, which have a line of names, then one of
/// values.
fn field(text: &str, group: &str, name: &str) -> Result<u64> {
    let mut lines = text.lines().filter(|line| line.starts_with(group));
    let (names, values) =
        lines.next().zip(lines.next()).with_context(|| format!("the kernel has no counters {group}"))?;
    let place = names.split(' ').position(|other| other == name);
    let value = place.and_then(|place| values.split(' ').nth(place)?.parse().ok());
    value.with_context(|| format!("the kernel has no counter {name}"))
}

/// Measures the throughput outside during a window, in bytes per second on the wire, including the Ethernet
/// headers of every segment.
pub(crate) fn rate_outside(sandbox: &Sandbox, transport: Transport, window: Duration) -> Result<f64> {
    let before = Arrived::next(sandbox)?;
    thread::sleep(window);
    let after = Arrived::next(sandbox)?;
    let packets = after.packets - before.packets;
    let bytes = after.bytes - before.bytes;
    let on_wire = match transport {
        // A GRO packet has one header in place of those of its segments. At full speed, all segments have
        // full size.
        Transport::Tcp => {
            let payload = bytes - packets * (SEGMENT_HEADERS - ETHERNET);
            payload + packets.max(payload / SEGMENT) * SEGMENT_HEADERS
        }
        Transport::Udp => bytes + packets * ETHERNET,
    };
    #[expect(clippy::cast_precision_loss, reason = "it is far from that large")]
    Ok(on_wire as f64 / (after.at - before.at).as_secs_f64())
}

/// Returns both ends of a connection from a namespace to the outside.
fn connect(sandbox: &Sandbox, from: Netns<'_>, port: u16) -> Result<(TcpStream, TcpStream)> {
    let listener = sandbox.inside(Netns::Outside, || TcpListener::bind((OUTSIDE, port)))?;
    let client = sandbox.inside(from, || TcpStream::connect((OUTSIDE, port)));
    let client = client.with_context(|| format!("{from:?} cannot connect"))?;
    let (server, _) = listener.accept()?;
    Ok((client, server))
}

/// Measures round trips of one byte from a namespace to the outside, for a duration.
pub(crate) fn round_trips(
    sandbox: &Sandbox,
    from: Netns<'_>,
    port: u16,
    during: Duration,
) -> Result<Vec<Duration>> {
    let (mut client, mut server) = connect(sandbox, from, port)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let echo = thread::spawn(move || {
        let mut byte = [0];
        while matches!(server.read(&mut byte), Ok(1)) && server.write_all(&byte).is_ok() {}
    });
    let mut times = Vec::new();
    let start = Instant::now();
    while start.elapsed() < during {
        let sent = Instant::now();
        client.write_all(&[1])?;
        client.read_exact(&mut [0])?;
        times.push(sent.elapsed());
        // Enough requests for percentiles, few enough to add no load.
        thread::sleep(Duration::from_millis(1));
    }
    drop(client);
    ensure!(echo.join().is_ok(), "the echo thread panicked");
    Ok(times)
}
