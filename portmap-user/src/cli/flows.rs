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
    let Flows { name: _, flows, others, unconnected_udp, is_complete } = flows;
    let mut lines = Vec::new();
    if flows.is_empty() {
        lines.push("no connections".to_owned());
    } else {
        let mut table = output::plain();
        table
            .add_row(["PROTO", "DIR", "PEER", "NAME", "PORT", "CONNS", "SENT", "RECEIVED", "RTT", "RETRANS"]);
        for flow in flows {
            table.add_row(row(flow));
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

fn row(flow: &Flow) -> [String; 10] {
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
        number(bytes_sent),
        number(bytes_received),
        or_dash(rtt_us.map(rtt)),
        number(retransmits),
    ]
}

/// A round-trip time of so many microseconds.
#[expect(clippy::cast_precision_loss, reason = "it is shown with three digits")]
fn rtt(microseconds: u64) -> String {
    if microseconds < 1000 {
        format!("{microseconds}us")
    } else {
        format!("{:.1}ms", microseconds as f64 / 1000.0)
    }
}
