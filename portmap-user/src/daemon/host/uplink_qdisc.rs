//! The uplink's qdisc in which every container has a flow of its own, so that no container feels how much another sends.
//!
//! The programs write the flow into each packet; there are no filters, so no packet is ever without a flow.

use netlink_packet_route::tc::TcHandle;
use tracing::{info, warn};

use super::HostState;
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

/// Installs the qdisc, or removes one that the settings no longer ask for.
///
/// It replaces the kernel's default, which may be `mq` on an interface with several queues: flows are then fair, but all pass one
/// lock.
///
/// # Errors
///
/// A conflict if another tool has installed a qdisc there; that one stays.
pub(in crate::daemon) fn install(
    netlink: &Netlink,
    store: &Store,
    record: &mut HostRecord,
    settings: &Settings,
    state: &HostState,
    leaf: Leaf,
) -> Result<()> {
    let wanted = match settings.shaping.flows {
        Some(_) if leaf != Leaf::FqCodel => {
            warn!(
                "this kernel has no fq_codel, so containers have no flows of their own at {} \
                 (--egress-unique-flow-per-container)",
                state.uplink
            );
            None
        }
        wanted => wanted,
    };
    if let Some(had) = record.uplink_queue.filter(|had| wanted.map(u32::from) != Some(*had)) {
        qdisc::remove_uplink_fq(netlink, state.uplink_index, had.into())?;
        record.uplink_queue = None;
        store.set_host(record)?;
    }
    let Some(parent) = wanted else { return Ok(()) };
    match qdisc::at_parent(netlink, state.uplink_index, parent)? {
        RootQdisc::Ours => {}
        RootQdisc::Foreign(qdisc) => {
            return Err(Error::conflict(format!(
                "{} has the qdisc {qdisc}, which another tool has installed: remove it, name a class of it by \
                 --egress-flow-classifier-parent, or start without --egress-unique-flow-per-container",
                state.uplink
            )));
        }
        RootQdisc::Default(qdisc) => {
            record.uplink_queue = Some(parent.into());
            store.set_host(record)?;
            qdisc::install_uplink_fq(netlink, state.uplink_index, parent)?;
            info!("a qdisc with a flow for each container replaces {qdisc} at {}", state.uplink);
        }
    }
    Ok(())
}

/// Installs the qdisc again if the kernel's default has replaced it; another tool's qdisc stays. Returns whether it did.
pub(in crate::daemon) fn ensure(netlink: &Netlink, state: &HostState, parent: TcHandle) -> Result<bool> {
    let is_default = matches!(qdisc::at_parent(netlink, state.uplink_index, parent)?, RootQdisc::Default(_));
    if is_default {
        qdisc::install_uplink_fq(netlink, state.uplink_index, parent)?;
    }
    Ok(is_default)
}

/// Removes the qdisc from the uplink on record, if it has it.
pub(in crate::daemon) fn restore_default(netlink: &Netlink, record: &HostRecord) -> Result<()> {
    let Some(parent) = record.uplink_queue else { return Ok(()) };
    match link::find(netlink, &record.uplink)? {
        Some(uplink) => Ok(qdisc::remove_uplink_fq(netlink, uplink.index, TcHandle::from(parent))?),
        None => Ok(()),
    }
}
