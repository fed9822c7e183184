//! What an event says about a change of a container.

use super::snapshot::Entry;
use crate::{
    api::{ContainerState, EventContainer, EventDetails, EventKind},
    daemon::events::Events,
    model::Limit,
};

/// Sends the event of a change between two states of a container, if it is one that clients see.
pub(super) fn emit(events: &Events, before: Option<&Entry>, after: Option<&Entry>) {
    let (Some(kind), Some(entry)) = (kind(before, after), after.or(before)) else { return };
    let container = EventContainer { name: entry.record.name.clone(), details: Some(details(entry)) };
    events.emit(kind, Some(container), None);
}

/// What clients see of a container.
fn details(entry: &Entry) -> EventDetails {
    let record = &entry.record;
    let rate = |limit: &Option<Limit>| limit.as_ref().map(|limit| limit.rate);
    EventDetails {
        slot: record.slot,
        state: entry.state(),
        ports: record.ports.clone(),
        ephemeral_ports: record.ephemeral_ports,
        egress_rate: rate(&record.egress),
        ingress_rate: rate(&record.ingress),
        labels: record.labels.clone(),
    }
}

fn kind(before: Option<&Entry>, after: Option<&Entry>) -> Option<EventKind> {
    use ContainerState::{Adding, Broken, Deleting, Ready};

    match (before.map(Entry::state), after.map(Entry::state)) {
        (None | Some(Adding), Some(Ready)) => Some(EventKind::Added),
        (Some(Ready | Broken | Deleting), None) => Some(EventKind::Removed),
        (Some(Ready), Some(Broken)) => Some(EventKind::Broken),
        (Some(Broken), Some(Ready)) => Some(EventKind::Repaired),
        (Some(Ready), Some(Ready)) | (Some(Broken), Some(Broken)) => {
            // A record also has steps of a command that clients do not see.
            let has_changed =
                before.zip(after).is_some_and(|(before, after)| details(before) != details(after));
            has_changed.then_some(EventKind::Updated)
        }
        // Steps of a command, whose end has an event; a failed one has that of the command.
        _ => None,
    }
}
