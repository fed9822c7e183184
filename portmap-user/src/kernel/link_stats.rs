//! Counters of all interfaces of a namespace, by one dump (`RTM_GETSTATS`), which leaves out everything else
//! that the kernel knows about an interface.

use std::collections::BTreeMap;

use netlink_packet_route::{
    RouteNetlinkMessage,
    stats::{StatsAttribute, StatsFilterMask, StatsMessage},
};

use super::netlink::Netlink;
use crate::{
    kernel::error::{Context as _, Result},
    model::LinkErrors,
};

/// Reads the errors and drops of all interfaces, by index.
pub fn errors(netlink: &Netlink) -> Result<BTreeMap<u32, LinkErrors>> {
    let mut request = StatsMessage::default();
    request.header.filter_mask = StatsFilterMask::Link64;
    let found = netlink.list(&RouteNetlinkMessage::GetStats(request), |answer| {
        let RouteNetlinkMessage::NewStats(message) = answer else { return None };
        let stats = message.attributes.iter().find_map(|attribute| match attribute {
            StatsAttribute::Link64(stats) => Some(stats),
            _ => None,
        })?;
        let errors = LinkErrors {
            rx_errors: stats.rx_errors,
            rx_dropped: stats.rx_dropped,
            tx_errors: stats.tx_errors,
            tx_dropped: stats.tx_dropped,
        };
        Some((message.header.ifindex, errors))
    });
    Ok(found.context(|| "cannot read the counters of interfaces")?.into_iter().collect())
}
