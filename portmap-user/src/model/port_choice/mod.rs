//! The choice of automatic ranges among the free static ports.
//!
//! Three rules, in this order:
//!
//! 1. A container keeps the ports that it has, where they satisfy the request.
//! 2. Ports that were released lately are chosen last, the most recently released ones last of all: peers may
//!    still have connections to their previous container.
//! 3. Among the others, a range is taken from the start of the shortest run of free ports in which it fits, so
//!    that long runs remain for requests that need them.

use std::{collections::VecDeque, time::Duration};

use super::{
    port_request::AutomaticRange,
    ports::{PortRange, PortSet},
};

/// Time for which a port counts as released lately: that of `TIME_WAIT` in Linux.
const LATELY: Duration = Duration::from_mins(1);

/// Static ports that were released lately.
#[derive(Clone, Debug, Default)]
pub struct Released(VecDeque<(Duration, PortSet)>);

impl Released {
    /// Notes ports that a container has lost at the time `now`.
    pub fn note(&mut self, ports: PortSet, now: Duration) {
        while self.0.front().is_some_and(|(since, _)| now.saturating_sub(*since) >= LATELY) {
            self.0.pop_front();
        }
        if !ports.is_empty() {
            self.0.push_back((now, ports));
        }
    }

    /// The sets of ports that were released lately at the time `now`, the oldest first.
    fn releases(&self, now: Duration) -> Vec<&PortSet> {
        let is_lately = |since: Duration| now.saturating_sub(since) < LATELY;
        self.0.iter().filter(|(since, _)| is_lately(*since)).map(|(_, ports)| ports).collect()
    }
}

/// What ranges are chosen from.
#[derive(Clone, Copy, Debug)]
pub struct Supply<'a> {
    /// The ports that can be chosen, those in `own` excluded.
    pub free: &'a PortSet,
    /// The ranges that the container has and that can be chosen again, in the order of its earlier request.
    pub own: &'a [PortRange],
    /// The ports that containers have lost.
    pub released: &'a Released,
    /// The present time.
    pub now: Duration,
}

/// A range that does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// The request.
    pub wanted: AutomaticRange,
    /// The longest run of ports that could be chosen, after the other ranges of the request.
    pub longest: Option<PortRange>,
}

impl Supply<'_> {
    /// Chooses a range for each request; the result is in the order of the requests.
    ///
    /// One range is found whenever it fits, and so are several of the same size without alignment. Others may be
    /// refused although a better arrangement of them exists.
    ///
    /// # Errors
    ///
    /// The first range that does not fit.
    pub fn choose(&self, requests: &[AutomaticRange]) -> Result<Vec<PortRange>, Shortage> {
        // Each preference can break up a run that another range needs.
        let own_first = || self.arrange(requests, true, true);
        own_first()
            .or_else(|_| self.arrange(requests, false, true))
            .or_else(|_| self.arrange(requests, false, false))
    }

    fn arrange(
        &self,
        requests: &[AutomaticRange],
        prefers_own: bool,
        avoids_released: bool,
    ) -> Result<Vec<PortRange>, Shortage> {
        let mut own: Vec<PortRange> = self.own.to_vec();
        let mut available = self.free.union(&self.own.to_vec().into());
        let mut chosen: Vec<Option<PortRange>> = vec![None; requests.len()];
        if prefers_own {
            for (request, chosen) in requests.iter().zip(&mut chosen) {
                if let Some(index) = own.iter().position(|range| is_satisfied(*request, *range)) {
                    let range = own.remove(index);
                    available = available.difference(&range.into());
                    *chosen = Some(range);
                }
            }
        }
        let releases = if avoids_released { self.released.releases(self.now) } else { Vec::new() };
        // The ranges that are hardest to fit come first.
        let mut order: Vec<usize> = (0..requests.len()).filter(|index| chosen[*index].is_none()).collect();
        order.sort_by_key(|index| {
            let request = requests[*index];
            std::cmp::Reverse((request.alignment(), request.count))
        });
        for index in order {
            let request = requests[index];
            let kept = if prefers_own { keep(request, &own, &available) } else { None };
            let range = kept
                .or_else(|| least_recent(request, &available, &releases))
                .ok_or_else(|| Shortage { wanted: request, longest: available.longest_run() })?;
            own = PortSet::from(own).difference(&range.into()).ranges().to_vec();
            available = available.difference(&range.into());
            chosen[index] = Some(range);
        }
        Ok(chosen.into_iter().flatten().collect())
    }
}

/// A range that shares as many ports as possible with one of `own`: a part of it, or one that includes it.
fn keep(request: AutomaticRange, own: &[PortRange], available: &PortSet) -> Option<PortRange> {
    let inside = best_fit(request, &own.to_vec().into());
    inside.or_else(|| own.iter().find_map(|range| including(request, *range, available)))
}

/// A longer range that includes all of `core`, and begins as late as possible, so that it grows upwards.
fn including(request: AutomaticRange, core: PortRange, available: &PortSet) -> Option<PortRange> {
    let run =
        available.ranges().iter().find(|run| run.contains(core.first()) && run.contains(core.last()))?;
    let count = u32::from(request.count.get());
    let latest = u32::from(core.first()).min((u32::from(run.last()) + 1).checked_sub(count)?);
    let first = latest / request.alignment() * request.alignment();
    let includes_core = first + count > u32::from(core.last());
    if first < u32::from(run.first()) || !includes_core { None } else { range_from(first, request) }
}

/// The best fit among the ports whose release is as long ago as possible.
fn least_recent(request: AutomaticRange, available: &PortSet, releases: &[&PortSet]) -> Option<PortRange> {
    // The more of the oldest releases are used, the more ranges fit, so a binary search finds the least number.
    let attempt = |used: usize| {
        let avoided = releases.iter().skip(used).flat_map(|ports| ports.ranges().iter().copied());
        best_fit(request, &available.difference(&avoided.collect::<Vec<_>>().into()))
    };
    let (mut too_few, mut enough) = (0, releases.len());
    while too_few < enough {
        let middle = usize::midpoint(too_few, enough);
        if attempt(middle).is_some() { enough = middle } else { too_few = middle + 1 }
    }
    attempt(enough)
}

/// The first suitable range in the shortest run of ports that has one.
fn best_fit(request: AutomaticRange, ports: &PortSet) -> Option<PortRange> {
    let fits = ports.ranges().iter().filter_map(|run| Some((run.count(), first_fit(request, *run)?)));
    fits.min_by_key(|(length, range)| (*length, *range)).map(|(_, range)| range)
}

/// The first suitable range in a run of ports.
fn first_fit(request: AutomaticRange, run: PortRange) -> Option<PortRange> {
    let range = range_from(u32::from(run.first()).next_multiple_of(request.alignment()), request)?;
    (range.last() <= run.last()).then_some(range)
}

fn range_from(first: u32, request: AutomaticRange) -> Option<PortRange> {
    let last = first + u32::from(request.count.get()) - 1;
    PortRange::new(u16::try_from(first).ok()?, u16::try_from(last).ok()?)
}

/// Whether a range has the requested length and alignment.
fn is_satisfied(request: AutomaticRange, range: PortRange) -> bool {
    range.count() == usize::from(request.count.get())
        && u32::from(range.first()).is_multiple_of(request.alignment())
}

#[cfg(test)]
mod tests;
