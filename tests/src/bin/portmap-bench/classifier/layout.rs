//! Owners of ports, and destination ports of packets.

use portmap::model::PortRange;
use portmap_common::{
    slot::veth_ifindex,
    tables::{PORTS, PortEntry},
};

use crate::classifier::statistics::Random;

/// Numbers of containers that are measured.
pub(crate) const CONTAINERS: [u16; 4] = [1, 10, 100, 1_000];
/// The largest number of containers.
pub(crate) const MOST_CONTAINERS: u16 = 1_000;
/// Ranges of each container: three of static ports and one ephemeral block.
pub(crate) const RANGES: usize = 4;

const STATIC_RANGES: u16 = 3;
const STATIC_FIRST: u16 = 4_096;
const STATIC_LENGTH: u16 = 4;
const EPHEMERAL_FIRST: u16 = 32_768;
const EPHEMERAL_LENGTH: u16 = 32;
/// Ports that no container ever owns.
const HOST_FIRST: u16 = 16_384;

/// The destination ports of a trial's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mix {
    /// Ports of containers, uniformly distributed.
    Owned,
    /// Ports of the host.
    Unowned,
}

impl Mix {
    pub(crate) const ALL: [Self; 2] = [Self::Owned, Self::Unowned];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Owned => "owned",
            Self::Unowned => "unowned",
        }
    }
}

/// Returns the slots of the first `containers` containers.
pub(crate) fn slots(containers: u16) -> impl Iterator<Item = u16> {
    1..=containers
}

/// Returns the ranges of a container, ascending. Each range is aligned and its length is a power of two, so
/// that one u32 filter covers it.
pub(crate) fn ranges(slot: u16) -> [PortRange; RANGES] {
    let index = slot - 1;
    let aligned = |first: u16, length: u16| PortRange::new(first, first + length - 1).expect("ascending");
    let fixed =
        |range: u16| aligned(STATIC_FIRST + (range * MOST_CONTAINERS + index) * STATIC_LENGTH, STATIC_LENGTH);
    const { assert!(STATIC_RANGES as usize + 1 == RANGES) };
    [fixed(0), fixed(1), fixed(2), aligned(EPHEMERAL_FIRST + index * EPHEMERAL_LENGTH, EPHEMERAL_LENGTH)]
}

/// Returns the port table of the first `containers` containers.
pub(crate) fn table(containers: u16) -> Vec<PortEntry> {
    let mut table = vec![PortEntry::default(); PORTS];
    for slot in slots(containers) {
        for port in ranges(slot).into_iter().flat_map(|range| range.first()..=range.last()) {
            table[usize::from(port)] = entry(slot);
        }
    }
    table
}

/// Returns the entry of a port that the container in `slot` owns.
pub(crate) const fn entry(slot: u16) -> PortEntry {
    PortEntry { ifindex: veth_ifindex(slot), slot, flags: 0 }
}

/// Returns `length` random ports of a mix.
pub(crate) fn sequence(containers: u16, mix: Mix, length: usize, random: &mut Random) -> Vec<u16> {
    let ports: Vec<u16> = match mix {
        Mix::Owned => {
            slots(containers).flat_map(ranges).flat_map(|range| range.first()..=range.last()).collect()
        }
        Mix::Unowned => (HOST_FIRST..EPHEMERAL_FIRST).collect(),
    };
    (0..length).map(|_| ports[random.below(ports.len())]).collect()
}
