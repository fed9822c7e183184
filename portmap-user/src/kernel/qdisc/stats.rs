//! Counters of qdiscs and classes.

use netlink_packet_route::tc::{TcAttribute, TcFqCodelXstats, TcHandle, TcMessage, TcStats2, TcXstats};

use super::list::{Qdisc, classes, handle, is_limiter, kind, of_interface};
use crate::{
    kernel::{error::Result, netlink::Netlink},
    model::QueueStats,
};
use portmap_common::queue;

/// `TCA_STATS_PKT64`, the 64-bit packet counter of newer kernels.
const PACKETS64: u16 = 8;

/// Returns the counters of an interface's HTB qdisc, its leaf, and those of its classes whose handle `is_wanted`;
/// empty if [`shape`](super::shape) did not install one.
pub fn stats_of(netlink: &Netlink, index: u32, is_wanted: impl Fn(u32) -> bool) -> Result<Vec<QueueStats>> {
    let all = of_interface(netlink, index)?;
    if !all.iter().any(is_limiter) {
        return Ok(Vec::new());
    }
    let limited = handle(queue::LIMITED);
    let ours = all.iter().filter(|qdisc| is_limiter(qdisc) || qdisc.parent == limited);
    let mut stats: Vec<QueueStats> = ours.map(Qdisc::stats).collect();
    for class in classes(netlink, index)? {
        let TcHandle { major, minor } = class.header.handle;
        // The flows of fq_codel are listed as classes, too.
        if major == handle(queue::ROOT).major && is_wanted(queue::ROOT | u32::from(minor)) {
            stats.push(read(&class).of_class(major, minor));
        }
    }
    Ok(stats)
}

impl Qdisc {
    /// Its counters.
    pub fn stats(&self) -> QueueStats {
        read(&self.message)
    }
}

fn read(message: &TcMessage) -> QueueStats {
    let mut stats = QueueStats { kind: kind(message).to_owned(), ..QueueStats::default() };
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
