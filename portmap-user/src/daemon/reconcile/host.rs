//! Reconciliation of the host side, and updates after a change of the host.

use portmap_common::slot::veth_ifindex;
use tracing::{debug, info, warn};

use super::reconciler::Reconciler;
use crate::{
    api::EventKind,
    daemon::{
        container::{limits, lookup, netns},
        env::Env,
        host::{
            HostState,
            setup::{RepairReport, Setup},
            uplink_qdisc,
        },
    },
    error::{Error, Result},
    kernel::{bpffs, netlink::Netlink},
    model::{ContainerRecord, Limit},
};

impl Reconciler {
    /// Reads the state of the host, and applies changes to the programs and the containers: addresses, routes,
    /// MAC address, MTU, link speed. Moves the programs and the qdisc to a new uplink.
    ///
    /// # Errors
    ///
    /// If the address cannot be shared now; then nothing is changed.
    pub(super) fn refresh_host(&self, netlink: &Netlink) -> Result<()> {
        let _refresh = self.host.begin_refresh();
        let (env, before) = (&self.env, self.host.state());
        let now = HostState::probe(netlink, &env.settings, Some(&before))?;
        if *before == now {
            return Ok(());
        }
        // The programs read this map as soon as `pm_config` contains the number of its entries, so it is
        // written first.
        env.maps.set_broadcasts(&now.broadcasts)?;
        env.maps.set_addresses(&now.more_addresses())?;
        let has_same_uplinks = now.has_same_uplinks(&before);
        let is_elsewhere = !has_same_uplinks || now.interfaces != before.interfaces;
        if is_elsewhere || now.primaries != before.primaries {
            let mut ownership = self.host.ownership();
            let mut record = self.setup(netlink, &now).record(&env.store, &mut ownership)?;
            debug!("the primary addresses are now {:?}", record.primaries);
            if is_elsewhere {
                let installed =
                    uplink_qdisc::install(netlink, &env.store, &mut record, &env.settings, &now, env.leaf);
                ownership.note(&record);
                // A qdisc that another tool has installed since at the same main uplink stays.
                match installed {
                    Err(error) if now.uplink_index == before.uplink_index => warn!("{error}"),
                    other => other?,
                }
            }
        }
        let text = now.describe_sharing();
        if !has_same_uplinks {
            info!("the uplinks have changed: {text}");
        }
        if is_elsewhere {
            let names: Vec<&str> = now.interfaces.values().map(|found| found.name.as_str()).collect();
            info!("packets for containers are taken from {} and {names:?}", now.uplink);
        }
        if now.is_same_for_containers(&before) {
            if is_elsewhere {
                ensure(&self.setup(netlink, &now))?;
            }
            env.maps.set_config(&env.config(&now))?;
            self.host.replace_state(now);
            if !has_same_uplinks {
                env.events.emit(EventKind::HostChanged, None, Some(text));
            }
            return Ok(());
        }
        let concerns_more = !now.differs_in_routes_only(&before);
        if concerns_more {
            info!("the host has changed: {text}");
        }
        ensure(&self.setup(netlink, &now))?;
        env.maps.set_config(&env.config(&now))?;
        self.host.replace_state(now);
        // Routes can change all the time, and the event says nothing of them.
        if concerns_more || !has_same_uplinks {
            env.events.emit(EventKind::HostChanged, None, Some(text));
        }
        for entry in self.registry.snapshot().entries() {
            let name = &entry.record.name;
            // The lock waits for an `add` that may have started with the old state.
            self.operations.on(name, || {
                let record = self.registry.snapshot().ready_record(name);
                if let Some(record) = record
                    && let Err(error) = self.apply_host_state(netlink, &before, &record)
                {
                    warn!("container {name:?}: cannot apply the change of the host: {error}");
                }
            });
        }
        Ok(())
    }

    /// Applies the present state of the host to a container: addresses, routes, MAC address, MTU, and limits
    /// that depend on the link speed.
    fn apply_host_state(
        &self,
        netlink: &Netlink,
        before: &HostState,
        record: &ContainerRecord,
    ) -> Result<()> {
        let (env, state) = (&self.env, self.host.state());
        netns::ensure_link(netlink, &state, veth_ifindex(record.slot), &record.host_veth())?;
        let eth0 = env.maps.endpoint(record.slot)?.eth0_ifindex;
        let inside = lookup::visit_existing(record, |inside| netns::ensure(inside, &state, record, eth0));
        let limited = match with_limits_of(env, before, &state, record) {
            Some(limited) => self.containers.change_limits(netlink, record, limited),
            None => Ok(()),
        };
        inside.map(drop).and(limited)
    }

