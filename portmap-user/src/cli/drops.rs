//! `portmap drops`: counts as a table, or a stream of dropped packets.

use std::{future, io::stdout, os::fd::AsFd as _};

use comfy_table::CellAlignment;
use tokio::io::{Interest, unix::AsyncFd};

use super::output::{self, Output};
use crate::{
    api::{DropCount, DropStreamItem},
    client::Client,
    error::{Context as _, Result},
};

/// The time of day within an RFC 3339 timestamp.
const TIME_OF_DAY: std::ops::Range<usize> = 11..23;

/// Prints the counts of dropped packets.
pub(super) fn print(output: Output, drops: &[DropCount]) -> Result<()> {
    output::print(output, drops, || {
        if drops.is_empty() {
            return "no packets were dropped".to_owned();
        }
        let mut table = output::plain();
        table.add_row(["NAME", "DIRECTION", "REASON", "PACKETS", "WHY"]);
        for DropCount { name, direction, reason, packets, text } in drops {
            table.add_row([name, direction.name(), reason, &packets.to_string(), text]);
        }
        if let Some(packets) = table.column_mut(3) {
            packets.set_cell_alignment(CellAlignment::Right);
        }
        output::text(table)
    })
}

/// Prints dropped packets as they occur, until the reader closes standard output or the daemon closes the
/// stream.
pub(super) fn follow(client: &Client, output: Output, name: Option<&str>) -> Result<()> {
    let print_header = || match output {
        Output::Table => {
            output::line(&columns(["TIME", "NAME", "REASON", "PROTOCOL", "LENGTH", "SUPPRESSED", "PACKET"]))
        }
        Output::Json => Ok(true),
    };
    Ok(client.follow_drops(name, reader_closed(), print_header, |item| {
        output::line(&match output {
            Output::Table => row(item),
            Output::Json => serde_json::to_string(item).context(|| "cannot encode JSON")?,
        })
    })?)
}

/// Completes when standard output is a pipe whose reader has closed it.
pub(super) async fn reader_closed() {
    // A file, which cannot be polled, has no reader.
    if let Ok(output) = stdout().as_fd().try_clone_to_owned() {
        // SAFETY: the value owns its descriptor, which is the same as long as the value lives.
        let output = unsafe { AsyncFd::register_with_interest(output, Interest::ERROR) };
        if let Ok(output) = output
            && output.ready(Interest::ERROR).await.is_ok()
        {
            return;
        }
    }
    future::pending::<()>().await;
}

/// One line for an item of the stream.
fn row(item: &DropStreamItem) -> String {
    match item {
        DropStreamItem::Missed { missed } => {
            format!("(missed {missed} samples: they arrived faster than they were read)")
        }
        DropStreamItem::Sample(sample) => columns([
            sample.time.get(TIME_OF_DAY).unwrap_or(&sample.time),
            &sample.name,
            &sample.reason,
            &sample.protocol,
            &sample.length.to_string(),
            &sample.suppressed.to_string(),
            &sample.packet(),
        ]),
    }
}

/// A line of a table with fixed column widths, because later lines are unknown when the first is printed.
fn columns([time, name, reason, protocol, length, suppressed, packet]: [&str; 7]) -> String {
    format!("{time:12}  {name:12}  {reason:17}  {protocol:8}  {length:>6}  {suppressed:>10}  {packet}")
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::api::DropSample;

    #[test]
    fn drops_sample_is_one_line() {
        let sample = DropSample {
            time: "2023-11-14T22:13:20.007+00:00".to_owned(),
            name: "web".to_owned(),
            reason: "source_port".to_owned(),
            source: Some(IpAddr::V4([10, 0, 0, 1].into())),
            source_port: Some(22),
            destination: Some(IpAddr::V6([0xfd00, 0, 0, 0, 0, 0, 0, 2].into())),
            destination_port: Some(8080),
            protocol: "udp".to_owned(),
            length: 49,
            suppressed: 3,
        };
        assert_eq!(
            row(&DropStreamItem::Sample(sample.clone())),
            "22:13:20.007  web           source_port        udp           49           3  \
             10.0.0.1:22 > [fd00::2]:8080"
        );
        let nothing = DropSample { source: None, destination: None, time: "?".to_owned(), ..sample };
        assert!(row(&DropStreamItem::Sample(nothing)).ends_with("  -"));
        assert!(row(&DropStreamItem::Missed { missed: 12 }).contains("missed 12 samples"));
    }
}
