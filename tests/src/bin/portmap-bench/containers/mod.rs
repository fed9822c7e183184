//! Scaling with the number of containers: time to add, list, change and remove them, memory and files of the
//! daemon, and the cost of statistics.

mod statistics;

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use portmap::{
    api::{AddRequest, UpdateRequest},
    client::Client,
    kernel::{
        netlink::Netlink,
        programs::{self, AttachMode, AttachPoint},
    },
    model::{PortRange, PortSet, TrafficSpec},
    paths::{Pins, StateDir},
};
use portmap_common::names::PROG_VETH_INGRESS;
use portmap_tests::{
    daemon::Daemon,
    sandbox::{Netns, Sandbox},
};
use serde::{Deserialize, Serialize};

use crate::{
    machine::Machine,
    text::{grouped, number, table, wrapped},
};

/// Static ports of each container, and its ephemeral ones.
const PORTS: u16 = 16;
const BLOCK: u16 = 32;
/// Interfaces that get a program in each attach mode.
const ATTACHMENTS: usize = 50;
const FLAGS: [&str; 11] = [
    "--ports",
    "10000-29999",
    "--ephemeral-ports",
    "32768-65535",
    "--ephemeral-ports-per-container",
    "32",
    "--listen",
    "none",
    "--network-enable-socket-statistics-summary",
    "--network-enable-socket-statistics-details",
    "--network-enable-snmp-statistics",
];

/// Measures the scaling with the number of containers.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Use a tenth of the containers.
    #[arg(long)]
    quick: bool,
    /// Measure only the cost of statistics, and write no file.
    #[arg(long, conflicts_with = "redraw")]
    statistics: bool,
    /// Directory for raw data and report.
    #[arg(long, value_name = "DIR", default_value = "docs/benchmarks/containers")]
    output: PathBuf,
    /// Write the report again from the findings in the output directory, without measuring.
    #[arg(long, conflicts_with = "quick")]
    redraw: bool,
}

/// Resources and response times of the daemon with a number of containers.
#[derive(Debug, Serialize, Deserialize)]
struct Level {
    containers: usize,
    /// Resident memory in bytes.
    resident: u64,
    /// Open files.
    files: usize,
    /// Response times in milliseconds.
    list: f64,
    stats: f64,
    /// `/monitor/statistics` with the statistics of sockets and protocols; earlier findings lack it.
    #[serde(default)]
    monitor: Option<f64>,
    doctor: f64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Findings {
    machine: Machine,
    levels: Vec<Level>,
    /// Milliseconds of each command, in the order of execution.
    add: Vec<f64>,
    update: Vec<f64>,
    delete: Vec<f64>,
    /// Milliseconds until a daemon that restores all containers is ready.
    ready: f64,
    /// Milliseconds until it has checked all containers.
    checked: f64,
    /// Milliseconds of a teardown of all containers.
    teardown: f64,
    /// Milliseconds of the kernel's deletion of a veth pair, one after the other.
    veth: Vec<f64>,
    /// Milliseconds of attaching a program, by attach mode.
    attach: Vec<(String, Vec<f64>)>,
    /// Earlier findings lack it.
    #[serde(default)]
    statistics: Option<statistics::Cost>,
}

/// Measures, or reads earlier findings, and writes the report.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if arguments.statistics {
        let mut text = String::new();
        statistics::report(&mut text, &statistics::measure(if arguments.quick { 100 } else { 1000 })?)?;
        println!("{}", wrapped(&text));
        return Ok(());
    }
    let file = arguments.output.join("findings.json");
    let findings = if arguments.redraw {
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} has no findings", file.display()))?
    } else {
        let findings = measure(if arguments.quick { 100 } else { 1000 })?;
        fs::create_dir_all(&arguments.output)
            .with_context(|| format!("cannot make {}", arguments.output.display()))?;
        let json = serde_json::to_string(&findings).context("cannot write the findings as JSON")?;
        write(&file, json + "\n")?;
        findings
    };
    let report = wrapped(&report(&findings)?);
    write(&arguments.output.join("report.md"), report.clone())?;
    println!("{report}");
    Ok(())
}

