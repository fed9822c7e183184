//! Putting the same question to the model, the decision code and the kernel.

use std::{collections::HashMap, mem};

use portmap_common::{hook_point::HookPoint, reason::Reason, slot::HOST_SLOT};
use portmap_ebpf::Verdict;

use crate::{
    kernel::Kernel,
    recording_tables::RecordingTables,
    spec_model::{self, Situation},
    spec_parser::{self, Content},
    spec_state::{Asker, Carried, Entry, Note, SpecState},
    world::{Case, World},
};

/// So many different disagreements are shown.
const SHOWN: usize = 12;

/// The time at which everything happens, in nanoseconds.
pub(crate) const NOW: u64 = 1 << 50;

/// One world, what the model, the decision code and the kernel remember in it, and how often they disagreed.
pub(crate) struct Differential<'a> {
    pub(crate) world: &'a World,
    pub(crate) memory: SpecState,
    pub(crate) tally: Tally,
    /// Whether the kernel is asked. It takes ten times as long as the others.
    pub(crate) asks_kernel: bool,
    maps: RecordingTables<'a>,
    kernel: Option<&'a mut Kernel>,
}

/// What a judge found.
#[derive(Default)]
pub(crate) struct Tally {
    /// Verdicts of the decision code.
    pub(crate) decided: u64,
    /// Verdicts of the kernel.
    pub(crate) asked: u64,
    /// How often each row of each table was the one that counted.
    pub(crate) rows: HashMap<(&'static str, usize), u64>,
    /// What has been used of limits, in bytes by slot.
    pub(crate) spent: HashMap<u16, u64>,
    pub(crate) failures: HashMap<(HookPoint, usize, mem::Discriminant<Verdict>, bool), String>,
}

impl<'a> Differential<'a> {
    /// Somebody who asks the kernel, too, if there is one.
    pub(crate) fn new(world: &'a World, mut kernel: Option<&'a mut Kernel>) -> Self {
        if let Some(kernel) = &mut kernel {
            kernel.set_world(world);
        }
        let (memory, tally, maps) =
            (SpecState::default(), Tally::default(), RecordingTables::new(world, NOW));
        Self { world, memory, tally, asks_kernel: true, maps, kernel }
    }

    /// Makes everybody remember something.
    pub(crate) fn remember(&mut self, note: Note) {
        self.memory.write(note);
        self.maps.write(note.into());
        if let Some(kernel) = &mut self.kernel {
            kernel.remember(note.into());
        }
    }

    /// Makes everybody forget everything.
    pub(crate) fn forget(&mut self) {
        for note in self.memory.notes() {
            if let Some(kernel) = &mut self.kernel {
                kernel.forget(note.into());
            }
        }
        self.memory = SpecState::default();
        self.maps.forget();
    }

    /// Makes a kernel forget that was not asked.
    pub(crate) fn forget_in(&self, kernel: &mut Kernel) {
        self.memory.notes().for_each(|note| kernel.forget(note.into()));
    }

    /// Asks everybody. What follows from the packet for later ones is remembered.
    pub(crate) fn ask(&mut self, what: &str, case: &Case<'_>) -> Verdict {
        let (verdict, notes) = self.compare(what, case);
        // What the model remembers is what the others remember from now on, so that one mistake is reported
        // once.
        self.maps.take_back();
        for note in notes {
            self.remember(note);
        }
        verdict
    }

    /// Asks everybody as if the packet had not been there.
    pub(crate) fn ask_once(&mut self, what: &str, case: &Case<'_>) -> Verdict {
        let (verdict, _notes) = self.compare(what, case);
        self.maps.take_back();
        verdict
    }

