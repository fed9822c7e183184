//! `portmap capacity`: what containers can still get.

use super::{
    output::{Output, plain, print, text},
    print::right_align_numbers,
};
use crate::{
    api::{Bound, Capacity, LimitPolicy},
    error::Result,
    sizes,
};

/// Prints the capacity.
pub(super) fn show(output: Output, capacity: &Capacity) -> Result<()> {
    print(output, capacity, || {
        let sections = [summary(capacity), resources(capacity), blocks(capacity)];
        sections.into_iter().chain(limits(capacity)).collect::<Vec<_>>().join("\n\n")
    })
}

/// How many more containers are possible, and why no more.
fn summary(capacity: &Capacity) -> String {
    let Capacity { containers, ephemeral_ports, static_ports, .. } = capacity;
    let bound = match containers.bound_by {
        Bound::EphemeralPorts => "blocks of ephemeral ports",
        Bound::Slots => "slots",
    };
    let mut lines = vec![format!(
        "room for {} more, with {} ephemeral ports each; bounded by {bound}",
        containers.fit, ephemeral_ports.per_container
    )];
    if let Some(seconds) = ephemeral_ports.next_free_seconds {
        lines.push(format!(
            "room for {} after the quarantine of ephemeral ports; the next block is free in {seconds} s",
            containers.fit_after_quarantine
        ));
    }
    lines.push(match static_ports.largest_free_run {
        Some(run) => format!("longest run of free static ports: {run} ({} ports)", run.count()),
        None => "no static port is free".to_owned(),
    });
    lines.join("\n")
}

fn resources(capacity: &Capacity) -> String {
    let Capacity { slots, static_ports, ephemeral_ports, .. } = capacity;
    let mut table = plain();
    table.add_row(["RESOURCE", "TOTAL", "OWNED", "FREE", "QUARANTINED", "HOST"]);
    let number = |count: usize| count.to_string();
    let ephemeral = ephemeral_ports;
    let without_pool = || ["-".to_owned(), "-".to_owned()];
    for (name, [total, owned, free], rest) in [
        ("slots", [slots.total, slots.owned, slots.free], without_pool()),
        ("static ports", [static_ports.total, static_ports.owned, static_ports.free], without_pool()),
        (
            "ephemeral ports",
            [ephemeral.total, ephemeral.owned, ephemeral.free],
            [number(ephemeral.quarantined), number(ephemeral.host)],
        ),
    ] {
        let mut row = vec![name.to_owned()];
        row.extend([total, owned, free].map(number));
        row.extend(rest);
        table.add_row(row);
    }
    right_align_numbers(&mut table);
    text(table)
}

fn blocks(capacity: &Capacity) -> String {
    let mut table = plain();
    table.add_row(["EPHEMERAL PORTS PER CONTAINER", "OWNED", "FREE", "QUARANTINED"]);
    for row in &capacity.ephemeral_ports.blocks {
        let is_default = row.size == capacity.ephemeral_ports.per_container;
        let size = if is_default { format!("{} (default)", row.size) } else { row.size.to_string() };
        table.add_row([size, row.owned.to_string(), row.free.to_string(), row.quarantined.to_string()]);
    }
    right_align_numbers(&mut table);
    text(table)
}

/// The daemon's limits, if there are any.
fn limits(capacity: &Capacity) -> Option<String> {
    let limits = &capacity.limits;
    let mut table = plain();
    table.add_row(["LIMIT", "PER CONTAINER", "PER CPU", "MINIMUM", "MAXIMUM"]);
    let rate = |rate: Option<u64>| rate.map_or_else(|| "-".to_owned(), sizes::rate);
    let mut is_limited = false;
    for (name, policy) in [("egress", &limits.egress), ("ingress", &limits.ingress)] {
        let LimitPolicy { per_container, per_cpu, minimum, maximum } = policy;
        let rates = [per_container, per_cpu, minimum, maximum];
        is_limited |= rates.iter().any(|rate| rate.is_some());
        let mut row = vec![name.to_owned()];
        row.extend(rates.map(|value| rate(*value)));
        table.add_row(row);
    }
    right_align_numbers(&mut table);
    is_limited.then(|| text(table))
}
