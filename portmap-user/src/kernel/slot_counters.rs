//! The counters of many slots in few system calls (`BPF_MAP_LOOKUP_BATCH`).

use std::{
    collections::BTreeSet,
    io,
    ops::RangeInclusive,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::{Pod, maps::MapData};
use aya_obj::generated::bpf_cmd;
use portmap_common::{counters::Counters, reason::Drops};

use super::pins;
use crate::kernel::error::{Failure, Result};

/// Most bytes of delivered traffic that a system call returns. Larger buffers do not stay in the CPU's cache.
const ROOM: usize = 32 << 10;
/// Slots that no container has are read, too, if there are at most this many between two that are wanted. A
/// system call costs as much as some more values.
const GAP: u16 = 8;

/// The counters of a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotCounts {
    /// Delivered traffic, summed over all CPUs.
    pub delivered: Counters,
    /// Dropped packets.
    pub drops: Drops,
}

/// The counters of some slots.
#[derive(Clone, Debug, Default)]
pub struct SlotTable(Vec<(u16, SlotCounts)>);

impl SlotTable {
    /// The counters of a slot; zeros if it was not read.
    pub fn get(&self, slot: u16) -> SlotCounts {
        let place = self.0.binary_search_by_key(&slot, |(slot, _)| *slot);
        place.ok().and_then(|place| self.0.get(place)).map_or_else(SlotCounts::default, |(_, counts)| *counts)
    }
}

/// The maps with a counter for each slot. No lock is needed to read them.
pub(super) struct SlotCounters {
    counters: MapData,
    drops: MapData,
    /// CPUs that the kernel may ever have: a per-CPU map has a value for each.
    cpus: usize,
}

impl SlotCounters {
    /// The maps `pm_counters` and `pm_drops`.
    pub(super) fn new(counters: MapData, drops: MapData) -> Result<Self> {
        Ok(Self { counters, drops, cpus: cpus()? })
    }

    pub(super) fn read(&self, slots: &BTreeSet<u16>) -> io::Result<SlotTable> {
        let longest = (ROOM / (size_of::<Counters>() * self.cpus)).max(1);
        let (mut counters, mut drops, mut found) = (Vec::new(), Vec::new(), Vec::with_capacity(slots.len()));
        for run in runs(slots, longest) {
            let count = run.len();
            counters.resize(count * self.cpus, Counters::default());
            drops.resize(count, Drops::default());
            lookup(&self.counters, *run.start(), self.cpus, &mut counters)?;
            lookup(&self.drops, *run.start(), 1, &mut drops)?;
            let values = counters.chunks(self.cpus).zip(&drops);
            for (slot, (per_cpu, drops)) in run.zip(values).filter(|(slot, _)| slots.contains(slot)) {
                let delivered = per_cpu.iter().fold(Counters::default(), Counters::plus);
                found.push((slot, SlotCounts { delivered, drops: *drops }));
            }
        }
        Ok(SlotTable(found))
    }
}

/// The number of values of an element of a per-CPU map.
pub(super) fn cpus() -> Result<usize> {
    aya::util::nr_cpus().map_err(|(file, error)| {
        Failure::caused_by(format!("cannot read the number of CPUs from {file}"), error).into()
    })
}

/// The slots as few ranges of at most `longest` slots each.
fn runs(slots: &BTreeSet<u16>, longest: usize) -> Vec<RangeInclusive<u16>> {
    let mut runs: Vec<RangeInclusive<u16>> = Vec::new();
    for slot in slots.iter().copied() {
        match runs.last_mut() {
            Some(run) if slot - *run.end() <= GAP + 1 && usize::from(slot - *run.start()) < longest => {
                *run = *run.start()..=slot;
            }
            _ => runs.push(slot..=slot),
        }
    }
    runs
}

/// The part of `union bpf_attr` for this command.
#[repr(C)]
struct Batch {
    before: u64,
    last: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// Reads elements of an array from `first` on, as many as there is room for. Each has `values_each` values: one, or
/// one for each CPU.
fn lookup<V: Pod>(map: &MapData, first: u16, values_each: usize, values: &mut [V]) -> io::Result<()> {
    let count = values.len() / values_each;
    // The key before the first one; there is none before 0.
    let before = first.checked_sub(1).map(u32::from);
    let (mut last, mut keys) = (0_u32, vec![0_u32; count]);
    let mut batch = Batch {
        before: before.as_ref().map_or(0, |before| std::ptr::from_ref(before).expose_provenance() as u64),
        last: (&raw mut last).expose_provenance() as u64,
        keys: keys.as_mut_ptr().expose_provenance() as u64,
        values: values.as_mut_ptr().expose_provenance() as u64,
        count: u32::try_from(count).unwrap_or(0),
        map: map.fd().as_fd().as_raw_fd().cast_unsigned(),
        element_flags: 0,
        flags: 0,
    };
    // SAFETY: the attributes are a prefix of those of the command. `before`, `last`, `keys` and `values` outlive the
    // call; the kernel writes at most `count` keys and elements, for which there is room, and any bytes are values
    // of `V`.
    unsafe { pins::command(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut batch) }?;
    if batch.count as usize == count && keys.first() == Some(&u32::from(first)) {
        Ok(())
    } else {
        Err(io::Error::other(format!("the kernel returned {} of {count} elements", batch.count)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_counters_are_read_in_few_ranges() {
        let of = |slots: &[u16], longest| runs(&slots.iter().copied().collect(), longest);
        assert_eq!(of(&[], 100), []);
        assert_eq!(of(&[0, 1, 2, 11, 21, u16::MAX], 100), [0..=11, 21..=21, u16::MAX..=u16::MAX]);
        assert_eq!(of(&[1, 2, 3, 4, 5], 2), [1..=2, 3..=4, 5..=5]);
        let all: Vec<u16> = (0..=u16::MAX).collect();
        assert_eq!(of(&all, 65_536), [0..=u16::MAX]);
    }
}