    /// Reconciles the host's own interfaces, sysctls, pins, maps and records.
    ///
    /// # Errors
    ///
    /// All failures. A failure does not stop the rest.
    pub(super) fn reconcile_host(&self, netlink: &Netlink) -> Result<()> {
        let (env, state) = (&self.env, self.host.state());
        // The pins come first, because all other repairs need them.
        let were_pins_lost = self.restore_pins()?;
        let were_records_lost = self.restore_state();
        let mut report = self.setup(netlink, &state).ensure();
        report.note("the reservation of published ports", self.containers.reconcile_reservations());
        report.note("the pins", Ok::<_, Error>(were_pins_lost));
        report.note("the state", were_records_lost);
        if let Some(guard) = &env.guard {
            report.note("the bind guard", guard.ensure());
        }
        if let (true, Some(parent)) = (env.has_flows(), env.settings.shaping.flows) {
            report.note("the uplink's qdisc", uplink_qdisc::ensure(netlink, state.uplink_index, parent));
            for (index, uplink) in state.further_uplinks().filter(|(_, uplink)| uplink.has_flows) {
                match uplink_qdisc::ensure(netlink, index, parent) {
                    Ok(false) => {}
                    Ok(true) => report.repaired.push(format!("the qdisc of {}", uplink.name)),
                    Err(error) => report.elsewhere.note(Err(error)),
                }
            }
        }
        report.note("the maps of the host's addresses and ports", self.restore_config(&state));
        let RepairReport { repaired, mut failures, elsewhere } = report;
        failures.note(elsewhere.into_result());
        if !repaired.is_empty() {
            info!("repaired on the host: {}", repaired.join(", "));
        }
        self.registry.publish_all();
        failures.into_result()
    }

    fn setup<'a>(&'a self, netlink: &'a Netlink, state: &'a HostState) -> Setup<'a> {
        Setup {
            netlink,
            settings: &self.env.settings,
            sysctls: &self.host.sysctls,
            state,
            attach_mode: self.env.attach_mode,
        }
    }

    /// Restores missing pins of programs and maps. Returns true if any was missing.
    fn restore_pins(&self) -> Result<bool> {
        let were_lost = self.env.pins.restore()?;
        if were_lost {
            let settings = &self.env.settings;
            self.host.ownership().take_pins(settings.pins.bpffs())?;
            bpffs::permit(&settings.pins, settings.socket_group)?;
        }
        Ok(were_lost)
    }

    /// Rewrites the maps that describe the host if they differ. Returns true if any did.
    fn restore_config(&self, state: &HostState) -> Result<bool> {
        let (maps, config) = (&self.env.maps, self.env.config(state));
        let have_others_changed = maps.set_host_ports(&self.env.settings.reach)?
            | maps.set_broadcasts(&state.broadcasts)?
            | maps.set_addresses(&state.more_addresses())?;
        let has_changed = maps.config()? != config;
        if has_changed {
            maps.set_config(&config)?;
        }
        Ok(has_changed || have_others_changed)
    }
}

/// Ensures that a changed state of the host is in effect.
///
/// # Errors
///
/// Failures that containers would notice. Others are logged, and the next resync tries again.
fn ensure(setup: &Setup<'_>) -> Result<()> {
    let RepairReport { failures, elsewhere, .. } = setup.ensure();
    if let Err(error) = elsewhere.into_result() {
        warn!("{error}");
    }
    failures.into_result()
}

/// The record with the limits that follow from another state of the host; `None` if they stay. A limit that does
/// not follow from the state before stays, because it is of an earlier daemon with other flags.
fn with_limits_of(
    env: &Env,
    before: &HostState,
    now: &HostState,
    record: &ContainerRecord,
) -> Option<ContainerRecord> {
    let (egress_before, ingress_before) = limits::for_traffic(env, before, &record.traffic);
    let (egress, ingress) = limits::for_traffic(env, now, &record.traffic);
    let follow = |had: &Option<Limit>, before: Option<Limit>, now: Option<Limit>| {
        if *had == before { now } else { had.clone() }
    };
    let limited = ContainerRecord {
        egress: follow(&record.egress, egress_before, egress),
        ingress: follow(&record.ingress, ingress_before, ingress),
        ..record.clone()
    };
    (limited != *record).then_some(limited)
}