    fn compare(&mut self, what: &str, case: &Case<'_>) -> (Verdict, Vec<Note>) {
        let decided = self.maps.decide(case);
        let tried = self.maps.tried.take();
        let spent = self.maps.spent.get();
        let packet = spec_parser::read(case, self.world, &self.memory, NOW);
        let situation =
            Situation { case, packet: &packet, world: self.world, memory: &self.memory, tried: &tried };
        let (row, expected) = spec_model::decide(&situation);
        let notes = model_notes(&situation, expected);
        let to_spend = situation.spent(expected);
        *self.tally.spent.entry(situation.sender()).or_default() += to_spend;
        let entries: Vec<Entry> = notes.iter().map(|note| Entry::from(*note)).collect();
        let kernel = self.kernel.as_mut().filter(|_| self.asks_kernel);
        let asked = kernel.and_then(|kernel| kernel.decide(case));
        let asked = match (asked, &mut self.kernel) {
            // What the kernel remembers grows old; if that has made the difference, it makes none any more.
            (Some(verdict), Some(kernel)) if verdict != expected => {
                self.memory.notes().for_each(|note| kernel.remember(note.into()));
                kernel.decide(case)
            }
            _ => asked,
        };
        self.tally.decided += 1;
        self.tally.asked += u64::from(asked.is_some());
        *self.tally.rows.entry((case.hook.program(), row)).or_default() += 1;
        let written = self.maps.written();
        let are_noted = entries.iter().all(|entry| self.maps.like(*entry) == Some(*entry))
            && written.iter().all(|entry| entries.contains(entry));
        if decided != expected
            || !are_noted
            || spent != to_spend
            || asked.is_some_and(|asked| asked != expected)
        {
            let failures = &mut self.tally.failures;
            let kind = (case.hook, row, mem::discriminant(&decided), decided == expected);
            if failures.len() < SHOWN && !failures.contains_key(&kind) {
                let row = spec_model::rows(case.hook)[row].packet;
                let text = format!(
                    "{what}\n{case:?}\n  model:  {expected:?} ({row})\n  code:   {decided:?}\n  kernel: {asked:?}\n  \
                     remembered by the model: {entries:?}\n  by the code: {written:?}\n  tried: {tried:?}\n  \
                     used of the limit: {to_spend}, by the code {spent}\n",
                );
                failures.insert(kind, text);
            }
        }
        (expected, notes)
    }
}

impl Tally {
    /// The findings of two judges.
    pub(crate) fn plus(mut self, other: Self) -> Self {
        self.decided += other.decided;
        self.asked += other.asked;
        for (row, times) in other.rows {
            *self.rows.entry(row).or_default() += times;
        }
        self.failures.extend(other.failures);
        self
    }

    /// Fails if there was a disagreement.
    pub(crate) fn expect_agreement(&self) {
        let texts: Vec<&str> = self.failures.values().map(String::as_str).collect();
        assert!(texts.is_empty(), "of {} verdicts, for example:\n{}", self.decided, texts.join("\n"));
    }
}

/// What is remembered of a packet.
fn model_notes(situation: &Situation<'_>, verdict: Verdict) -> Vec<Note> {
    let Situation { case, packet, .. } = situation;
    let mut notes = Vec::new();
    let is_dropped = matches!(verdict, Verdict::Drop { .. } | Verdict::AlreadyHandled);
    if let (Some(datagram), false, true) = (packet.first_of, is_dropped, depends_on_content(situation)) {
        let carried = match packet.content {
            Content::Ports { source, destination } => Some(Carried::Ports { source, destination }),
            Content::EchoRequest { id, .. } => Some(Carried::EchoRequest(id)),
            Content::EchoReply { id, .. } => Some(Carried::EchoReply(id)),
            Content::Error { .. } | Content::None => None,
        };
        // What first fragments say within a moment counts as long as they say the same.
        let counts = match situation.memory.just_carried(&datagram, NOW) {
            Some(Carried::Contradicted) => None,
            Some(before) if Some(before) != carried => carried.map(|_other| Carried::Contradicted),
            _ => carried,
        };
        notes.extend(counts.map(|counts| Note::Fragment(datagram, NOW, counts)));
    }
    let was_sent_on =
        matches!(verdict, Verdict::ToOutside { .. } | Verdict::Drop { reason: Reason::EchoBusy, .. });
    if was_sent_on && situation.is_for_new_neighbour() {
        notes.push(Note::Neighbour(situation.sender(), packet.destination, NOW));
    }
    if let Content::EchoRequest { id, at: Some(_) } = packet.content {
        let peer = packet.destination;
        match (case.hook, verdict) {
            (HookPoint::VethIngress(slot), Verdict::ToOutside { .. }) => {
                let outside = situation.outside_id(id).expect("the verdict depends on it");
                let generation = situation.world.containers[&slot];
                notes.push(Note::Echo(peer, outside, NOW, Asker { slot, generation, id }));
            }
            (HookPoint::UplinkEgress, _) if case.ingress == 0 && situation.world.is_shared(packet.source) => {
                notes.push(Note::Echo(peer, id, NOW, Asker { slot: HOST_SLOT, generation: 0, id }));
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
        && packet.transport.is_some_and(|transport| transport.protocol != spec_model::TCP)
    {
        let key = situation.host_flow(owner.slot, destination, source);
        notes.extend(key.map(|key| Note::HostFlow(key, NOW)));
    }
    notes
}

/// Whether the verdict on later fragments can depend on what the first one carried. The specification has
/// every first fragment remembered; one that speaks for nobody need not be.
fn depends_on_content(situation: &Situation<'_>) -> bool {
    let Situation { case, packet, world, .. } = situation;
    match case.hook {
        HookPoint::VethIngress(_) => true,
        HookPoint::UplinkIngress => world.is_shared(packet.destination),
        HookPoint::HostLoIngress | HookPoint::ContainerLoEgress => world.is_local(packet.destination),
        HookPoint::UplinkEgress | HookPoint::ContainerEth0Ingress => false,
    }
}
