//! What containers cost: time to add, list, change and remove them, the daemon's memory and files, by their number.

use std::{
    fmt::Write as _,
    fs,
    path::PathBuf,
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
use serde::Serialize;

use crate::{
    machine::Machine,
    text::{grouped, number, table},
};

/// Static ports of each container, and its ephemeral ones.
const PORTS: u16 = 16;
const BLOCK: u16 = 32;
/// How many interfaces get a program by each attach mode.
const ATTACHMENTS: usize = 50;
const FLAGS: [&str; 8] = [
    "--ports",
    "10000-29999",
    "--ephemeral-ports",
    "32768-65535",
    "--ephemeral-ports-per-container",
    "32",
    "--listen",
    "none",
];

/// Measures what containers cost, by their number.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// A tenth of the containers.
    #[arg(long)]
    quick: bool,
    /// Directory for raw data and report.
    #[arg(long, value_name = "DIR", default_value = "docs/benchmarks/containers")]
    output: PathBuf,
}

/// What the daemon has in use, and how long it takes to answer, with so many containers.
#[derive(Debug, Serialize)]
struct Level {
    containers: usize,
    /// Resident memory in bytes.
    resident: u64,
    /// Open files.
    files: usize,
    /// Milliseconds of each question.
    list: f64,
    stats: f64,
    doctor: f64,
}

#[derive(Debug, Serialize)]
struct Findings {
    machine: Machine,
    levels: Vec<Level>,
    /// Milliseconds of each of them, in the order in which they were done.
    add: Vec<f64>,
    update: Vec<f64>,
    delete: Vec<f64>,
    /// Milliseconds until a daemon is ready that finds all of them.
    ready: f64,
    /// Milliseconds until it has checked all of them.
    checked: f64,
    /// Milliseconds of a teardown of all of them.
    teardown: f64,
    /// Milliseconds in which the kernel deletes a veth pair, one after the other.
    veth: Vec<f64>,
    /// Milliseconds of putting a program into a hook, by attach mode.
    attach: Vec<(&'static str, Vec<f64>)>,
}

/// Measures.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let count = if arguments.quick { 100 } else { 1000 };
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
    ensure!(found == count, "{found} containers are found again: expected {count}");
    let delete =
        (0..count).map(|number| Ok(timed(|| client.delete(&name(number)))?.0)).collect::<Result<_>>()?;
    levels.push(level(&daemon, &client)?);
    let veth = veths(&sandbox)?;
    // While the programs are pinned.
    let attach = [AttachMode::Tcx, AttachMode::Clsact]
        .map(|attach_mode| Ok((attach_mode.name(), attach(&sandbox, attach_mode)?)))
        .into_iter()
        .collect::<Result<_>>()?;
    for number in 0..count {
        let request = AddRequest { name: name(number), ports: ports(number, PORTS), ..AddRequest::default() };
        client.add(&request)?;
    }
    let teardown = timed(|| client.teardown())?.0;
    daemon.wait();
    let findings = Findings {
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
    };
    fs::create_dir_all(&arguments.output)
        .with_context(|| format!("cannot make {}", arguments.output.display()))?;
    let report = report(&findings)?;
    let json = serde_json::to_string(&findings).context("cannot write the findings as JSON")?;
    for (name, contents) in [("findings.json", json + "\n"), ("report.md", report.clone())] {
        let file = arguments.output.join(name);
        fs::write(&file, contents).with_context(|| format!("cannot write {}", file.display()))?;
    }
    println!("{report}");
    Ok(())
}

/// How long the kernel takes to delete a veth pair between two namespaces, for each of several.
fn veths(sandbox: &Sandbox) -> Result<Vec<f64>> {
    sandbox.sh(Netns::Host, "ip netns add other");
    let times = (0..ATTACHMENTS)
        .map(|_| {
            let make = "ip link add one type veth peer name two netns other; ip link set one up; ip -n other link set two up";
            sandbox.sh(Netns::Host, make);
            // The command's own time is a millisecond or two of it.
            timed(|| Ok::<_, portmap::error::Error>(sandbox.sh(Netns::Host, "ip link del one"))).map(|(time, _)| time)
        })
        .collect();
    sandbox.sh(Netns::Host, "ip netns del other");
    times
}

/// How long it takes to put a program into the hook of an interface that has none, for each of several.
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
    let (doctor, _) = timed(|| client.doctor())?;
    let (containers, files) = (containers.len(), daemon.open_files());
    Ok(Level { containers, resident, files, list, stats, doctor })
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn report(findings: &Findings) -> Result<String> {
    let Findings { machine, levels, add, update, delete, ready, checked, teardown, veth, attach } = findings;
    let mut text = String::from("# What containers cost\n\n");
    writeln!(
        text,
        "{}, {} CPUs, Linux {}. Each container has {PORTS} static ports and a block of {BLOCK}, and the host's IPv4 and IPv6 \
         address. Times are those of a client on the daemon's socket, one command after the other.\n",
        machine.cpu, machine.cpus, machine.kernel
    )?;
    let mut rows = table(&["", "median, ms", "first tenth", "last tenth", "all, s"]);
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
    let mut rows = table(&["containers", "resident, MB", "files", "list, ms", "stats, ms", "doctor, ms"]);
    for level in levels {
        #[expect(clippy::cast_precision_loss, reason = "far from 2^52")]
        rows.add_row([
            level.containers.to_string(),
            number(level.resident as f64 / 1e6),
            level.files.to_string(),
            number(level.list),
            number(level.stats),
            number(level.doctor),
        ]);
    }
    writeln!(text, "{rows}\n\nThe last line is the next daemon, after all of them have been removed.\n")?;
    writeln!(
        text,
        "A daemon that finds {} containers is ready after {} ms, and has checked them after {} ms. A teardown removes them in \
         {} ms. The kernel alone deletes a veth pair in {} ms (median of {ATTACHMENTS}, one after the other).\n",
        add.len(),
        grouped(*ready),
        grouped(*checked),
        grouped(*teardown),
        number(median(veth))
    )?;
    let [links, filters] = attach.as_slice() else { return Ok(text) };
    writeln!(
        text,
        "Putting one program into a hook takes {} ms by a pinned link ({}), because the kernel waits until all CPUs have seen \
         it, and {} ms by a filter of the qdisc {}, that qdisc included (median of {ATTACHMENTS}). A container has three, or \
         two without IPv6.",
        number(median(&links.1)),
        links.0,
        number(median(&filters.1)),
        filters.0
    )?;
    Ok(text)
}
