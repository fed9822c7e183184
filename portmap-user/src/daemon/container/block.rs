//! Another block of ephemeral ports for a container in service.
//!
//! The record is the undo log. Before the range inside changes, it lists the new ports as draining: after a
//! crash the container still owns every port that its sockets may have, and the next daemon drains those of
//! the block that did not come into effect. The commit exchanges the two.

use portmap_common::tables::Endpoint;

use super::{Containers, lookup};
use crate::{
    daemon::{
        container::provision::endpoint,
        host::sockets::HostSockets,
        registry::{Refusal, drain_end},
    },
    error::{Error, Result},
    model::{ContainerRecord, Draining, PortRange, PortSet, ephemeral::resize::Resized},
};

/// The records of a change of a container's block.
pub(super) struct BlockChange {
    /// With the old block; the new ports drain.
    pub(super) before: ContainerRecord,
    /// The new block.
    pub(super) block: PortRange,
    /// What drains beside the new block.
    pub(super) draining: Vec<Draining>,
}

impl Containers {
    /// Reserves another block of `size` ports, and records and publishes it beside the old one. Returns `None`
    /// if the container has a block of that size.
    ///
    /// # Errors
    ///
    /// [`Refusal::Taken`] if no block of that size is free. Nothing has changed then.
    pub(super) fn prepare_block(
        &self,
        record: &ContainerRecord,
        size: u16,
    ) -> Result<Option<BlockChange>, Refusal> {
        if record.ephemeral_ports.count() == usize::from(size) {
            return Ok(None);
        }
        let env = &self.env;
        let until = drain_end(env.settings.drain)?;
        let host_ports = HostSockets::read(&self.host.state(), &env.settings.ephemeral_ports).ports();
        let Resized { block, added } = self.registry.reserve_block(record, size, host_ports)?;
        let drain = |ports: &PortSet, until| -> Vec<Draining> {
            ports.ranges().iter().map(|ports| Draining { ports: *ports, until }).collect()
        };
        let mut before = record.clone();
        before.draining.extend(drain(&added, until));
        if !added.is_empty() {
            if let Err(error) = env.store.set_container(&before) {
                self.registry.cancel_block(&added);
                return Err(error.into());
            }
            self.registry.publish_added(before.clone(), &added);
        }
        let outside = |ports: PortRange| PortSet::from(ports).difference(&block.into());
        let earlier =
            record.draining.iter().flat_map(|draining| drain(&outside(draining.ports), draining.until));
        let draining = earlier.chain(drain(&outside(record.ephemeral_ports), until)).collect();
        Ok(Some(BlockChange { before, block, draining }))
    }

    /// Has the container take the ports of its new connections from the block of this record, whose ports it
    /// owns.
    ///
    /// # Errors
    ///
    /// If its namespace cannot be entered, or refuses the range.
    pub(super) fn use_block(&self, record: &ContainerRecord) -> Result<()> {
        lookup::visit_existing(record, |inside| {
            inside.sysctls()?.set_local_port_range(record.ephemeral_ports).map_err(|error| {
                Error::failure(format!(
                    "{error}: expected ip_unprivileged_port_start inside to be at most {}",
                    record.ephemeral_ports.first()
                ))
            })
        })?;
        let maps = &self.env.maps;
        let found = maps.endpoint(record.slot)?;
        let expected = endpoint(&self.env, record, found.eth0_ifindex);
        let (ephemeral_first, ephemeral_last) = (expected.ephemeral_first, expected.ephemeral_last);
        Ok(maps.change_endpoint(record.slot, Endpoint { ephemeral_first, ephemeral_last, ..found })?)
    }
}
