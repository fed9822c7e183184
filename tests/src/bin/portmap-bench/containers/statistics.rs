//! The cost of statistics: of all counters, and of everything that `/metrics` and `/monitor/statistics` contain.

use std::{
    fmt::Write as _,
    fs,
    io::{self, Read as _, Write as _},
    net::{TcpListener, UdpSocket},
    os::unix::net::UnixStream,
    path::Path,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use portmap::{
    api::AddRequest,
    client::Client,
    kernel::maps::Maps,
    model::TrafficSpec,
    paths::{Pins, StateDir},
};
use portmap_tests::sandbox::{Netns, Sandbox};
use serde::{Deserialize, Serialize};

use super::{FLAGS, PORTS, median, milliseconds, name, ports, timed};
use crate::text::{grouped, number, table};

/// Requests of each kind.
const REQUESTS: usize = 11;
/// Pause between two requests.
const PAUSE: Duration = Duration::from_secs(3);
/// The groups that the other measurements do not enable.
const ALL_GROUPS: [&str; 5] = [
    "--network-enable-rate-statistics",
    "--network-rate-statistics-window",
    "60secs",
    "--network-rate-statistics-interval",
    "1secs",
];
/// A limit in each direction, in bytes per second.
const LIMIT: u64 = 12_500_000;

/// Goals: milliseconds for the counters and for everything, and readings for two scrapers.
const COUNTERS_GOAL: f64 = 1.0;
const EVERYTHING_GOAL: f64 = 100.0;
const READINGS_GOAL: f64 = 1.0;

/// What statistics cost with a number of containers. Times are in milliseconds.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Cost {
    containers: usize,
    /// Reading all counters from the maps.
    counters: Vec<f64>,
    /// `/v1/stats`, `/metrics` and `/monitor/statistics`, until the last byte has arrived.
    stats: Vec<f64>,
    metrics: Vec<f64>,
    monitor: Vec<f64>,
    /// CPU time of the daemon for each request of `/monitor/statistics`, the reading included.
    monitor_cpu: Vec<f64>,
    /// Rounds of readings that two requests at the same time caused.
    rounds_of_two: Vec<f64>,
}

/// Measures with limits, sockets and all groups of statistics.
pub(super) fn measure(count: usize) -> Result<Cost> {
    let sandbox = Sandbox::new();
    sandbox.sh(Netns::Host, "echo 2000 9000 > /proc/sys/net/ipv4/ip_local_port_range");
    let daemon = sandbox.daemon_with(&[&FLAGS[..], &ALL_GROUPS].concat());
    let client = Client::new(&StateDir::new(sandbox.path("/run/portmap")))?;
    let mut sockets = Vec::new();
    for number in 0..count {
        let traffic =
            TrafficSpec { egress_rate: Some(LIMIT), ingress_rate: Some(LIMIT), ..TrafficSpec::default() };
        let (name, ports) = (name(number), ports(number, PORTS));
        let port = ports.iter().next().context("a container has ports")?;
        client.add(&AddRequest { name: name.clone(), ports, traffic, ..AddRequest::default() })?;
        let open = || -> io::Result<_> {
            Ok((TcpListener::bind(("0.0.0.0", port))?, UdpSocket::bind(("0.0.0.0", port))?))
        };
        sockets.push(sandbox.inside(Netns::Container(&name), open)?);
    }
    eprintln!("statistics of {count} containers");
    let socket = sandbox.path("/run/portmap/portmapd.sock");
    let get = |path: &str| get(&socket, path);
    let maps = Maps::open(&Pins::new(sandbox.path("/sys/fs/bpf/portmap")))?;
    let slots = (0..=u16::try_from(count)?).collect();
    let mut cost = Cost {
        containers: count,
        counters: Vec::new(),
        stats: Vec::new(),
        metrics: Vec::new(),
        monitor: Vec::new(),
        monitor_cpu: Vec::new(),
        rounds_of_two: Vec::new(),
    };
    for _ in 0..REQUESTS {
        cost.counters.push(timed(|| maps.slot_counts(&slots))?.0);
        for (path, times) in [("/v1/stats", &mut cost.stats), ("/metrics", &mut cost.metrics)] {
            thread::sleep(PAUSE);
            let start = Instant::now();
            get(path)?;
            times.push(milliseconds(start.elapsed()));
        }
        thread::sleep(PAUSE);
        let (start, cpu) = (Instant::now(), cpu_time(daemon.pid())?);
        let everything = get("/monitor/statistics")?;
        cost.monitor.push(milliseconds(start.elapsed()));
        let has = everything.matches("net_rate_statistics").count();
        ensure!(has == count, "{has} of {count} containers are in /monitor/statistics");
        // The rest of the reading, and as much of the samples of rates as there is in that time.
        thread::sleep(PAUSE / 6);
        cost.monitor_cpu.push(cpu_time(daemon.pid())? - cpu);
        let before = rounds(&get("/metrics")?)?;
        // A reading is used again for four times its duration, so most of the time none is young enough now.
        thread::sleep(PAUSE * 3);
        let barrier = Barrier::new(2);
        thread::scope(|scope| {
            let scrape = || {
                barrier.wait();
                get("/monitor/statistics").map(drop)
            };
            let both = [scope.spawn(scrape), scope.spawn(scrape)];
            both.into_iter()
                .try_for_each(|thread| thread.join().map_err(|_panic| anyhow!("a scraper failed"))?)
        })?;
        // This request uses their round, too.
        cost.rounds_of_two.push(rounds(&get("/metrics")?)? - before);
    }
    drop(sockets);
    client.teardown()?;
    daemon.wait();
    Ok(cost)
}

