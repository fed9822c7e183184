//! Differential testing: the model, the decision code and the loaded programs decide on each packet.

use std::{collections::HashMap, mem};

use portmap_common::{
    flow_state::{HOST_CONNECTION_LIFETIME, HostConnection},
    hook_point::HookPoint,
    reason::Reason,
    slot::{HOST_SLOT, slot_of_veth},
};
use portmap_ebpf::Verdict;

use crate::{
    kernel::Kernel,
    recording_tables::RecordingTables,
    situation::{Situation, TCP, Way},
    spec_model,
    spec_parser::{self, Content, PortsHeader},
    spec_state::{CachedContent, Entry, IdOwner, SpecState, StateChange},
    world::{Case, World},
};

/// Most differences that are shown.
const MAX_SHOWN: usize = 12;

/// The constant time of all packets, in nanoseconds.
pub(crate) const NOW: u64 = 1 << 50;

/// One world, the state of the three implementations in it, and their differences.
pub(crate) struct Differential<'a> {
    pub(crate) world: &'a World,
    pub(crate) memory: SpecState,
    pub(crate) tally: Tally,
    /// Packets and bytes on the wire of the most recent frame.
    pub(crate) on_wire: (u64, u64),
    /// Whether the loaded programs decide, too. They take ten times as long as the others.
    pub(crate) with_kernel: bool,
    maps: RecordingTables<'a>,
    kernel: Option<&'a mut Kernel>,
}

/// Results.
#[derive(Default)]
pub(crate) struct Tally {
    /// Number of verdicts of the decision code.
    pub(crate) decided: u64,
    /// Number of verdicts of the loaded programs.
    pub(crate) decided_by_kernel: u64,
    /// Number of packets by matching row: program and index.
    pub(crate) rows: HashMap<(&'static str, usize), u64>,
    /// Bytes charged to limits, by slot.
    pub(crate) spent: HashMap<u16, u64>,
    pub(crate) failures: HashMap<(HookPoint, usize, mem::Discriminant<Verdict>, bool), String>,
}

impl<'a> Differential<'a> {
    /// Starts in a world, with or without the loaded programs.
    pub(crate) fn new(world: &'a World, mut kernel: Option<&'a mut Kernel>) -> Self {
        if let Some(kernel) = &mut kernel {
            kernel.set_world(world);
        }
        let (memory, tally, maps) =
            (SpecState::default(), Tally::default(), RecordingTables::new(world, NOW));
        Self { world, memory, tally, on_wire: (0, 0), with_kernel: true, maps, kernel }
    }

    /// Applies a state change to all three implementations.
    pub(crate) fn apply(&mut self, change: StateChange) {
        self.memory.write(change);
        self.maps.write(change.into());
        if let Some(kernel) = &mut self.kernel {
            kernel.apply(change.into());
        }
    }

    /// Clears the state of all three implementations.
    pub(crate) fn clear(&mut self) {
        for change in self.memory.changes() {
            if let Some(kernel) = &mut self.kernel {
                kernel.remove(change.into());
            }
        }
        self.memory = SpecState::default();
        self.maps.clear();
    }

    /// Clears the state of a kernel that did not take part.
    pub(crate) fn clear_in(&self, kernel: &mut Kernel) {
        self.memory.changes().for_each(|change| kernel.remove(change.into()));
    }

    /// Compares the verdicts on a packet, and keeps its state changes for later packets.
    pub(crate) fn check(&mut self, what: &str, case: &Case<'_>) -> Verdict {
        let (verdict, changes) = self.compare(what, case);
        // All implementations continue with the model's state, so that one bug is reported once.
        self.maps.roll_back();
        for change in changes {
            self.apply(change);
        }
        verdict
    }

    /// Compares the verdicts on a packet, and undoes its state changes.
    pub(crate) fn check_once(&mut self, what: &str, case: &Case<'_>) -> Verdict {
        let (verdict, _notes) = self.compare(what, case);
        self.maps.roll_back();
        verdict
    }

