//! Fairness between containers that share a link, of which one has more connections than the others.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use portmap_tests::sandbox::{Netns, Sandbox};
use serde::{Deserialize, Serialize};

use super::{
    LinkQueue, Plan, UNIQUE_FLOWS, daemon_with, limit_link,
    traffic::{Bulk, Transport},
};

const CONTAINERS: [u16; 3] = [2, 10, 100];
/// Connections of the first container; the others have one each.
const CONNECTIONS: u16 = 8;

/// The throughput of containers that share a link.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Finding {
    /// The qdisc of the link.
    pub(crate) queue: String,
    pub(crate) containers: u16,
    /// Received payload of each container in bits per second; the one with more connections is the first.
    pub(crate) rates: Vec<f64>,
}

impl Finding {
    /// Jain's index: 1 if all have the same throughput, one over their number if one has all of it.
    pub(crate) fn jain(&self) -> f64 {
        let (sum, squares) =
            self.rates.iter().fold((0.0, 0.0), |(sum, squares), rate| (sum + rate, squares + rate * rate));
        if squares == 0.0 { 0.0 } else { sum * sum / (f64::from(self.containers) * squares) }
    }

    /// The throughput of the first container relative to a fair share.
    pub(crate) fn first(&self) -> f64 {
        let sum: f64 = self.rates.iter().sum();
        if sum == 0.0 { 0.0 } else { self.rates[0] * f64::from(self.containers) / sum }
    }
}

/// Measures how containers share the link, by its qdisc.
pub(crate) fn measure(plan: Plan, leaf: &str, missing: &mut Vec<String>) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for (queue, name) in [
        (LinkQueue::Fifo, "first in, first out"),
        (LinkQueue::Connections, "fq_codel, by connection"),
        (LinkQueue::Containers, "portmap's unique flows"),
    ] {
        if queue != LinkQueue::Fifo && leaf != "fq_codel" {
            missing.push(format!("{name}: the kernel has no fq_codel"));
            continue;
        }
        for containers in CONTAINERS {
            if plan.is_quick && containers > 10 {
                continue;
            }
            let rates = one(plan, queue, containers)?;
            findings.push(Finding { queue: name.to_owned(), containers, rates });
        }
    }
    Ok(findings)
}

fn one(plan: Plan, queue: LinkQueue, containers: u16) -> Result<Vec<f64>> {
    let sandbox = Sandbox::new();
    limit_link(&sandbox, plan.link, queue);
    let flags: &[&str] = if queue == LinkQueue::Containers { &UNIQUE_FLOWS } else { &[] };
    let flags = [flags, &["--ephemeral-ports-per-container", "32"]].concat();
    let _daemon = daemon_with(&sandbox, &flags);
    let names: Vec<String> = (0..containers).map(|number| format!("c{number}")).collect();
    let mut senders = Vec::new();
    for (place, name) in names.iter().enumerate() {
        sandbox.ok(&["add", name]);
        let connections = if place == 0 { CONNECTIONS } else { 1 };
        let from = (&sandbox, Netns::Container(name));
        senders.push(Bulk::start(from, Transport::Tcp, connections, 9000, None)?);
    }
    let (warm_up, window) = if plan.is_quick { (2, 3) } else { (4, 10) };
    let (warm_up, window) = (Duration::from_secs(warm_up), Duration::from_secs(window));
    thread::sleep(warm_up);
    let payloads = || senders.iter().map(Bulk::payload).collect::<Vec<u64>>();
    let (before, start) = (payloads(), Instant::now());
    thread::sleep(window);
    let (after, took) = (payloads(), start.elapsed().as_secs_f64());
    #[expect(clippy::cast_precision_loss, reason = "it is far from that large")]
    Ok(after.iter().zip(before).map(|(after, before)| (after - before) as f64 * 8.0 / took).collect())
}
