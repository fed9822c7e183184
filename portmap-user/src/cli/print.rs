//! Tables of the daemon's answers.

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, Table};

use super::{
    output::{Output, plain, print, text},
    wrap,
};
use crate::{
    api::{Changed, Container, ContainerStats, DropStats, Finding, Health, Reasons, Stats, Traffic},
    error::Result,
    log,
    model::{Limit, PortUse, QueueStats},
    sizes,
};

/// Prints a command's warnings on standard error, one line each.
pub(super) fn warnings(changed: &Changed) {
    for warning in &changed.warnings {
        log::line(format_args!("warning: {warning}"));
    }
}

/// Prints a container that was added or changed.
pub(super) fn changed(output: Output, changed: &Changed) -> Result<()> {
    warnings(changed);
    print(output, changed, || described(&changed.container))
}

pub(super) fn container(output: Output, container: &Container) -> Result<()> {
    print(output, container, || described(container))
}

fn described(container: &Container) -> String {
    let mut table = plain();
    for (name, value) in [
        ("name", container.name.clone()),
        ("slot", container.slot.to_string()),
        ("state", container.state.name().to_owned()),
        ("address", container.ip.to_string()),
        ("IPv6 address", container.ip6.map_or_else(|| "-".to_owned(), |ip6| ip6.to_string())),
        ("ports", or_dash(wrap::lines(&container.ports.to_string()))),
        ("ephemeral ports", container.ephemeral_ports.to_string()),
        ("network namespace", container.netns.display().to_string()),
        ("host veth", container.host_veth.clone()),
        ("interface", container.interface.clone()),
        ("sends at most", limit(container.egress.as_ref())),
        ("receives at most", limit(container.ingress.as_ref())),
        ("loopback", container.loopback.name().to_owned()),
        ("labels", or_dash(container.labels.to_string())),
    ] {
        table.add_row([name.to_owned(), value]);
    }
    if !container.automatic_ports.is_empty() {
        let ranges: Vec<String> = container.automatic_ports.iter().map(ToString::to_string).collect();
        table.add_row(["automatic ports".to_owned(), wrap::lines(&ranges.join(","))]);
    }
    if !container.draining_ports.is_empty() {
        table.add_row(["draining ports".to_owned(), container.draining_ports.to_string()]);
    }
    text(table)
}

pub(super) fn containers(output: Output, containers: &[Container]) -> Result<()> {
    print(output, containers, || {
        let mut table = plain();
        table.add_row(["NAME", "SLOT", "STATE", "PORTS", "EPHEMERAL", "NAMESPACE"]);
        for container in containers {
            table.add_row([
                container.name.clone(),
                container.slot.to_string(),
                container.state.name().to_owned(),
                or_dash(wrap::short(&container.ports.to_string()).into_owned()),
                container.ephemeral_ports.to_string(),
                container.netns.display().to_string(),
            ]);
        }
        text(table)
    })
}

/// Prints the counters of one container. The table has its limits, too.
pub(super) fn container_stats(
    output: Output,
    stats: &ContainerStats,
    container: Option<&Container>,
) -> Result<()> {
    print(output, stats, || {
        let mut table = plain();
        table.add_row(["PATH", "PACKETS", "BYTES"]);
        for (path, traffic) in &stats.traffic {
            table.add_row([path.clone(), traffic.packets.to_string(), traffic.bytes.to_string()]);
        }
        add_drops(&mut table, &stats.drops);
        right_align_numbers(&mut table);
        let mut parts = vec![text(table)];
        let queues = [("egress", &stats.egress), ("ingress", &stats.ingress)];
        if queues.iter().any(|(_, queues)| !queues.is_empty()) {
            parts.push(text(queue_table(queues)));
        }
        let mut details = plain();
        details.add_row([
            "ephemeral ports",
            &stats.ephemeral_ports.map_or_else(|| "-".to_owned(), ports_in_use),
        ]);
        if let Some(Container { egress, ingress, .. }) = container
            && (egress.is_some() || ingress.is_some())
        {
            details.add_row(["sends at most", &limit(egress.as_ref())]);
            details.add_row(["receives at most", &limit(ingress.as_ref())]);
        }
        parts.push(text(details));
        parts.join("\n\n")
    })
}

/// The use of ephemeral ports as text.
fn ports_in_use(PortUse { in_use, total, peak, exhausted }: PortUse) -> String {
    format!("{in_use} of {total} in use, at most {peak}, none free in {exhausted} readings")
}

/// A limit as text.
fn limit(limit: Option<&Limit>) -> String {
    let Some(limit) = limit else { return "-".to_owned() };
    let ceil = if limit.ceil > limit.rate {
        format!(", {} while a burst lasts", sizes::rate(limit.ceil))
    } else {
        String::new()
    };
    format!(
        "{} ({} B/s), bursts of {} B{ceil}, {}",
        sizes::rate(limit.rate),
        limit.rate,
        limit.burst,
        limit.leaf
    )
}