    fn compare(&mut self, what: &str, case: &Case<'_>) -> (Verdict, Vec<StateChange>) {
        let decided = self.maps.decide(case);
        let tried = self.maps.tried.take();
        let spent = self.maps.spent.get();
        let packet = spec_parser::parse(case, self.world, &self.memory, NOW);
        let situation =
            Situation { case, packet: &packet, world: self.world, memory: &self.memory, tried: &tried };
        let (row, expected) = spec_model::decide(&situation);
        let readable = spec_parser::parse_either(case, true, &self.memory, NOW);
        self.on_wire = Situation { packet: &readable, ..situation }.on_wire();
        let changes = expected_changes(&situation, expected);
        let to_spend = situation.spent(expected);
        *self.tally.spent.entry(situation.sender()).or_default() += to_spend;
        let entries: Vec<Entry> = changes.iter().map(|change| Entry::from(*change)).collect();
        let kernel = self.kernel.as_mut().filter(|_| self.with_kernel);
        let by_kernel = kernel.and_then(|kernel| kernel.decide(case));
        let by_kernel = match (by_kernel, &mut self.kernel) {
            // Entries in the kernel age with the real clock. If that has caused the difference, fresh entries
            // remove it.
            (Some(verdict), Some(kernel)) if verdict != expected => {
                self.memory.changes().for_each(|change| kernel.apply(change.into()));
                kernel.decide(case)
            }
            _ => by_kernel,
        };
        self.tally.decided += 1;
        self.tally.decided_by_kernel += u64::from(by_kernel.is_some());
        *self.tally.rows.entry((case.hook.program(), row)).or_default() += 1;
        let written = self.maps.written();
        let has_changes = entries.iter().all(|entry| self.maps.current(*entry) == Some(*entry))
            && written.iter().all(|entry| entries.contains(entry));
        if decided != expected
            || !has_changes
            || spent != to_spend
            || by_kernel.is_some_and(|by_kernel| by_kernel != expected)
        {
            let failures = &mut self.tally.failures;
            let kind = (case.hook, row, mem::discriminant(&decided), decided == expected);
            if failures.len() < MAX_SHOWN && !failures.contains_key(&kind) {
                let row = spec_model::rows(case.hook)[row].packet;
                let text = format!(
                    "{what}\n{case:?}\n  model:  {expected:?} ({row})\n  code:   {decided:?}\n  \
                     kernel: {by_kernel:?}\n  state changes of the model: {entries:?}\n  \
                     of the code: {written:?}\n  tried: {tried:?}\n  \
                     charged to the limit: {to_spend}, by the code {spent}\n",
                );
                failures.insert(kind, text);
            }
        }
        (expected, changes)
    }
}

impl Tally {
    /// Returns the sum of two results.
    pub(crate) fn plus(mut self, other: Self) -> Self {
        self.decided += other.decided;
        self.decided_by_kernel += other.decided_by_kernel;
        for (row, times) in other.rows {
            *self.rows.entry(row).or_default() += times;
        }
        self.failures.extend(other.failures);
        self
    }

