//! What qdiscs and classes have counted.

use netlink_packet_route::tc::{TcAttribute, TcFqCodelXstats, TcHandle, TcMessage, TcStats2, TcXstats};
use serde::{Deserialize, Serialize};

use super::{Qdisc, classes, handle, is_limiter, of_interface};
use crate::{error::Result, kernel::netlink::Netlink};
use portmap_common::queue;

/// `TCA_STATS_PKT64`, of kernels whose count of packets has outgrown 32 bits.
const PACKETS64: u16 = 8;

/// What the kind of a class begins with.
const CLASS: &str = "class ";

/// Counters of a qdisc or class.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Kind of qdisc, or `class` and its number.
    pub kind: String,
    /// Bytes sent, with the headers of all segments that packets are cut into.
    pub bytes: u64,
    /// Packets sent.
    pub packets: u64,
    /// Packets dropped.
    pub drops: u64,
    /// Times that a packet had to wait for the rate.
    pub overlimits: u64,
    /// Times that a packet came back from the device.
    pub requeues: u64,
    /// Bytes that wait.
    pub backlog: u64,
    /// Packets that wait.
    pub qlen: u64,
    /// Packets marked instead of dropped (ECN); none where the qdisc does not mark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ecn_marks: Option<u64>,
}

impl Stats {
    /// Whether they are those of a class.
    pub fn is_class(&self) -> bool {
        self.kind.starts_with(CLASS)
    }
}

/// The counters of what limits an interface, of what packets wait in, and of the classes.
pub fn stats_of(netlink: &Netlink, index: u32) -> Result<Vec<Stats>> {
    let all = of_interface(netlink, index)?;
    if !all.iter().any(is_limiter) {
        return Ok(Vec::new());
    }
    let limited = handle(queue::LIMITED);
    let ours = all.iter().filter(|qdisc| is_limiter(qdisc) || qdisc.parent == limited);
    let mut stats: Vec<Stats> = ours.map(Qdisc::stats).collect();
    for class in classes(netlink, index)? {
        let TcHandle { major, minor } = class.header.handle;
        // What waits in a flow of fq_codel is a class, too.
        if major != handle(queue::ROOT).major {
            continue;
        }
        stats.push(Stats { kind: format!("{CLASS}{major:x}:{minor:x}"), ..read(&class) });
    }
    Ok(stats)
}

impl Qdisc {
    /// Its counters.
    pub fn stats(&self) -> Stats {
        read(&self.message)
    }
}

fn read(message: &TcMessage) -> Stats {
    let mut stats = Stats { kind: super::kind(message).to_owned(), ..Stats::default() };
    let groups = message.attributes.iter().filter_map(|attribute| match attribute {
        TcAttribute::Stats2(groups) => Some(groups),
        _ => None,
    });
    let mut packets64 = None;
    for group in groups.flatten() {
        match group {
            TcStats2::Basic(basic) => {
                stats.bytes = basic.bytes;
                stats.packets = basic.packets.into();
            }
            TcStats2::Queue(queue) => {
                stats.drops = queue.drops.into();
                stats.overlimits = queue.overlimits.into();
                stats.requeues = queue.requeues.into();
                stats.backlog = queue.backlog.into();
                stats.qlen = queue.qlen.into();
            }
            TcStats2::App(TcXstats::FqCodel(TcFqCodelXstats::Qdisc(own))) => {
                stats.ecn_marks = Some(own.ecn_mark.into());
            }
            TcStats2::Other(other) if netlink_packet_core::Nla::kind(other) == PACKETS64 => {
                let mut value = [0; 8];
                if netlink_packet_core::Nla::value_len(other) == value.len() {
                    netlink_packet_core::Nla::emit_value(other, &mut value);
                    packets64 = Some(u64::from_ne_bytes(value));
                }
            }
            _ => {}
        }
    }
    stats.packets = packets64.unwrap_or(stats.packets);
    stats
}
