//! Capacity: what containers can still get on this host.

use serde::{Deserialize, Serialize};

use super::wire::{self, As, AsOption};
use crate::model::{PortRange, PortSet};

/// What containers can still get on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// Containers, and how many more are possible.
    pub containers: ContainerCapacity,
    /// Slots.
    pub slots: SlotCapacity,
    /// Static ports.
    pub static_ports: StaticCapacity,
    /// Ephemeral ports.
    pub ephemeral_ports: EphemeralCapacity,
    /// The daemon's limits on rates.
    pub limits: LimitPolicies,
}

/// Containers, and how many more are possible.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerCapacity {
    /// Number of containers.
    pub total: usize,
    /// How many more containers can be added now with the default size of a block.
    pub fit: usize,
    /// How many more can be added once no block is in quarantine any more.
    pub fit_after_quarantine: usize,
    /// The resource that bounds both numbers.
    pub bound_by: Bound,
}

/// The resource that bounds the number of containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// Blocks of ephemeral ports.
    EphemeralPorts,
    /// Slots.
    Slots,
}

impl Bound {
    /// The name in JSON and in the output of commands.
    pub const fn name(self) -> &'static str {
        match self {
            Self::EphemeralPorts => "ephemeral_ports",
            Self::Slots => "slots",
        }
    }
}

/// Slots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotCapacity {
    /// Number of slots.
    pub total: usize,
    /// Slots of containers.
    pub owned: usize,
    /// Slots that containers can get.
    pub free: usize,
}

/// Static ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StaticCapacity {
    /// Number of ports of `--ports`.
    pub total: usize,
    /// Ports of containers, with those that running updates reserve.
    pub owned: usize,
    /// Ports that no container owns.
    pub free: usize,
    /// The longest run of free ports; the first one of several.
    #[serde(default, with = "AsOption::<wire::Range>")]
    pub largest_free_run: Option<PortRange>,
    /// The free ports.
    #[serde(with = "As::<wire::Ports>")]
    pub free_ports: PortSet,
}

/// Ephemeral ports. `total` is the sum of `owned`, `free`, `quarantined` and `host`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EphemeralCapacity {
    /// Number of ports of `--ephemeral-ports`.
    pub total: usize,
    /// Ports of containers.
    pub owned: usize,
    /// Ports that containers can get.
    pub free: usize,
    /// Ports of released blocks in quarantine.
    pub quarantined: usize,
    /// Ports that processes of the host use. A block with one of them is given to no container.
    pub host: usize,
    /// Seconds until the next block in quarantine is free, rounded up; `None` if there is none.
    pub next_free_seconds: Option<u64>,
    /// Default size of a container's block.
    pub per_container: u16,
    /// Blocks by size.
    pub blocks: Vec<BlockCapacity>,
}

/// Blocks of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockCapacity {
    /// Number of ports of a block.
    pub size: u16,
    /// How many containers can get such a block, if no other size is requested.
    pub free: usize,
    /// How many containers have one.
    pub owned: usize,
    /// How many are in quarantine.
    pub quarantined: usize,
}

/// The daemon's limits on rates, from its flags.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitPolicies {
    /// Limits on what containers send.
    pub egress: LimitPolicy,
    /// Limits on what they receive.
    pub ingress: LimitPolicy,
    /// Speed of the fastest uplink in bytes per second; `None` if it is unknown.
    pub link_speed: Option<u64>,
}

/// The daemon's limits in one direction, in bytes per second; `None` without such a limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitPolicy {
    /// Default limit of a container.
    pub per_container: Option<u64>,
    /// Limit per whole CPU of a container; a limit `auto` as computed from the link speed.
    pub per_cpu: Option<u64>,
    /// Lower bound of limits that follow from CPUs.
    pub minimum: Option<u64>,
    /// Upper bound of each limit.
    pub maximum: Option<u64>,
}