    /// Fails if there was a difference.
    pub(crate) fn expect_agreement(&self) {
        let texts: Vec<&str> = self.failures.values().map(String::as_str).collect();
        assert!(texts.is_empty(), "of {} verdicts, for example:\n{}", self.decided, texts.join("\n"));
    }
}

/// Returns the state changes that the specification demands for a packet.
fn expected_changes(situation: &Situation<'_>, verdict: Verdict) -> Vec<StateChange> {
    let Situation { case, packet, .. } = situation;
    let mut changes = Vec::new();
    let is_dropped = matches!(verdict, Verdict::Drop { .. } | Verdict::AlreadyHandled);
    if let (Some(datagram), false, true) = (packet.first_of, is_dropped, depends_on_content(situation)) {
        let carried = match packet.content {
            Content::Ports { source, destination } => Some(CachedContent::Ports { source, destination }),
            Content::EchoRequest { id, .. } => Some(CachedContent::EchoRequest(id)),
            Content::EchoReply { id, .. } => Some(CachedContent::EchoReply(id)),
            Content::Error { .. } | Content::None => None,
        };
        // First fragments within a second that differ are a conflict.
        let counts = match situation.memory.recent(&datagram, NOW) {
            Some(CachedContent::Conflict) => None,
            Some(before) if Some(before) != carried => carried.map(|_other| CachedContent::Conflict),
            _ => carried,
        };
        changes.extend(counts.map(|counts| StateChange::Fragment(datagram, NOW, counts)));
    }
    // The neighbour is checked before the identifier of an echo request.
    let was_sent =
        matches!(verdict, Verdict::ToOutside { .. } | Verdict::Drop { reason: Reason::EchoBusy, .. });
    if was_sent && situation.way() == Some(Way::Asked) {
        let (slot, destination) = (situation.sender(), packet.destination);
        let seen = if situation.is_for_new_neighbour() {
            Some(NOW)
        } else {
            situation.memory.neighbours.get(&(slot, destination)).map(|(seen, _)| *seen)
        };
        // Elsewhere the FIB is asked for each packet.
        let is_noted = situation.world.is_direct(destination) || situation.is_for_new_neighbour();
        if let (Some(seen), true) = (seen, is_noted) {
            changes.push(StateChange::Neighbour(slot, destination, seen, NOW));
        }
    }
    if case.hook == HookPoint::UplinkEgress
        && let Some((key, connection)) = situation.tracked()
    {
        changes.push(StateChange::HostConnection(key, connection));
    }
    if verdict == Verdict::Continue(Reason::HostConnection)
        && packet.ports_header.is_some_and(PortsHeader::aborts)
        && let Some(key) = situation.connection(true)
    {
        let until = NOW + HOST_CONNECTION_LIFETIME;
        let connection = HostConnection { until, closing: 1, reserved: 0 };
        changes.push(StateChange::HostConnection(key, connection));
    }
    if let Content::EchoRequest { id, at: Some(_) } = packet.content {
        let peer = packet.destination;
        match (case.hook, verdict) {
            (HookPoint::VethIngress(slot), Verdict::ToOutside { .. }) => {
                let outside = situation.allocated_id(id).expect("the verdict depends on it");
                let generation = situation.world.containers[&slot];
                changes.push(StateChange::Echo(peer, outside, NOW, IdOwner { slot, generation, id }));
            }
            (HookPoint::UplinkEgress, _)
                if slot_of_veth(case.ingress) == HOST_SLOT && situation.world.is_shared(packet.source) =>
            {
                changes.push(StateChange::Echo(
                    peer,
                    id,
                    NOW,
                    IdOwner { slot: HOST_SLOT, generation: 0, id },
                ));
            }
            _ => {}
        }
    }
    if let (
        HookPoint::HostLoIngress,
        Verdict::ToContainer { owner, .. },
        Content::Ports { source, destination },
    ) = (case.hook, verdict, packet.content)
        && situation.world.open.is_some()
        && !situation.world.is_open(source)
        && packet.transport.is_some_and(|transport| transport.protocol != TCP)
    {
        let key = situation.host_flow(owner.slot, destination, source);
        changes.extend(key.map(|key| StateChange::HostFlow(key, NOW)));
    }
    changes
}

/// Returns whether the verdict on subsequent fragments can depend on the content of the first one. The
/// specification caches every first fragment; one that no verdict depends on need not be cached.
fn depends_on_content(situation: &Situation<'_>) -> bool {
    let Situation { case, packet, world, .. } = situation;
    match case.hook {
        HookPoint::VethIngress(_) => true,
        HookPoint::UplinkIngress => world.is_shared(packet.destination),
        HookPoint::HostLoIngress | HookPoint::ContainerLoEgress => world.is_local(packet.destination),
        HookPoint::UplinkEgress | HookPoint::ContainerEth0Ingress => false,
    }
}
