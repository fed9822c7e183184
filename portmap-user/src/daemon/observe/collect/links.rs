//! Errors and drops of the containers' host veths.

use std::{collections::BTreeMap, sync::Arc};

use portmap_common::slot::veth_ifindex;

use crate::{
    daemon::registry::{Life, Snapshot},
    model::LinkErrors,
};

/// A container and the index of its host veth.
pub(super) type LinkSource = (Life, u32);

/// The containers in service with their host veths, sorted.
pub(super) fn link_sources(containers: &Snapshot) -> Arc<[LinkSource]> {
    let of = containers.ready_entries().map(|entry| (entry.life, veth_ifindex(entry.record.slot)));
    let mut all: Vec<LinkSource> = of.collect();
    all.sort_unstable();
    all.into()
}

/// A reading of host veths.
pub(super) struct HostReading {
    sources: Arc<[LinkSource]>,
    links: BTreeMap<Life, Link>,
}

/// Counters of a container's host veth.
#[derive(Clone, Copy, Default)]
struct Link {
    /// Those of the interface at its last reading.
    last: LinkErrors,
    /// Those of the container. They continue if the interface is created again.
    total: LinkErrors,
}

impl HostReading {
    /// The reading after `before`, given the counters of all interfaces that were found. A container whose
    /// interface was not found keeps those that it had.
    pub(super) fn next(
        sources: Arc<[LinkSource]>,
        before: Option<&Self>,
        found: &BTreeMap<u32, LinkErrors>,
    ) -> Self {
        let link = |(life, ifindex): &LinkSource| {
            let before = before.and_then(|before| before.links.get(life)).copied();
            let link = match found.get(ifindex) {
                Some(now) => before.unwrap_or_default().after(*now),
                None => before?,
            };
            Some((*life, link))
        };
        let links = sources.iter().filter_map(link).collect();
        Self { sources, links }
    }

    /// Whether it is a reading of all these.
    pub(super) fn is_of(&self, sources: &[LinkSource]) -> bool {
        sources.iter().all(|source| self.sources.binary_search(source).is_ok())
    }

    /// The counters of a container; `None` if its interface was never found.
    pub(super) fn link(&self, life: Life) -> Option<LinkErrors> {
        self.links.get(&life).map(|link| link.total)
    }
}

impl Link {
    fn after(self, now: LinkErrors) -> Self {
        let Self { last, total } = self;
        // An interface that was created again counts from 0.
        let since = |last: u64, now: u64| now.checked_sub(last).unwrap_or(now);
        let total = LinkErrors {
            rx_errors: total.rx_errors + since(last.rx_errors, now.rx_errors),
            rx_dropped: total.rx_dropped + since(last.rx_dropped, now.rx_dropped),
            tx_errors: total.tx_errors + since(last.tx_errors, now.tx_errors),
            tx_dropped: total.tx_dropped + since(last.tx_dropped, now.tx_dropped),
        };
        Self { last: now, total }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(ifindex: u32, rx_errors: u64) -> BTreeMap<u32, LinkErrors> {
        [(ifindex, LinkErrors { rx_errors, tx_dropped: 2 * rx_errors, ..LinkErrors::default() })].into()
    }

    fn errors(reading: &HostReading, life: Life) -> Option<[u64; 2]> {
        reading.link(life).map(|link| [link.rx_errors, link.tx_dropped])
    }

    /// They never decrease: not if a reading fails, and not if the interface is created again.
    #[test]
    fn link_errors_of_a_container_never_decrease() {
        let life = Life::next();
        let sources: Arc<[LinkSource]> = [(life, 7)].into();
        let next = |before: Option<&HostReading>, found| HostReading::next(sources.clone(), before, &found);
        let none = next(None, BTreeMap::new());
        assert_eq!(errors(&none, life), None, "unknown, not 0");
        assert!(none.is_of(&sources), "a reading that failed is not repeated at once");
        let five = next(Some(&none), found(7, 5));
        assert_eq!(errors(&five, life), Some([5, 10]));
        let kept = next(Some(&five), BTreeMap::new());
        assert_eq!(errors(&kept, life), Some([5, 10]), "the reading failed");
        let more = next(Some(&kept), found(7, 6));
        assert_eq!(errors(&more, life), Some([6, 12]));
        let again = next(Some(&more), found(7, 2));
        assert_eq!(errors(&again, life), Some([8, 16]), "another interface");
    }

    /// The interface of another life has the same index.
    #[test]
    fn link_errors_begin_at_zero_with_a_life() {
        let (old, new) = (Life::next(), Life::next());
        let before = HostReading::next([(old, 7)].into(), None, &found(7, 5));
        assert!(!before.is_of(&[(new, 7)]), "it must be read again");
        assert_eq!(errors(&before, new), None);
        let after = HostReading::next([(new, 7)].into(), Some(&before), &found(7, 1));
        assert_eq!([errors(&after, old), errors(&after, new)], [None, Some([1, 2])]);
    }
}