fn write(file: &Path, contents: String) -> Result<()> {
    fs::write(file, contents).with_context(|| format!("cannot write {}", file.display()))
}

fn measure(count: usize) -> Result<Findings> {
    let sandbox = Sandbox::new();
    sandbox.sh(Netns::Host, "echo 2000 9000 > /proc/sys/net/ipv4/ip_local_port_range");
    let daemon = sandbox.daemon_with(&FLAGS);
    let client = Client::new(&StateDir::new(sandbox.path("/run/portmap")))?;
    let mut levels = vec![level(&daemon, &client)?];
    let mut add = Vec::new();
    for number in 0..count {
        let request = AddRequest { name: name(number), ports: ports(number, PORTS), ..AddRequest::default() };
        add.push(timed(|| client.add(&request))?.0);
        if [count / 10, count].contains(&(number + 1)) {
            eprintln!("{} containers", number + 1);
            levels.push(level(&daemon, &client)?);
        }
    }
    let update = (0..count)
        .map(|number| {
            let traffic = TrafficSpec::default();
            let request =
                UpdateRequest { ports: Some(ports(number, PORTS / 2)), traffic, ..UpdateRequest::default() };
            Ok(timed(|| client.update(&name(number), &request))?.0)
        })
        .collect::<Result<_>>()?;
    daemon.kill();
    let start = Instant::now();
    let mut daemon = sandbox.start_daemon(&FLAGS);
    ensure!(daemon.wait_ready(), "the daemon does not start: {}", daemon.log());
    let ready = milliseconds(start.elapsed());
    daemon.wait_checked();
    let checked = milliseconds(start.elapsed());
    let found = client.list()?.len();
    ensure!(found == count, "{found} containers are restored: expected {count}");
    let delete =
        (0..count).map(|number| Ok(timed(|| client.delete(&name(number)))?.0)).collect::<Result<_>>()?;
    levels.push(level(&daemon, &client)?);
    let veth = veths(&sandbox)?;
    // While the programs are pinned.
    let attach = [AttachMode::Tcx, AttachMode::Clsact]
        .map(|attach_mode| Ok((attach_mode.name().to_owned(), attach(&sandbox, attach_mode)?)))
        .into_iter()
        .collect::<Result<_>>()?;
    for number in 0..count {
        let request = AddRequest { name: name(number), ports: ports(number, PORTS), ..AddRequest::default() };
        client.add(&request)?;
    }
    let teardown = timed(|| client.teardown())?.0;
    daemon.wait();
    Ok(Findings {
        machine: Machine::read()?,
        levels,
        add,
        update,
        delete,
        ready,
        checked,
        teardown,
        veth,
        attach,
        statistics: Some(statistics::measure(count)?),
    })
}

/// Measures the deletion of veth pairs between two namespaces by the kernel.
fn veths(sandbox: &Sandbox) -> Result<Vec<f64>> {
    sandbox.sh(Netns::Host, "ip netns add other");
    let times = (0..ATTACHMENTS)
        .map(|_| {
            let make = "ip link add one type veth peer name two netns other
                        ip link set one up
                        ip -n other link set two up";
            sandbox.sh(Netns::Host, make);
            // This includes the command, which takes one or two milliseconds.
            timed(|| Ok::<_, portmap::error::Error>(sandbox.sh(Netns::Host, "ip link del one")))
                .map(|(time, _)| time)
        })
        .collect();
    sandbox.sh(Netns::Host, "ip netns del other");
    times
}

/// Measures attaching a program to interfaces that have none.
fn attach(sandbox: &Sandbox, attach_mode: AttachMode) -> Result<Vec<f64>> {
    let pins = Pins::new(sandbox.path("/sys/fs/bpf/portmap"));
    let name = attach_mode.name();
    (0..ATTACHMENTS)
        .map(|number| {
            let interface = format!("{name}{number}");
            sandbox.sh(Netns::Host, &format!("ip link add {interface} up type veth peer name p-{interface}"));
            let link = pins.link(&interface);
            let hook =
                AttachPoint { interface, ingress: true, program: PROG_VETH_INGRESS, attach_mode, link };
            let attached = || Netlink::open().and_then(|netlink| programs::attach(&netlink, &pins, &hook));
            Ok(sandbox.inside(Netns::Host, || timed(attached))?.0)
        })
        .collect()
}

