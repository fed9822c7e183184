//! Benchmarks of rate limits: their accuracy, the latency of a victim while other containers send at full
//! speed, the fairness of a shared uplink, and the packet loss of a change.
//!
//! All traffic is real and flows between namespaces. The uplink is a veth pair, which has no speed of its
//! own; scenarios that saturate the link have an HTB qdisc on the host that limits it to the link's speed.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use clap::Args;
use portmap_tests::{
    daemon::Daemon,
    sandbox::{DAEMON_FLAGS, Netns, Sandbox},
};
use serde::{Deserialize, Serialize};

mod changes;
mod cni;
mod fairness;
mod latency;
mod plot;
mod rates;
mod report;
mod traffic;

use crate::machine::Machine;

/// Precedes the findings in the output of a process that prints them.
const FINDINGS: &str = "findings: ";

/// Speed of the saturated link in bits per second, on real and on emulated machines.
const LINK: u64 = 1_000_000_000;
const EMULATED_LINK: u64 = 100_000_000;

/// Measures the accuracy of rate limits, and the isolation of neighbours.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Take a minute instead of several; short measurements of low rates are coarse.
    #[arg(long)]
    quick: bool,
    /// Directory for raw data, report and plots.
    #[arg(long, value_name = "DIR", default_value = "docs/benchmarks/shaping")]
    output: PathBuf,
    /// Print the findings in one line, for a report that another process writes.
    #[arg(long, hide = true)]
    print: bool,
    /// Output of a process that printed its findings, which the report includes.
    #[arg(long, hide = true, value_name = "FILE")]
    with: Vec<PathBuf>,
    /// Write the report and the plots again from the findings in the output directory, without measuring.
    #[arg(long, conflicts_with_all = ["quick", "print", "with"])]
    redraw: bool,
}

/// The findings on one kernel.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Findings {
    machine: Machine,
    /// Speed of the saturated link in bits per second.
    link: u64,
    /// The leaf qdisc below a limit.
    leaf: String,
    rates: Vec<rates::Finding>,
    latency: Vec<latency::Finding>,
    fairness: Vec<fairness::Finding>,
    changes: Vec<changes::Finding>,
    /// Measurements that were not possible, each with the reason.
    missing: Vec<String>,
}

/// The duration of the measurements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    is_quick: bool,
    /// Speed of the saturated link in bits per second.
    link: u64,
}

/// Measures, or reads earlier findings, and writes the report and the plots.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if arguments.redraw {
        return write(&arguments.output, &report::read(&arguments.output)?);
    }
    let here = measure(arguments.quick)?;
    if arguments.print {
        println!("{FINDINGS}{}", serde_json::to_string(&here)?);
        return Ok(());
    }
    let mut findings = vec![here];
    for file in &arguments.with {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let line = text.lines().find_map(|line| line.strip_prefix(FINDINGS));
        let line = line.with_context(|| format!("{} has no findings", file.display()))?;
        findings.push(serde_json::from_str(line).with_context(|| format!("cannot read {}", file.display()))?);
    }
    fs::create_dir_all(&arguments.output)
        .with_context(|| format!("cannot make {}", arguments.output.display()))?;
    report::write_findings(&arguments.output, &findings)?;
    write(&arguments.output, &findings)
}

fn write(directory: &Path, findings: &[Findings]) -> Result<()> {
    report::write(directory, findings)?;
    plot::draw(directory, findings)?;
    print!("{}", report::text(findings)?);
    println!("\nRaw data, report and plots: {}", directory.display());
    Ok(())
}

fn measure(is_quick: bool) -> Result<Findings> {
    let machine = Machine::read()?;
    let link = if machine.is_emulated() { EMULATED_LINK } else { LINK };
    let plan = Plan { is_quick, link };
    let leaf = leaf();
    let mut missing = Vec::new();
    eprintln!("Linux {}: measuring rates", machine.kernel);
    let rates = rates::measure(plan, &mut missing)?;
    eprintln!("Linux {}: measuring latency", machine.kernel);
    let latency = latency::measure(plan, &leaf, &mut missing)?;
    eprintln!("Linux {}: measuring fairness", machine.kernel);
    let fairness = fairness::measure(plan, &leaf, &mut missing)?;
    eprintln!("Linux {}: measuring changes", machine.kernel);
    let changes = changes::measure(plan)?;
    Ok(Findings { machine, link, leaf, rates, latency, fairness, changes, missing })
}

/// Returns the leaf qdisc that the daemon installs below a limit on this kernel.
fn leaf() -> String {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    let container = sandbox.json(&["add", "probe", "--egress-rate", "1mbit"]);
    container["egress"]["leaf"].as_str().unwrap_or("nothing").to_owned()
}

fn daemon_with(sandbox: &Sandbox, flags: &[&str]) -> Daemon {
    sandbox.daemon_with(&[&DAEMON_FLAGS[..], flags].concat())
}

/// The qdisc of the saturated link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LinkQueue {
    /// A FIFO of a thousand packets, as in a network interface.
    Fifo,
    /// `fq_codel` with a flow for each connection, the default of many systems.
    Connections,
    /// portmap's, which the daemon installs.
    Containers,
}

/// Limits the uplink to a speed in bits per second.
fn limit_link(sandbox: &Sandbox, link: u64, queue: LinkQueue) {
    // A burst is a tenth of a millisecond of the link, or two frames.
    let burst = (link / 8 / 10_000).max(3028);
    sandbox.sh(
        Netns::Host,
        &format!(
            "tc qdisc add dev uplink root handle 10: htb default 1
             tc class add dev uplink parent 10: classid 10:1 \
               htb rate {link}bit burst {burst} cburst {burst} quantum 1514"
        ),
    );
    match queue {
        LinkQueue::Fifo => {
            sandbox.sh(Netns::Host, "tc qdisc add dev uplink parent 10:1 handle 11: pfifo limit 1000");
        }
        LinkQueue::Connections => {
            sandbox.sh(Netns::Host, "tc qdisc add dev uplink parent 10:1 handle 11: fq_codel");
        }
        LinkQueue::Containers => {}
    }
}

/// Flags of a daemon that installs its qdisc on the link.
const UNIQUE_FLOWS: [&str; 3] =
    ["--egress-unique-flow-per-container", "--egress-flow-classifier-parent", "10:1"];
