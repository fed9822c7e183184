//! One pass over the host and the containers: of the parts that events concern, or of everything for a repair.

use std::collections::HashMap;

use portmap_common::slot::veth_ifindex;
use tracing::warn;

use super::{events::HostEvents, reconciler::Reconciler};
use crate::{
    daemon::container::{attach::veth_hook, limits},
    error::Result,
    kernel::{
        link::{self, Interface},
        netlink::Netlink,
        programs,
    },
    model::ContainerRecord,
};

impl Reconciler {
    /// Reconciles everything that the events concern: the state of the host, its own interfaces, and
    /// containers.
    ///
    /// # Errors
    ///
    /// The first failure on the host. It does not stop the reconciliation of containers, whose failures are
    /// logged.
    pub(in crate::daemon) fn reconcile(&self, events: &HostEvents) -> Result<()> {
        // After a teardown there is nothing to reconcile.
        let Ok(_operation) = self.operations.begin() else { return Ok(()) };
        let netlink = Netlink::open()?;
        let refreshed =
            if events.resync || events.host_changed { self.refresh_host(&netlink) } else { Ok(()) };
        self.reconcile_all(&netlink, events).and(refreshed)
    }

    fn reconcile_all(&self, netlink: &Netlink, events: &HostEvents) -> Result<()> {
        let state = self.host.state();
        let own = [link::LOOPBACK, state.uplink_index];
        let mut own = own.iter().chain(state.interfaces.keys());
        let is_host_suspect =
            events.loopback_settings_changed || own.any(|index| events.tc_removed_on.contains(index));
        let must_check_host = (events.resync || is_host_suspect) && self.env.settings.reconcile;
        // The kernel detaches the programs inside namespaces together with their pinned links.
        let are_pins_lost = must_check_host && self.env.pins.check().is_err();
        let reconciled = if must_check_host { self.reconcile_host(netlink) } else { Ok(()) };
        let all = if events.resync { link::all(netlink)? } else { Vec::new() };
        let all: HashMap<u32, Interface> =
            all.into_iter().map(|interface| (interface.index, interface)).collect();
        for record in self.registry.snapshot().ready() {
            let index = veth_ifindex(record.slot);
            let is_suspect = events.resync || events.tc_removed_on.contains(&index);
            if !is_suspect && !events.veths.contains(&index) {
                continue;
            }
            let found = if events.resync { None } else { link::find_by_index(netlink, index)? };
            let veth = found.as_ref().or(all.get(&index)).filter(|veth| veth.name == record.host_veth());
            let is_well = !are_pins_lost
                && veth.is_some_and(|veth| veth.is_up)
                && (!is_suspect || self.is_host_side_well(netlink, record));
            if veth.is_none() || (self.env.settings.reconcile && !is_well) {
                self.reconcile_one(netlink, &record.name, false);
            }
        }
        if events.resync {
            for name in self.unchecked() {
                self.note_takeover(&name, self.take_over_if_unchecked(&name));
            }
        }
        reconciled
    }

    /// Whether a container's host veth has its program, and the host side of its limits is in place.
    fn is_host_side_well(&self, netlink: &Netlink, record: &ContainerRecord) -> bool {
        let pins = &self.env.settings.pins;
        programs::is_attached(netlink, pins, &veth_hook(pins, record)).unwrap_or(false)
            && limits::check_host_side(&self.env, netlink, record).is_ok()
    }

    /// Repairs the host, then every container with its limits.
    ///
    /// # Errors
    ///
    /// After a teardown. Failures of repairs are logged, and `doctor` reports the remaining drift.
    pub(in crate::daemon) fn repair(&self) -> Result<()> {
        let _operation = self.operations.begin()?;
        let netlink = Netlink::open()?;
        for result in [self.refresh_host(&netlink), self.reconcile_host(&netlink)] {
            if let Err(error) = result {
                warn!("cannot repair the host: {error}");
            }
        }
        for record in self.registry.snapshot().ready() {
            self.reconcile_one(&netlink, &record.name, true);
        }
        Ok(())
    }
}
