//! The uplink's qdisc with one flow per container, which shares the bandwidth fairly between containers.
//!
//! The programs set the flow of each packet. There are no filters, so no packet is ever unclassified.

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

/// Installs the qdisc, or removes it if the settings do not ask for it any more.
///
/// It replaces the kernel's default qdisc. If that is `mq`, because the interface has several queues, then
/// all of them share one lock afterwards.
///
/// # Errors
///
/// A conflict if another tool has installed a qdisc there, which stays.
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
                "this kernel has no fq_codel: --egress-unique-flow-per-container has no effect at {}",
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
                "{} has the qdisc {qdisc}, which another tool has installed: remove it, name a class of it \
                 by --egress-flow-classifier-parent, or start without --egress-unique-flow-per-container",
                state.uplink
            )));
        }
        RootQdisc::Default(qdisc) => {
            record.uplink_queue = Some(parent.into());
            store.set_host(record)?;
            qdisc::install_uplink_fq(netlink, state.uplink_index, parent)?;
            info!("fq_codel with one flow per container replaces {qdisc} at {}", state.uplink);
        }
    }
    Ok(())
}

/// Reinstalls the qdisc if the kernel's default has replaced it. A qdisc of another tool stays. Returns true
/// if it did.
pub(in crate::daemon) fn ensure(netlink: &Netlink, state: &HostState, parent: TcHandle) -> Result<bool> {
    let is_default = matches!(qdisc::at_parent(netlink, state.uplink_index, parent)?, RootQdisc::Default(_));
    if is_default {
        qdisc::install_uplink_fq(netlink, state.uplink_index, parent)?;
    }
    Ok(is_default)
}

/// Removes the recorded qdisc from the recorded uplink, if there is one.
pub(in crate::daemon) fn restore_default(netlink: &Netlink, record: &HostRecord) -> Result<()> {
    let Some(parent) = record.uplink_queue else { return Ok(()) };
    match link::find(netlink, &record.uplink)? {
        Some(uplink) => Ok(qdisc::remove_uplink_fq(netlink, uplink.index, TcHandle::from(parent))?),
        None => Ok(()),
    }
}
