//! The uplink's queue in which every container has a flow of its own, so that none of them feels how much another sends.
//! The programs say which flow a packet is in; there are no filters, so there is no moment in which a packet has none.

use netlink_packet_route::tc::TcHandle;
use tracing::{info, warn};

use super::HostFacts;
use crate::{
    error::{Error, Result},
    kernel::{
        link,
        netlink::Netlink,
        qdisc::{self, Leaf, RootQdisc},
    },
    model::HostRecord,
    settings::Settings,
    state::Store,
};

/// Makes the queue, or removes one that the settings no longer ask for. Returns whether there is one.
///
/// It takes the place of the kernel's default, `mq` of an interface with several queues included: packets are then shared
/// out fairly, but pass by one lock. Somebody else's qdisc stays where it is, and is an error.
pub(super) fn settle(
    store: &Store,
    record: &mut HostRecord,
    settings: &Settings,
    facts: &HostFacts,
    leaf: Leaf,
) -> Result<bool> {
    let netlink = Netlink::open()?;
    let wanted = match settings.shaping.flows {
        Some(_) if leaf != Leaf::FqCodel => {
            warn!(
                "this kernel has no fq_codel, so containers have no flows of their own at {} \
                 (--egress-unique-flow-per-container)",
                facts.uplink
            );
            None
        }
        wanted => wanted,
    };
    if let Some(had) = record.uplink_queue.filter(|had| wanted.map(u32::from) != Some(*had)) {
        qdisc::remove_uplink_fq(&netlink, facts.uplink_index, had.into())?;
        record.uplink_queue = None;
        store.set_host(record)?;
    }
    let Some(parent) = wanted else { return Ok(false) };
    match qdisc::at_parent(&netlink, facts.uplink_index, parent)? {
        RootQdisc::Ours => {}
        RootQdisc::Foreign(qdisc) => {
            return Err(Error::conflict(format!(
                "{} has the qdisc {qdisc}, which somebody has put there: remove it, name a class of it by \
                 --egress-flow-classifier-parent, or start without --egress-unique-flow-per-container",
                facts.uplink
            )));
        }
        RootQdisc::Default(qdisc) => {
            record.uplink_queue = Some(parent.into());
            store.set_host(record)?;
            qdisc::install_uplink_fq(&netlink, facts.uplink_index, parent)?;
            info!("a queue with a flow for each container takes the place of {qdisc} at {}", facts.uplink);
        }
    }
    Ok(true)
}

/// Puts the queue back if the kernel's default has taken its place; somebody else's qdisc stays. Returns whether it had.
pub(super) fn restore(facts: &HostFacts, parent: TcHandle) -> Result<bool> {
    let netlink = Netlink::open()?;
    let is_default = matches!(qdisc::at_parent(&netlink, facts.uplink_index, parent)?, RootQdisc::Default(_));
    if is_default {
        qdisc::install_uplink_fq(&netlink, facts.uplink_index, parent)?;
    }
    Ok(is_default)
}

/// Removes the queue from an uplink that had one.
pub(super) fn leave(record: &HostRecord) -> Result<()> {
    let Some(parent) = record.uplink_queue else { return Ok(()) };
    let netlink = Netlink::open()?;
    match link::find(&netlink, &record.uplink)? {
        Some(uplink) => Ok(qdisc::remove_uplink_fq(&netlink, uplink.index, TcHandle::from(parent))?),
        None => Ok(()),
    }
}
