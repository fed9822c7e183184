//! Benchmarks of limits on rates: how exactly they are kept, how long a victim's requests take while others send as much
//! as they can, how fairly containers share an uplink, and what a change costs.
//!
//! All of it is real traffic between namespaces. The uplink is a veth pair, which has no speed of its own, so where one is
//! to be saturated the host has an HTB qdisc there that is as fast as the link is said to be.

use std::{fs, path::PathBuf};

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

/// What precedes the findings in the output of a process that prints them.
const FINDINGS: &str = "findings: ";

/// Bits per second of the link that is saturated, where the machine is a real one and where it is emulated in software.
const LINK: u64 = 1_000_000_000;
const EMULATED_LINK: u64 = 100_000_000;

/// Measures how well limits on rates are kept, and how much neighbours feel of each other.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Takes a minute instead of several; short measurements of slow rates are coarse.
    #[arg(long)]
    quick: bool,
    /// Directory for raw data, report and plots.
    #[arg(long, value_name = "DIR", default_value = "docs/benchmarks/shaping")]
    output: PathBuf,
    /// Prints the findings in one line, for a report that is written elsewhere.
    #[arg(long, hide = true)]
    print: bool,
    /// Output of a process that has printed its findings, to be in the report, too.
    #[arg(long, hide = true, value_name = "FILE")]
    with: Vec<PathBuf>,
}

/// What has been found on one kernel.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Findings {
    machine: Machine,
    /// Bits per second of the link that is saturated.
    link: u64,
    /// What packets wait in behind a limit.
    leaf: String,
    rates: Vec<rates::Finding>,
    latency: Vec<latency::Finding>,
    fairness: Vec<fairness::Finding>,
    changes: Vec<changes::Finding>,
    /// What could not be measured, and why.
    missing: Vec<String>,
}

/// How much time is taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    is_quick: bool,
    /// Bits per second of the link that is saturated.
    link: u64,
}

/// Measures, prints and writes.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
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
    report::write(&arguments.output, &findings)?;
    plot::draw(&arguments.output, &findings)?;
    print!("{}", report::text(&findings)?);
    println!("\nRaw data, report and plots: {}", arguments.output.display());
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

/// What packets wait in behind a limit on this kernel.
fn leaf() -> String {
    let sandbox = Sandbox::new();
    let _daemon = sandbox.daemon();
    let container = sandbox.json(&["add", "probe", "--egress-rate", "1mbit"]);
    container["egress"]["leaf"].as_str().unwrap_or("nothing").to_owned()
}

fn daemon_with(sandbox: &Sandbox, flags: &[&str]) -> Daemon {
    sandbox.daemon_with(&[&DAEMON_FLAGS[..], flags].concat())
}

/// What packets wait in that the link has no time for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LinkQueue {
    /// A thousand packets, first in, first out, as in a network interface.
    Fifo,
    /// `fq_codel` with a flow for each connection, as many systems have it.
    Connections,
    /// portmap's, which the daemon puts there.
    Containers,
}

/// Gives the uplink a speed in bits per second.
fn limit_link(sandbox: &Sandbox, link: u64, queue: LinkQueue) {
    // As much as the link carries in a tenth of a millisecond, or two frames, is sent at once.
    let burst = (link / 8 / 10_000).max(3028);
    sandbox.sh(
        Netns::Host,
        &format!(
            "tc qdisc add dev uplink root handle 10: htb default 1
             tc class add dev uplink parent 10: classid 10:1 htb rate {link}bit burst {burst} cburst {burst} quantum 1514"
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

/// Flags of a daemon that puts its queue into the link.
const UNIQUE_FLOWS: [&str; 3] =
    ["--egress-unique-flow-per-container", "--egress-flow-classifier-parent", "10:1"];
