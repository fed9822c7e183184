//! The report for people, and the file with raw data.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result};

use super::{Findings, changes, fairness, latency, latency::Scenario, rates, traffic::Transport};
use crate::text::{grouped, number, table};

/// The goals, and what they are held against.
const MOST_ERROR: f64 = 2.0;
const MOST_TIMES_IDLE: f64 = 2.0;

/// Writes the findings, for programs and for people.
pub(crate) fn write(directory: &Path, findings: &[Findings]) -> Result<()> {
    let json = serde_json::to_string_pretty(findings).context("cannot write the findings as JSON")?;
    for (name, contents) in [("findings.json", json + "\n"), ("report.md", text(findings)?)] {
        let file = directory.join(name);
        fs::write(&file, contents).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

/// The report as Markdown.
pub(crate) fn text(findings: &[Findings]) -> Result<String> {
    let mut text = String::from(
        "# Limits on rates\n\n\
         ![By how much limits are missed, by kernel and traffic](rates.svg)\n\n\
         ![Round trips while a container saturates a link, by what holds it back](latency.svg)\n",
    );
    for one in findings {
        let machine = &one.machine;
        writeln!(
            text,
            "\n## Linux {}\n\n{}, {} CPUs; behind a limit packets wait in {}.{}\n",
            machine.kernel,
            machine.cpu,
            machine.cpus,
            one.leaf,
            if machine.is_emulated() {
                " This machine is emulated in software: its processor is many times slower than its clock, so rates beyond \
                 some hundred Mbit/s are out of reach and times of round trips have a high floor. Ratios hold, times do not."
            } else {
                ""
            }
        )?;
        rates_of(&mut text, &one.rates)?;
        latency_of(&mut text, one.link, &one.latency)?;
        fairness_of(&mut text, &one.fairness)?;
        changes_of(&mut text, &one.changes)?;
        if !one.missing.is_empty() {
            writeln!(text, "Not measured here:\n")?;
            for reason in &one.missing {
                writeln!(text, "- {reason}")?;
            }
        }
    }
    goals(&mut text, findings)?;
    Ok(text)
}

fn rates_of(text: &mut String, findings: &[rates::Finding]) -> Result<()> {
    writeln!(
        text,
        "How exactly a limit is kept: what arrives outside, headers of every segment included, over what the limit allows.\n"
    )?;
    let columns: Vec<(Transport, u16)> = [Transport::Tcp, Transport::Udp]
        .into_iter()
        .flat_map(|transport| [1, 16].map(|flows| (transport, flows)))
        .collect();
    let mut header = vec!["limit, Mbit/s".to_owned()];
    for (transport, flows) in &columns {
        header.push(format!("{}, {flows} flow{}", transport.name(), if *flows == 1 { "" } else { "s" }));
    }
    let mut rows = table(&header.iter().map(String::as_str).collect::<Vec<_>>());
    let mut limits: Vec<Option<u64>> = findings.iter().map(|finding| finding.limit).collect();
    limits.sort_unstable_by_key(|limit| limit.unwrap_or(u64::MAX));
    limits.dedup();
    for limit in limits {
        #[expect(clippy::cast_precision_loss, reason = "limits are round numbers")]
        let mut row = vec![limit.map_or("none".to_owned(), |limit| grouped(limit as f64 / 1e6))];
        for (transport, flows) in &columns {
            let finding = findings.iter().find(|finding| {
                (finding.limit, finding.transport, finding.flows) == (limit, *transport, *flows)
            });
            row.push(finding.map_or("–".to_owned(), |finding| match finding.error() {
                Some(error) => format!("{error:+.2} %"),
                None => format!("{} Mbit/s", grouped(finding.measured / 1e6)),
            }));
        }
        rows.add_row(row);
    }
    writeln!(text, "{rows}\n")?;
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "it is a round number")]
fn latency_of(text: &mut String, link: u64, findings: &[latency::Finding]) -> Result<()> {
    writeln!(
        text,
        "Round trips of one byte over TCP to the outside, while a container sends on four connections over a link of \
         {} Mbit/s; limits are half of that. *Neighbour*: the victim is in another container; *same*: in the one that \
         sends.\n",
        link / 1_000_000
    )?;
    let mut rows = table(&[
        "held back by",
        "neighbour, median µs",
        "99 %, µs",
        "times idle",
        "same, median µs",
        "99 %, µs",
        "sent, Mbit/s",
    ]);
    for scenario in Scenario::ALL {
        let of = |is_same| find(findings, scenario, is_same);
        let (Some(other), Some(same)) = (of(false), of(true)) else { continue };
        rows.add_row([
            scenario.name().to_owned(),
            number(other.median),
            number(other.p99),
            times_idle(findings, other).map_or("–".to_owned(), |times| format!("{times:.1}")),
            number(same.median),
            number(same.p99),
            number(other.sent / 1e6),
        ]);
    }
    writeln!(
        text,
        "{rows}\n\nThe kernel hands over up to 64 KiB of a stream in one piece (GSO), which takes this link {:.1} ms; whoever \
         comes behind it in a queue for all waits that long, limit or not. The faster the link, the shorter.\n",
        65_536.0 * 8.0 * 1000.0 / link as f64
    )?;
    Ok(())
}

fn find(findings: &[latency::Finding], scenario: Scenario, is_same: bool) -> Option<&latency::Finding> {
    findings.iter().find(|finding| (finding.scenario, finding.is_same) == (scenario, is_same))
}

/// The 99th percentile over that of an idle machine.
fn times_idle(findings: &[latency::Finding], finding: &latency::Finding) -> Option<f64> {
    let idle = find(findings, Scenario::Idle, finding.is_same)?;
    Some(finding.p99 / idle.p99)
}

fn fairness_of(text: &mut String, findings: &[fairness::Finding]) -> Result<()> {
    writeln!(
        text,
        "Containers that share the link; the first has eight connections, the others one each. Jain's index is 1 if all \
         get the same.\n"
    )?;
    let mut rows = table(&[
        "the link's queue",
        "containers",
        "Jain's index",
        "first container's part, times an equal one",
    ]);
    for finding in findings {
        rows.add_row([
            finding.queue.clone(),
            finding.containers.to_string(),
            format!("{:.3}", finding.jain()),
            format!("{:.2}", finding.first()),
        ]);
    }
    writeln!(text, "{rows}\n")?;
    Ok(())
}

fn changes_of(text: &mut String, findings: &[changes::Finding]) -> Result<()> {
    writeln!(text, "Datagrams that are lost when the limit of a running container changes, at most.\n")?;
    let mut rows =
        table(&["change", "made", "sent each time", "lost at most", "ms in which so many are sent"]);
    for finding in findings {
        rows.add_row([
            finding.change.clone(),
            format!("{} times", finding.times),
            finding.sent.to_string(),
            finding.lost.to_string(),
            number(finding.gap),
        ]);
    }
    writeln!(text, "{rows}\n")?;
    Ok(())
}

fn goals(text: &mut String, findings: &[Findings]) -> Result<()> {
    writeln!(text, "\n## Goals\n")?;
    let mut rows = table(&["goal", "Linux", "measured", "met"]);
    let met = |is_met| if is_met { "yes" } else { "**no**" }.to_owned();
    for one in findings {
        let kernel = one.machine.kernel.clone();
        let errors = one.rates.iter().filter_map(rates::Finding::error);
        let worst =
            errors.fold(0.0, |worst: f64, error| if error.abs() > worst.abs() { error } else { worst });
        rows.add_row([
            "a limit is kept within 2 %".to_owned(),
            kernel.clone(),
            format!("{worst:+.2} % at worst"),
            met(worst.abs() <= MOST_ERROR),
        ]);
        for scenario in [Scenario::Htb, Scenario::HtbSmallGso, Scenario::HtbFqCodel, Scenario::UniqueFlows] {
            let finding = find(&one.latency, scenario, false);
            if let Some(times) = finding.and_then(|finding| times_idle(&one.latency, finding)) {
                rows.add_row([
                    format!(
                        "99 % of a neighbour's round trips take at most twice as long as idle: {}",
                        scenario.name()
                    ),
                    kernel.clone(),
                    format!("{times:.1} times"),
                    met(times <= MOST_TIMES_IDLE),
                ]);
            }
        }
    }
    writeln!(text, "{rows}")?;
    Ok(())
}
