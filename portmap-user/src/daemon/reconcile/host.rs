//! Reconciling the host's side, and following the host's state.

use portmap_common::slot::veth_ifindex;
use tracing::{info, warn};

use super::reconciler::Reconciler;
use crate::{
    daemon::{
        container::{limits, lookup, netns},
        host::{
            HostState,
            setup::{RepairReport, Setup},
            uplink_qdisc,
        },
    },
    error::{Error, Result},
    kernel::netlink::Netlink,
    model::ContainerRecord,
};

impl Reconciler {
    /// Reads the state of the host again, and has the programs and the containers follow: addresses, MAC address, MTU, next hop, link
    /// speed. Another uplink gets the programs, and its qdisc.
    ///
    /// # Errors
    ///
    /// If the address cannot be shared now; then everything stays as it was.
    pub(super) fn refresh_host(&self, netlink: &Netlink) -> Result<()> {
        let _refresh = self.host.begin_refresh();
        let (env, before) = (&self.env, self.host.state());
        let now = HostState::probe(netlink, &env.settings, Some(&before))?;
        if *before == now {
            return Ok(());
        }
        // Before `pm_config` sends the programs to this map.
        env.maps.set_broadcasts(&now.broadcasts)?;
        let concerns_programs_only =
            HostState { broadcasts: now.broadcasts.clone(), ..(*before).clone() } == now;
        if concerns_programs_only {
            env.maps.set_config(&env.config(&now))?;
            self.host.replace_state(now);
            return Ok(());
        }
        info!("the host has changed: sharing {} of {}", now.addresses(), now.uplink);
        let setup = self.setup(netlink, &now);
        if (now.uplink_index, &now.uplink) != (before.uplink_index, &before.uplink) {
            let mut ownership = self.host.ownership();
            let mut record = setup.record(&env.store, &mut ownership)?;
            uplink_qdisc::install(netlink, &env.store, &mut record, &env.settings, &now, env.leaf)?;
            ownership.note(&record);
        }
        setup.ensure().failures.into_result()?;
        env.maps.set_config(&env.config(&now))?;
        self.host.replace_state(now);
        for entry in self.registry.snapshot().entries() {
            let name = &entry.record.name;
            // A container that is being added may have begun with the state before.
            self.operations.on(name, || {
                let record = self.registry.snapshot().ready_record(name);
                if let Some(record) = record
                    && let Err(error) = self.follow_host(netlink, &record)
                {
                    warn!("container {name:?} does not follow the host: {error}");
                }
            });
        }
        Ok(())
    }

    /// Gives a container the host's present addresses, routes, MAC address and MTU, and the limits of its present link speed.
    fn follow_host(&self, netlink: &Netlink, record: &ContainerRecord) -> Result<()> {
        let (env, state) = (&self.env, self.host.state());
        netns::ensure_link(netlink, &state, veth_ifindex(record.slot), &record.host_veth())?;
        let eth0 = env.maps.endpoint(record.slot)?.eth0_ifindex;
        lookup::visit_existing(record, |inside| netns::ensure(inside, &state, record, eth0))?;
        let (egress, ingress) = limits::for_traffic(env, &state, &record.traffic);
        if (&egress, &ingress) == (&record.egress, &record.ingress) {
            return Ok(());
        }
        let limited = ContainerRecord { egress, ingress, ..record.clone() };
        self.containers.apply_limits_or_police(netlink, &limited)?;
        env.store.set_container(&limited)?;
        self.registry.set_record(limited);
        Ok(())
    }

    /// Reconciles the host's own interfaces, sysctls, pins, maps and records.
    ///
    /// # Errors
    ///
    /// All that could not be repaired, after everything else has been.
    pub(super) fn reconcile_host(&self, netlink: &Netlink) -> Result<()> {
        let (env, state) = (&self.env, self.host.state());
        // Everything else needs the pins.
        let were_pins_lost = self.restore_pins()?;
        let were_records_lost = self.restore_state();
        let mut report = self.setup(netlink, &state).ensure();
        report.note("the pins", Ok::<_, Error>(were_pins_lost));
        report.note("the state", were_records_lost);
        if let Some(guard) = &env.guard {
            report.note("the bind guard", guard.ensure());
        }
        if let (true, Some(parent)) = (env.has_flows(), env.settings.shaping.flows) {
            report.note("the uplink's queue", uplink_qdisc::ensure(netlink, &state, parent));
        }
        report.note("pm_config, pm_broadcasts and pm_host_access", self.restore_config(&state));
        let RepairReport { repaired, failures } = report;
        if !repaired.is_empty() {
            info!("repaired at the host: {}", repaired.join(", "));
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

    /// Pins programs and maps again whose pins have been removed. Returns whether there were any.
    fn restore_pins(&self) -> Result<bool> {
        let were_lost = self.env.pins.restore()?;
        if were_lost {
            self.host.ownership().take_pins(self.env.settings.pins.bpffs())?;
        }
        Ok(were_lost)
    }

    /// Rewrites the maps that describe the host if they differ. Returns whether any did.
    fn restore_config(&self, state: &HostState) -> Result<bool> {
        let (maps, config) = (&self.env.maps, self.env.config(state));
        let have_others_changed =
            maps.set_host_ports(&self.env.settings.reach)? | maps.set_broadcasts(&state.broadcasts)?;
        let has_changed = maps.config()? != config;
        if has_changed {
            maps.set_config(&config)?;
        }
        Ok(has_changed || have_others_changed)
    }
}