/// Counters of qdiscs and classes.
fn queue_table(queues: [(&str, &Vec<QueueStats>); 2]) -> Table {
    let mut table = plain();
    table.add_row([
        "QUEUE",
        "PACKETS",
        "BYTES",
        "DROPPED",
        "MARKED",
        "OVERLIMITS",
        "REQUEUES",
        "BACKLOG",
        "BYTES",
    ]);
    for (direction, queues) in queues {
        for queue in queues {
            let marks = queue.ecn_marks.map_or_else(|| "-".to_owned(), |marks| marks.to_string());
            let mut row = vec![format!("{direction}: {}", queue.kind)];
            row.extend([queue.packets, queue.bytes, queue.drops].map(|number| number.to_string()));
            row.push(marks);
            row.extend(
                [queue.overlimits, queue.requeues, queue.qlen, queue.backlog]
                    .map(|number| number.to_string()),
            );
            table.add_row(row);
        }
    }
    right_align_numbers(&mut table);
    table
}

/// Prints the counters of all containers and of the host. The table has the containers' limits, too.
pub(super) fn stats(output: Output, stats: &Stats, containers: &[Container]) -> Result<()> {
    let containers: BTreeMap<&str, &Container> =
        containers.iter().map(|container| (container.name.as_str(), container)).collect();
    print(output, stats, || {
        let mut table = plain();
        table.add_row([
            "NAME",
            "RX PACKETS",
            "RX BYTES",
            "TX PACKETS",
            "TX BYTES",
            "DROPPED",
            "DROPPED BY QUEUES",
            "WAITING",
            "EPHEMERAL PORTS",
            "TX LIMIT",
            "RX LIMIT",
        ]);
        for container in &stats.containers {
            let (rx, tx) = (sum(container, "rx_"), sum(container, "tx_"));
            let rate = |of: fn(&Container) -> Option<&Limit>| {
                let limit = containers.get(container.name.as_str()).copied().and_then(of);
                limit.map_or_else(|| "-".to_owned(), |limit| sizes::rate(limit.rate))
            };
            table.add_row([
                container.name.clone(),
                rx.packets.to_string(),
                rx.bytes.to_string(),
                tx.packets.to_string(),
                tx.bytes.to_string(),
                total(&container.drops).to_string(),
                roots(container).map(|queue| queue.drops).sum::<u64>().to_string(),
                roots(container).map(|queue| queue.backlog).sum::<u64>().to_string(),
                container
                    .ephemeral_ports
                    .map_or_else(|| "-".to_owned(), |ports| format!("{}/{}", ports.in_use, ports.total)),
                rate(|container| container.egress.as_ref()),
                rate(|container| container.ingress.as_ref()),
            ]);
        }
        right_align_numbers(&mut table);
        let mut host = plain();
        host.add_row(["PASSED TO THE HOST", "PACKETS"]);
        for (hook, reasons) in &stats.host.passed {
            for (reason, packets) in reasons {
                host.add_row([format!("{hook}: {reason}"), packets.to_string()]);
            }
        }
        add_drops(&mut host, &stats.host.drops);
        right_align_numbers(&mut host);
        format!("{}\n\n{}", text(table), text(host))
    })
}

pub(super) fn findings(output: Output, findings: &[Finding]) -> Result<()> {
    print(output, findings, || {
        let mut table = plain();
        for finding in findings {
            let health = match finding.health {
                Health::Ok => "ok",
                Health::Notice => "notice",
                Health::Problem => "PROBLEM",
            };
            table.add_row([health, finding.subject.as_str(), wrap::paragraph(&finding.text).as_str()]);
        }
        text(table)
    })
}

pub(super) fn torn_down(output: Output, removed: bool) -> Result<()> {
    print(output, &removed, || {
        if removed { "everything is removed" } else { "there was nothing to remove" }.to_owned()
    })
}

pub(super) fn right_align_numbers(table: &mut Table) {
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}

fn add_drops(table: &mut Table, drops: &DropStats) {
    for (direction, reasons) in [("rx", &drops.rx), ("tx", &drops.tx)] {
        for (reason, packets) in reasons {
            table.add_row([format!("dropped {direction}: {reason}"), packets.to_string()]);
        }
    }
}

fn sum(stats: &ContainerStats, direction: &str) -> Traffic {
    let paths = stats.traffic.iter().filter(|(path, _)| path.starts_with(direction));
    paths.fold(Traffic::default(), |sum, (_, traffic)| Traffic {
        packets: sum.packets + traffic.packets,
        bytes: sum.bytes + traffic.bytes,
    })
}

/// The root qdiscs of both directions, whose counters include those of the queues below.
fn roots(stats: &ContainerStats) -> impl Iterator<Item = &QueueStats> {
    stats.egress.first().into_iter().chain(stats.ingress.first())
}

fn total(drops: &DropStats) -> u64 {
    let of = |reasons: &Reasons| reasons.values().sum::<u64>();
    of(&drops.rx) + of(&drops.tx)
}

pub(super) fn or_dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}
