//! The uplinks' qdiscs with one flow per container, which share the bandwidth fairly between containers.
//!
//! The programs set the flow of each packet. There are no filters, so no packet is ever unclassified.

use std::collections::BTreeMap;

use netlink_packet_route::tc::TcHandle;
use tracing::{info, warn};

use super::HostState;
use crate::{
    error::{Error, Failures, Result},
    kernel::{
        link,
        netlink::Netlink,
        qdisc::{self, Leaf, RootQdisc},
    },
    model::HostRecord,
    settings::Settings,
    state::Store,
};

/// Installs the qdiscs, or removes them if the settings do not ask for them any more.
///
/// Each replaces the kernel's default qdisc. If that is `mq`, because the interface has several queues, then
/// all of them share one lock afterwards.
///
/// # Errors
///
/// A conflict if another tool has installed a qdisc at the main uplink, which stays. At a further uplink that is
/// logged, and packets have no flows there.
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
                state.describe_uplinks()
            );
            None
        }
        wanted => wanted,
    };
    for (index, had) in record.queues.clone() {
        if wanted.map(u32::from) != Some(had) {
            qdisc::remove_uplink_fq(netlink, index, had.into())?;
            record.queues.remove(&index);
            store.set_host(record)?;
        }
    }
    let Some(parent) = wanted else { return Ok(()) };
    for (index, uplink) in state.further_uplinks() {
        let name = &uplink.name;
        if let Err(error) = install_at(netlink, store, record, (index, name), parent) {
            warn!("containers have no flows of their own at {name}: {error}");
        } else if !uplink.has_flows {
            warn!("containers have no flows of their own at {name}, because too many uplinks have them");
        }
    }
    install_at(netlink, store, record, (state.uplink_index, &state.uplink), parent)
}

fn install_at(
    netlink: &Netlink,
    store: &Store,
    record: &mut HostRecord,
    (index, name): (u32, &str),
    parent: TcHandle,
) -> Result<()> {
    match qdisc::at_parent(netlink, index, parent)? {
        RootQdisc::Ours => {}
        RootQdisc::Foreign(qdisc) => {
            return Err(Error::conflict(format!(
                "{name} has the qdisc {qdisc}, which another tool has installed: remove it, name a class of it \
                 by --egress-flow-classifier-parent, or start without --egress-unique-flow-per-container"
            )));
        }
        RootQdisc::Default(qdisc) => {
            record.queues.insert(index, parent.into());
            store.set_host(record)?;
            qdisc::install_uplink_fq(netlink, index, parent)?;
            info!("fq_codel with one flow per container replaces {qdisc} at {name}");
        }
    }
    Ok(())
}

/// Reinstalls the qdisc of an uplink if the kernel's default has replaced it. A qdisc of another tool stays. Returns
/// true if it did.
pub(in crate::daemon) fn ensure(netlink: &Netlink, index: u32, parent: TcHandle) -> Result<bool> {
    let is_default = matches!(qdisc::at_parent(netlink, index, parent)?, RootQdisc::Default(_));
    if is_default {
        qdisc::install_uplink_fq(netlink, index, parent)?;
    }
    Ok(is_default)
}

/// Removes the recorded qdiscs of interfaces that are uplinks no longer. Returns those that stay.
pub(super) fn keep(netlink: &Netlink, record: &HostRecord, state: &HostState) -> Result<BTreeMap<u32, u32>> {
    let mut queues = recorded(netlink, record)?;
    let further = |index: u32| state.interfaces.get(&index).is_some_and(|found| found.is_uplink);
    for (index, parent) in queues.extract_if(.., |index, _| *index != state.uplink_index && !further(*index))
    {
        qdisc::remove_uplink_fq(netlink, index, parent.into())?;
    }
    Ok(queues)
}

/// Removes all recorded qdiscs.
///
/// # Errors
///
/// All failures. A failure does not stop the rest.
pub(super) fn remove_all(netlink: &Netlink, record: &HostRecord) -> Result<()> {
    let mut failures = Failures::default();
    for (index, parent) in recorded(netlink, record)? {
        failures.note(qdisc::remove_uplink_fq(netlink, index, parent.into()));
    }
    failures.into_result()
}

/// The recorded qdiscs: the parent of each, by the interface's index.
fn recorded(netlink: &Netlink, record: &HostRecord) -> Result<BTreeMap<u32, u32>> {
    let mut queues = record.queues.clone();
    if let Some(parent) = record.uplink_queue
        && let Some(uplink) = link::find(netlink, &record.uplink)?
    {
        queues.insert(uplink.index, parent);
    }
    Ok(queues)
}