/// The body of a response of the daemon.
fn get(socket: &Path, path: &str) -> Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut response = String::new();
    stream.read_to_string(&mut response)?;
    let (head, body) = response.split_once("\r\n\r\n").context("a response has a head")?;
    ensure!(head.contains(" 200 "), "{path}: {head}");
    Ok(body.to_owned())
}

/// The number of rounds of readings.
fn rounds(metrics: &str) -> Result<f64> {
    let line = metrics.lines().find_map(|line| line.strip_prefix("portmap_collector_rounds_total "));
    Ok(line.context("/metrics has the number of rounds")?.parse()?)
}

/// CPU time of a process in milliseconds.
fn cpu_time(pid: u32) -> Result<f64> {
    // The kernel's unit here is a hundredth of a second; these are nanoseconds.
    let mut nanoseconds = 0.0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
        nanoseconds += text.split(' ').next().and_then(|first| first.parse::<f64>().ok()).unwrap_or_default();
    }
    Ok(nanoseconds / 1e6)
}

/// Writes the section of the report.
pub(super) fn report(text: &mut String, cost: &Cost) -> Result<()> {
    let Cost { containers, counters, stats, metrics, monitor, monitor_cpu, rounds_of_two } = cost;
    writeln!(
        text,
        "\n## Statistics\n\n{} containers with a limit in each direction, a TCP and a UDP socket, and all groups of \
         statistics. A scraper on the socket reads the response to its end; between two requests are {} s. Medians \
         of {REQUESTS}.\n",
        grouped(f64::from(u32::try_from(*containers)?)),
        PAUSE.as_secs()
    )?;
    let mut rows = table(&["what", "ms"]);
    for (what, times) in [
        ("all counters, read from the maps", counters),
        ("`/v1/stats`", stats),
        ("`/metrics`", metrics),
        ("`/monitor/statistics`", monitor),
        ("CPU time of the daemon for `/monitor/statistics` with its reading", monitor_cpu),
    ] {
        rows.add_row([what.to_owned(), number(median(times))]);
    }
    writeln!(text, "{rows}\n")?;
    let mut goals = table(&["goal", "measured", "met"]);
    // The worst of all, because a median can be that of requests for which no reading was due.
    let worst = |values: &[f64]| values.iter().copied().fold(0.0, f64::max);
    for (goal, measured, limit, unit) in [
        ("reading all counters takes at most 1 ms (median)", median(counters), COUNTERS_GOAL, " ms"),
        ("`/monitor/statistics` takes at most 100 ms (slowest)", worst(monitor), EVERYTHING_GOAL, " ms"),
        ("two scrapers at once cause at most one reading (most)", worst(rounds_of_two), READINGS_GOAL, ""),
    ] {
        let met = if measured <= limit { "yes" } else { "**no**" };
        goals.add_row([goal.to_owned(), format!("{}{unit}", number(measured)), met.to_owned()]);
    }
    writeln!(text, "{goals}")?;
    Ok(())
}
