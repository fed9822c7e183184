//! `portmap drops`: the counts as a table, or single packets as they are dropped.

use std::{
    future,
    io::stdout,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd as _,
};

use comfy_table::CellAlignment;
use tokio::io::{Interest, unix::AsyncFd};

use super::{Output, print};
use crate::{
    api::{DropCount, DropNews, DropSample},
    client::Client,
    error::{Context as _, Result},
};

/// Where the time of day begins and ends in a time with its date (RFC 3339).
const TIME_OF_DAY: std::ops::Range<usize> = 11..23;

/// Prints what was dropped.
pub(super) fn print(output: Output, drops: &[DropCount]) -> Result<()> {
    print::print(output, drops, || {
        if drops.is_empty() {
            return "nothing was dropped".to_owned();
        }
        let mut table = print::plain();
        table.add_row(["NAME", "DIRECTION", "REASON", "PACKETS", "WHY"]);
        for DropCount { name, direction, reason, packets, text } in drops {
            table.add_row([name, direction.name(), reason, &packets.to_string(), text]);
        }
        if let Some(packets) = table.column_mut(3) {
            packets.set_cell_alignment(CellAlignment::Right);
        }
        print::text(table)
    })
}

/// Prints drops as they happen, until nobody reads any more or the daemon goes.
pub(super) fn follow(client: &Client, output: Output, name: Option<&str>) -> Result<()> {
    let begin = || match output {
        Output::Table => {
            print::line(&columns(["TIME", "NAME", "REASON", "PROTOCOL", "LENGTH", "SUPPRESSED", "PACKET"]))
        }
        Output::Json => Ok(true),
    };
    client.follow_drops(name, nobody_reads(), begin, |news| {
        print::line(&match output {
            Output::Table => in_words(news),
            Output::Json => serde_json::to_string(news).context(|| "cannot write JSON".to_owned())?,
        })
    })
}

/// Waits until standard output is a pipe that nobody reads.
async fn nobody_reads() {
    // What cannot be waited for, such as a file, has no reader that could go.
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

fn in_words(news: &DropNews) -> String {
    match news {
        DropNews::Missed { missed } => {
            format!("(missed {missed} samples: they came faster than they were read)")
        }
        DropNews::Sample(sample) => columns([
            sample.time.get(TIME_OF_DAY).unwrap_or(&sample.time),
            &sample.name,
            &sample.reason,
            &sample.protocol,
            &sample.length.to_string(),
            &sample.suppressed.to_string(),
            &packet(sample),
        ]),
    }
}

/// A line of a table that is not known as a whole when its first line is printed.
fn columns([time, name, reason, protocol, length, suppressed, packet]: [&str; 7]) -> String {
    format!("{time:12}  {name:12}  {reason:17}  {protocol:8}  {length:>6}  {suppressed:>10}  {packet}")
}

fn packet(sample: &DropSample) -> String {
    match (sample.source, sample.destination) {
        (Some(source), Some(destination)) => {
            format!("{} > {}", end(source, sample.source_port), end(destination, sample.destination_port))
        }
        _ => "-".to_owned(),
    }
}

/// An address, with a port if there is one.
pub(super) fn end(address: IpAddr, port: Option<u16>) -> String {
    port.map_or_else(|| address.to_string(), |port| SocketAddr::new(address, port).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_one_line() {
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
            in_words(&DropNews::Sample(sample.clone())),
            "22:13:20.007  web           source_port        udp           49           3  \
             10.0.0.1:22 > [fd00::2]:8080"
        );
        let nothing = DropSample { source: None, destination: None, time: "?".to_owned(), ..sample };
        assert!(in_words(&DropNews::Sample(nothing)).ends_with("  -"));
        assert!(in_words(&DropNews::Missed { missed: 12 }).contains("missed 12 samples"));
    }
}
