//! Following the host: containers have what the uplink has, whatever becomes of it.

use std::sync::Arc;

use portmap_common::{slot::veth_ifindex, tables::Config};
use tracing::{info, warn};

use super::{Daemon, HostFacts, container::namespace_of, host, inside, uplink_queue};
use crate::{
    error::Result,
    kernel::{netlink::Netlink, sysctl::Sysctls},
    model::{ContainerRecord, Phase},
};

impl Daemon {
    /// Looks at the host again, and gives containers what has changed: addresses, MAC address, MTU, next hop. An uplink that
    /// is another one gets the programs, and its queue.
    ///
    /// An error if the host is such that no daemon could start; then everything stays as it was.
    pub(super) fn follow_host(&self) -> Result<()> {
        let _turn = self.following.lock();
        let before = self.facts();
        let now = HostFacts::look(&self.settings, Some(before.uplink_index))?;
        if *before == now {
            return Ok(());
        }
        // Before the programs are told to look there.
        self.maps.set_broadcasts(&now.broadcasts)?;
        let concerns_programs_only =
            HostFacts { broadcasts: now.broadcasts.clone(), ..(*before).clone() } == now;
        if concerns_programs_only {
            self.maps.set_config(&self.config(&now))?;
            *self.facts.write() = Arc::new(now);
            return Ok(());
        }
        info!("the host has changed: sharing {} of {}", now.addresses(), now.uplink);
        if (now.uplink_index, &now.uplink) != (before.uplink_index, &before.uplink) {
            let mut place = self.place.lock();
            let (settings, attach_mode) = (&self.settings, self.attach_mode);
            let mut record =
                host::record(&self.store, &mut place, settings, &self.sysctls, &now, attach_mode)?;
            uplink_queue::settle(&self.store, &mut record, settings, &now, self.leaf)?;
            place.note(&record);
        }
        host::mend(&self.settings, &self.sysctls, &now, self.attach_mode).failures.into_result()?;
        self.maps.set_config(&self.config(&now))?;
        *self.facts.write() = Arc::new(now);
        let names: Vec<String> = self.registry().containers.keys().cloned().collect();
        for name in names {
            // One that is being made has begun with what was before.
            self.turns.take(&name, || {
                let record = self.registry().containers.get(&name).map(|entry| entry.record.clone());
                if let Some(record) = record.filter(|record| record.phase == Phase::Ready)
                    && let Err(error) = self.conform(&record)
                {
                    warn!("container {name:?} does not follow the host: {error}");
                }
            });
        }
        Ok(())
    }

    /// What the programs are told of the host.
    pub(super) fn config(&self, facts: &HostFacts) -> Config {
        self.settings.reach.apply_to(facts.config(self.has_flows))
    }

    /// Gives a container what the host has now.
    fn conform(&self, record: &ContainerRecord) -> Result<()> {
        let facts = self.facts();
        inside::conform_link(&Netlink::open()?, &facts, veth_ifindex(record.slot), &record.host_veth())?;
        let eth0 = self.maps.endpoint(record.slot)?.eth0_ifindex;
        namespace_of(record)?
            .run(|| inside::conform(&Netlink::open()?, &Sysctls::open()?, &facts, record, eth0).map(drop))
    }
}
