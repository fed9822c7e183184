//! `portmap flows`: who a container talks to.

use comfy_table::CellAlignment;

use super::output::{self, Output};
use crate::{
    api::{Flow, FlowDirection, Flows},
    error::Result,
};

/// Prints the flows of a container.
pub(super) fn print(output: Output, flows: &Flows) -> Result<()> {
    output::print(output, flows, || text(flows))
}

/// The flows as a table with its title line, and the remarks on it.
pub(super) fn text(flows: &Flows) -> String {
    text_with(flows, |bytes| bytes.to_string())
}

/// The same with another form of the bytes in the table.
pub(super) fn text_with(flows: &Flows, bytes: fn(u64) -> String) -> String {
    let Flows { name: _, flows, others, unconnected_udp, is_complete } = flows;
    let mut lines = Vec::new();
    if flows.is_empty() {
        lines.push("no connections".to_owned());
    } else {
        let mut table = output::plain();
        table
            .add_row(["PROTO", "DIR", "PEER", "NAME", "PORT", "CONNS", "SENT", "RECEIVED", "RTT", "RETRANS"]);
        for flow in flows {
            table.add_row(row(flow, bytes));
        }
        for column in table.column_iter_mut().skip(4) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        lines.push(output::text(table));
    }
    if others.connections > 0 {
        lines.push(format!(
            "others: {} connections, {} bytes sent, {} bytes received",
            others.connections, others.bytes_sent, others.bytes_received
        ));
    }
    if *unconnected_udp > 0 {
        lines.push(format!(
            "{unconnected_udp} UDP sockets without a fixed peer: the kernel does not record who they talk to"
        ));
    }
    if !is_complete {
        lines.push("incomplete: there are too many connections to read or to list all of them".to_owned());
    }
    lines.join("\n")
}

fn row(flow: &Flow, bytes: fn(u64) -> String) -> [String; 10] {
    let Flow {
        protocol,
        peer,
        peer_name,
        direction,
        port,
        connections,
        bytes_sent,
        bytes_received,
        rtt_us,
        retransmits,
    } = flow;
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let number = |value: &Option<u64>| or_dash(value.map(|value| value.to_string()));
    [
        protocol.clone(),
        or_dash(direction.map(|direction: FlowDirection| direction.name().to_owned())),
        peer.to_string(),
        peer_name.clone().unwrap_or_else(|| "outside".to_owned()),
        or_dash(port.map(|port| port.to_string())),
        connections.to_string(),
        or_dash(bytes_sent.map(bytes)),
        or_dash(bytes_received.map(bytes)),
        or_dash(rtt_us.map(rtt)),
        number(retransmits),
    ]
}

/// A round-trip time of so many microseconds, in at most six characters.
#[expect(clippy::cast_precision_loss, reason = "it is shown with three digits")]
pub(super) fn rtt(microseconds: u64) -> String {
    match microseconds as f64 / 1000.0 {
        ..1.0 => format!("{microseconds}us"),
        milliseconds @ ..99.95 => format!("{milliseconds:.1}ms"),
        milliseconds @ ..9999.5 => format!("{milliseconds:.0}ms"),
        milliseconds => format!("{:.0}s", milliseconds / 1000.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_round_trip_times_have_at_most_six_characters() {
        for (microseconds, text) in [
            (7, "7us"),
            (999, "999us"),
            (1000, "1.0ms"),
            (10_940, "10.9ms"),
            (99_990, "100ms"),
            (9_999_000, "9999ms"),
            (12_000_000, "12s"),
        ] {
            assert_eq!(rtt(microseconds), text);
        }
        let mut microseconds = 1;
        while microseconds < u64::from(u32::MAX) {
            assert!(rtt(microseconds).len() <= 6, "{microseconds}");
            microseconds *= 3;
        }
    }
}
