//! Static ports: which of them a container can own, and the choice of automatic ones.

use super::{
    entries::{Registry, State},
    refusal::Refusal,
    snapshot::Snapshot,
};
use crate::{
    error::{Error, Result},
    kernel::clock,
    model::{
        AutomaticRange, ContainerRecord, PortRange, PortSet,
        port_choice::{Shortage, Supply},
        port_request::MOST_AUTOMATIC,
    },
};

/// The static ports that a command requests for a container.
#[derive(Clone)]
pub(in crate::daemon) struct StaticPortRequest {
    /// Ports by number.
    pub(in crate::daemon) numbered: PortSet,
    /// Ranges to be chosen.
    pub(in crate::daemon) automatic: Vec<AutomaticRange>,
}

/// The static ports that a container gets.
pub(in crate::daemon) struct StaticPortGrant {
    /// All of them.
    pub(in crate::daemon) ports: PortSet,
    /// The chosen ranges, in the order of the request.
    pub(in crate::daemon) automatic: Vec<PortRange>,
}

impl Registry {
    /// Refuses static ports that the container `name` cannot own.
    pub(super) fn check_static_ports(
        &self,
        containers: &Snapshot,
        name: &str,
        ports: &PortSet,
    ) -> Result<(), Refusal> {
        if ports.contains(0) {
            return Err(Error::usage("port 0 cannot be owned: expected ports between 1 and 65535").into());
        }
        let (pool, published) = (&self.env.settings.ports, &self.env.settings.published);
        let unmanaged = ports.difference(pool).difference(published);
        if !unmanaged.is_empty() {
            let or_none =
                |ports: &PortSet| if ports.is_empty() { "none".to_owned() } else { ports.to_string() };
            return Err(Error::usage(format!(
                "the daemon does not manage the ports {unmanaged}: expected ports of --ports ({}) or of \
                 --published-ports ({})",
                or_none(pool),
                or_none(published)
            ))
            .into());
        }
        for entry in containers.entries().filter(|entry| entry.record.name != name) {
            let taken = ports.intersection(&entry.record.ports.union(&entry.pending_ports));
            if !taken.is_empty() {
                return Err(Refusal::taken(format!(
                    "the ports {taken} are owned by container {:?}",
                    entry.record.name
                )));
            }
        }
        Ok(())
    }

    /// Those of `ports` that the container `name` does not own yet.
    ///
    /// # Errors
    ///
    /// [`Refusal::Taken`] if another container has any of them.
    pub(in crate::daemon) fn new_ports(&self, name: &str, ports: &PortSet) -> Result<PortSet, Refusal> {
        let containers = self.snapshot();
        let had = &containers.entry(name)?.record.ports;
        self.check_static_ports(&containers, name, ports)?;
        Ok(ports.difference(had))
    }

    /// Checks the requested ports by number, and chooses the automatic ones. `host_ports` are ports on which the
    /// host has sockets; a container keeps those that it has already.
    pub(super) fn grant(
        &self,
        state: &State,
        name: &str,
        request: &StaticPortRequest,
        host_ports: &PortSet,
    ) -> Result<StaticPortGrant, Refusal> {
        let StaticPortRequest { numbered, automatic } = request;
        self.check_static_ports(&state.containers, name, numbered)?;
        if automatic.is_empty() {
            return Ok(StaticPortGrant { ports: numbered.clone(), automatic: Vec::new() });
        }
        if automatic.len() > MOST_AUTOMATIC {
            return Err(Error::usage(format!(
                "{} automatic ranges of ports are requested: expected at most {MOST_AUTOMATIC}",
                automatic.len()
            ))
            .into());
        }
        let pool = &self.env.settings.ports;
        if pool.is_empty() {
            return Err(Error::usage(format!(
                "the daemon has no static ports of which it could choose {}: start it with --ports",
                automatic[0]
            ))
            .into());
        }
        let had = state.containers.get(name).map(|entry| own_ranges(&entry.record, pool, numbered));
        let own = had.unwrap_or_default();
        let others = state.containers.static_ports_except(name);
        let unowned = pool.difference(&others).difference(numbered).difference(&own.clone().into());
        let free = unowned.difference(host_ports);
        let supply = Supply { free: &free, own: &own, released: &state.released, now: clock::since_boot()? };
        let chosen = supply.choose(automatic).map_err(|shortage| {
            let used = unowned.intersection(host_ports).count();
            Refusal::taken(describe(&shortage, free.count() + own_count(&own), pool.count(), used))
        })?;
        Ok(StaticPortGrant { ports: numbered.union(&chosen.clone().into()), automatic: chosen })
    }

    /// Remembers that ports have lost their owner, so that they are not chosen soon. Without the time only that
    /// preference is lost.
    pub(super) fn note_released(state: &mut State, ports: PortSet) {
        if let Ok(now) = clock::since_boot() {
            state.released.note(ports, now);
        }
    }
}

/// The ranges of the pool that a container has, and that are not among the `numbered` ones: first those that were
/// chosen for it.
fn own_ranges(record: &ContainerRecord, pool: &PortSet, numbered: &PortSet) -> Vec<PortRange> {
    let own = record.ports.intersection(pool).difference(numbered);
    let chosen =
        record.automatic_ports.iter().flat_map(|range| own.intersection(&(*range).into()).ranges().to_vec());
    let others = own.difference(&record.automatic_ports.clone().into());
    chosen.chain(others.ranges().iter().copied()).collect()
}

fn own_count(own: &[PortRange]) -> usize {
    own.iter().map(|range| range.count()).sum()
}

/// Describes a range that does not fit among `free` of `total` ports. The host uses `used` others.
fn describe(shortage: &Shortage, free: usize, total: usize, used: usize) -> String {
    let Shortage { wanted, longest } = shortage;
    let what = match (wanted.count.get(), wanted.alignment()) {
        (1, _) => "no static port is free".to_owned(),
        (count, 1) => format!("no {count} adjacent static ports are free"),
        (count, alignment) => {
            format!("no {count} adjacent static ports that start at a multiple of {alignment} are free")
        }
    };
    let run = longest.map_or_else(
        || "none is left".to_owned(),
        |run| format!("the longest run is {run} ({})", run.count()),
    );
    let skipped = if used == 0 {
        String::new()
    } else {
        format!(", {used} more are skipped, because the host uses them")
    };
    format!(
        "{wanted}: {what}: {run}, {free} of the {total} ports of --ports are free{skipped}: request fewer or shorter \
         ranges, delete a container, or start the daemon with more --ports"
    )
}
