//! Events: changes of containers, of the host and of the daemon, as they happen.

use serde::{Deserialize, Serialize};

use super::{
    container_state::ContainerState,
    wire::{self, As},
};
use crate::model::{Labels, PortRange, PortSet};

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// This stream has begun: it contains every later event.
    Subscribed,
    /// A container is in service.
    Added,
    /// A container's ports, limits or labels have changed.
    Updated,
    /// A container is gone.
    Removed,
    /// A container's veth pair is missing, and the daemon could not recreate it.
    Broken,
    /// A broken container is in service again.
    Repaired,
    /// A command on a container has failed.
    Failed,
    /// The host's shared addresses or its uplinks have changed.
    HostChanged,
    /// The daemon ends; containers stay in service.
    Stopping,
}

impl EventKind {
    /// The name in JSON and in the output of commands.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Subscribed => "subscribed",
            Self::Added => "added",
            Self::Updated => "updated",
            Self::Removed => "removed",
            Self::Broken => "broken",
            Self::Repaired => "repaired",
            Self::Failed => "failed",
            Self::HostChanged => "host_changed",
            Self::Stopping => "stopping",
        }
    }
}

/// The request that has caused an event or a line of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requester {
    /// Number of the request since the daemon started.
    pub id: u64,
    /// The user who made it.
    pub uid: u32,
    /// The process that made it; `None` if it is in a pid namespace that the daemon cannot see.
    pub pid: Option<u32>,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its number since the daemon started: each event has the next one.
    pub seq: u64,
    /// Its time: the host's local time with milliseconds and UTC offset (RFC 3339).
    pub time: String,
    /// What has happened.
    pub event: EventKind,
    /// The container that it concerns, after the event; before it if the container is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<EventContainer>,
    /// Details for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The request that has caused it; `None` if the daemon did it by itself.
    pub request: Option<Requester>,
}

/// The container of an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventContainer {
    /// Its name.
    pub name: String,
    /// Its other properties; `None` if a command has failed.
    #[serde(flatten)]
    pub details: Option<EventDetails>,
}

/// Properties of the container of an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventDetails {
    /// Its slot.
    pub slot: u16,
    /// Its state.
    pub state: ContainerState,
    /// Its static ports.
    #[serde(with = "As::<wire::Ports>")]
    pub ports: PortSet,
    /// Its block of ephemeral ports.
    #[serde(with = "As::<wire::Range>")]
    pub ephemeral_ports: PortRange,
    /// Its limit on sending in bytes per second, if there is one.
    pub egress_rate: Option<u64>,
    /// Its limit on receiving in bytes per second, if there is one.
    pub ingress_rate: Option<u64>,
    /// Its labels.
    #[serde(with = "As::<wire::Labels>")]
    pub labels: Labels,
}

/// An item of the stream of events: an event, or a gap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum EventStreamItem {
    /// An event.
    Event(Event),
    /// The daemon discarded events because this client did not read fast enough.
    Missed {
        /// Number of discarded events.
        missed: u64,
    },
}
