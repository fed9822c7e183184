//! The report, and the file with raw data.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::{Context as _, Result};

use super::{Findings, changes, fairness, latency, latency::Scenario, rates, traffic::Transport};
use crate::text::{grouped, number, table, wrapped};

/// The goals: deviation of a rate in per cent, and the 99th percentile of round trips relative to an idle
/// link.
const MOST_ERROR: f64 = 2.0;
const MOST_TIMES_IDLE: f64 = 2.0;

/// The file with the findings.
const FINDINGS: &str = "findings.json";

/// Reads the findings that an earlier run has written.
pub(crate) fn read(directory: &Path) -> Result<Vec<Findings>> {
    let file = directory.join(FINDINGS);
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} has no findings", file.display()))
}

/// Writes the findings as JSON.
pub(crate) fn write_findings(directory: &Path, findings: &[Findings]) -> Result<()> {
    let json = serde_json::to_string_pretty(findings).context("cannot write the findings as JSON")?;
    write_file(&directory.join(FINDINGS), json + "\n")
}

/// Writes the report as Markdown.
pub(crate) fn write(directory: &Path, findings: &[Findings]) -> Result<()> {
    write_file(&directory.join("report.md"), wrapped(&text(findings)?))
}

fn write_file(file: &Path, contents: String) -> Result<()> {
    fs::write(file, contents).with_context(|| format!("cannot write {}", file.display()))
}

/// The report as Markdown.
pub(crate) fn text(findings: &[Findings]) -> Result<String> {
    let mut text = String::from(
        "# Rate limits\n\n\
         ![Deviation of rates from their limits, by kernel and traffic](rates.svg)\n\n\
         ![Round-trip times while a container saturates the link, by the limit on that container](latency.svg)\n",
    );
    for one in findings {
        let machine = &one.machine;
        writeln!(
            text,
            "\n## Linux {}\n\n{}, {} CPUs; leaf qdisc of a limit: {}.{}\n",
            machine.kernel,
            machine.cpu,
            machine.cpus,
            one.leaf,
            if machine.is_emulated() {
                " This machine is emulated in software: its processor is many times slower than its clock, so it does \
                 not reach rates above some hundred Mbit/s, and round-trip times have a high floor. \
                 Ratios are meaningful, absolute times are not."
            } else {
                ""
            }
        )?;
        rates_of(&mut text, &one.rates)?;
        latency_of(&mut text, one.link, &one.latency)?;
        fairness_of(&mut text, &one.fairness)?;
        changes_of(&mut text, &one.changes)?;
        if !one.missing.is_empty() {
            writeln!(text, "Not measured:\n")?;
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
        "Accuracy of a limit: deviation of the throughput outside of the container, headers of every segment included, \
         from the limit.\n"
    )?;
    let kinds: Vec<(Transport, u16)> = [Transport::Tcp, Transport::Udp]
        .into_iter()
        .flat_map(|transport| [1, 16].map(|flows| (transport, flows)))
        .collect();
    let name = |(transport, flows): (Transport, u16)| {
        format!("{}, {flows} flow{}", transport.name(), if flows == 1 { "" } else { "s" })
    };
    let find = |limit: Option<u64>, (transport, flows): (Transport, u16)| {
        findings
            .iter()
            .find(|finding| (finding.limit, finding.transport, finding.flows) == (limit, transport, flows))
    };
    let mut header = vec!["limit, Mbit/s".to_owned()];
    header.extend(kinds.iter().map(|kind| format!("{}, %", name(*kind))));
    let mut rows = table(&header.iter().map(String::as_str).collect::<Vec<_>>());
    let mut limits: Vec<u64> = findings.iter().filter_map(|finding| finding.limit).collect();
    limits.sort_unstable();
    limits.dedup();
    for limit in limits {
        #[expect(clippy::cast_precision_loss, reason = "limits are round numbers")]
        let mut row = vec![grouped(limit as f64 / 1e6)];
        for kind in &kinds {
            let error = find(Some(limit), *kind).and_then(rates::Finding::error);
            row.push(error.map_or("–".to_owned(), |error| format!("{error:+.2}")));
        }
        rows.add_row(row);
    }
    let unlimited: Vec<_> = kinds
        .iter()
        .filter_map(|kind| {
            Some(format!("{} Mbit/s ({})", grouped(find(None, *kind)?.measured / 1e6), name(*kind)))
        })
        .collect();
    writeln!(text, "{rows}\n\nThroughput without a limit: {}.\n", unlimited.join("; "))?;
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "it is a round number")]
fn latency_of(text: &mut String, link: u64, findings: &[latency::Finding]) -> Result<()> {
    writeln!(
        text,
        "Round trips of one byte over TCP to an outside host, while a container sends on four \
         connections over a link of {} Mbit/s; limits are half of that. *Neighbour*: the victim is in another \
         container. *Same*: the victim is in the sending container.\n",
        link / 1_000_000
    )?;
    let mut rows = table(&[
        "sender",
        "neighbour: median, µs",
        "99th percentile, µs",
        "relative to idle",
        "same: median, µs",
        "99th percentile, µs",
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
        "{rows}\n\nA GSO packet carries up to 64 KiB, which occupy this link for {:.1} ms. Every packet behind it in a \
         shared queue waits that long, with or without a limit; on a faster link it waits less.\n",
        65_536.0 * 8.0 * 1000.0 / link as f64
    )?;
    Ok(())
}

fn find(findings: &[latency::Finding], scenario: Scenario, is_same: bool) -> Option<&latency::Finding> {
    findings.iter().find(|finding| (finding.scenario, finding.is_same) == (scenario, is_same))
}

/// The 99th percentile relative to that of an idle link.
fn times_idle(findings: &[latency::Finding], finding: &latency::Finding) -> Option<f64> {
    let idle = find(findings, Scenario::Idle, finding.is_same)?;
    Some(finding.p99 / idle.p99)
}

fn fairness_of(text: &mut String, findings: &[fairness::Finding]) -> Result<()> {
    writeln!(
        text,
        "Fairness between containers that share the link: the first has eight connections, the others one each. Jain's \
         index is 1 if all containers have the same throughput.\n"
    )?;
    let mut rows = table(&[
        "qdisc of the link",
        "containers",
        "Jain's index",
        "throughput of the first, relative to a fair share",
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
    writeln!(text, "Datagrams lost while the limit of a running container changes.\n")?;
    let mut rows =
        table(&["change", "repetitions", "sent, datagrams", "lost at most, datagrams", "longest gap, ms"]);
    for finding in findings {
        rows.add_row([
            finding.change.clone(),
            finding.times.to_string(),
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
            "rates deviate from their limits by at most 2 %".to_owned(),
            kernel.clone(),
            format!("{worst:+.2} % at worst"),
            met(worst.abs() <= MOST_ERROR),
        ]);
        for scenario in [Scenario::Htb, Scenario::HtbSmallGso, Scenario::HtbFqCodel, Scenario::UniqueFlows] {
            let finding = find(&one.latency, scenario, false);
            if let Some(times) = finding.and_then(|finding| times_idle(&one.latency, finding)) {
                rows.add_row([
                    format!(
                        "the 99th percentile of a neighbour's round trips is at most twice that of an idle link: {}",
                        scenario.name()
                    ),
                    kernel.clone(),
                    format!("{times:.1}-fold"),
                    met(times <= MOST_TIMES_IDLE),
                ]);
            }
        }
    }
    writeln!(text, "{rows}")?;
    Ok(())
}