fn name(number: usize) -> String {
    format!("c{number}")
}

/// The first `count` of a container's ports.
fn ports(number: usize, count: u16) -> PortSet {
    let first = 10_000 + u16::try_from(number).unwrap_or(0) * PORTS;
    PortRange::new(first, first + count - 1).map(PortSet::from).unwrap_or_default()
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn timed<T, E: std::error::Error + Send + Sync + 'static>(
    work: impl FnOnce() -> Result<T, E>,
) -> Result<(f64, T)> {
    let start = Instant::now();
    let result = work()?;
    Ok((milliseconds(start.elapsed()), result))
}

fn level(daemon: &Daemon, client: &Client) -> Result<Level> {
    let resident = daemon.resident();
    let (list, containers) = timed(|| client.list())?;
    let (stats, _) = timed(|| client.stats())?;
    let (monitor, _) = timed(|| client.monitor())?;
    let (doctor, _) = timed(|| client.doctor())?;
    let (containers, files) = (containers.len(), daemon.open_files());
    Ok(Level { containers, resident, files, list, stats, monitor: Some(monitor), doctor })
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn report(findings: &Findings) -> Result<String> {
    let Findings { machine, levels, add, update, delete, ready, checked, teardown, veth, attach, statistics } =
        findings;
    let mut text = String::from("# Scaling with the number of containers\n\n");
    writeln!(
        text,
        "{}, {} CPUs, Linux {}. Each container has {PORTS} static ports, a block of {BLOCK} ephemeral ports, and the \
         host's IPv4 and IPv6 address. A client on the daemon's socket measures the times, one command after the \
         other.\n",
        machine.cpu, machine.cpus, machine.kernel
    )?;
    let mut rows = table(&[
        "command",
        "median, ms",
        "median of the first tenth, ms",
        "median of the last tenth, ms",
        "all containers, s",
    ]);
    let tenth = add.len() / 10;
    for (what, times) in [("add", add), ("update --ports", update), ("del", delete)] {
        let (first, last) = (times.get(..tenth).unwrap_or_default(), times.get(times.len() - tenth..));
        rows.add_row([
            what.to_owned(),
            number(median(times)),
            number(median(first)),
            number(median(last.unwrap_or_default())),
            number(times.iter().sum::<f64>() / 1e3),
        ]);
    }
    writeln!(text, "{rows}\n")?;
    let mut rows = table(&[
        "containers",
        "resident, MB",
        "open files",
        "list, ms",
        "stats, ms",
        "/monitor, ms",
        "doctor, ms",
    ]);
    for level in levels {
        #[expect(clippy::cast_precision_loss, reason = "far from 2^52")]
        rows.add_row([
            level.containers.to_string(),
            number(level.resident as f64 / 1e6),
            level.files.to_string(),
            number(level.list),
            number(level.stats),
            level.monitor.map_or_else(|| "–".to_owned(), number),
            number(level.doctor),
        ]);
    }
    writeln!(text, "{rows}\n\nThe last row is the restarted daemon after the removal of all containers.\n")?;
    writeln!(
        text,
        "A daemon that restores {} containers is ready after {} ms and has checked them after {} ms. A teardown \
         removes them in {} ms. The kernel alone deletes a veth pair in {} ms (median of \
         {ATTACHMENTS}, one after the other).\n",
        add.len(),
        grouped(*ready),
        grouped(*checked),
        grouped(*teardown),
        number(median(veth))
    )?;
    let [links, filters] = attach.as_slice() else { return Ok(text) };
    writeln!(
        text,
        "Attaching one program takes {} ms with a pinned link ({}), because the kernel waits until every CPU has seen \
         it, and {} ms with a filter of the qdisc {}, including that qdisc (medians of {ATTACHMENTS}). A container has \
         three programs, or two without IPv6.",
        number(median(&links.1)),
        links.0,
        number(median(&filters.1)),
        filters.0
    )?;
    if let Some(cost) = statistics {
        statistics::report(&mut text, cost)?;
    }
    Ok(text)
}
