//! Whether a container may send a packet now, as far as the limit on its rate goes.
//!
//! Its own queue holds a container to the limit, without loss. But that queue is inside the container, whose root can do
//! away with it; what then comes too fast is dropped here. The schedule is as generous as a queue can be late.

use crate::tables::Tables;

/// Whether a packet of so many bytes on the wire may pass. If so, it has used up its part of the limit.
#[inline(always)]
pub fn admits(tables: &impl Tables, bytes: u32, slot: u16, is_local: bool) -> bool {
    let Some(limit) = tables.limit(slot) else { return true };
    if limit.cost == 0 || (is_local && limit.counts_local == 0) {
        return true;
    }
    tables.schedule(slot, limit.time_of(bytes), tables.now(), limit.slack)
}

#[cfg(test)]
mod tests {
    extern crate std;

    use core::cell::Cell;

    use portmap_common::{
        limit::Limit,
        memory::{
            Echo, EchoKey, Fragment, FragmentKey4, FragmentKey6, HostFlow, HostFlowKey, Neighbour,
            NeighbourKey,
        },
        tables::{Address4, Config, Endpoint, PortEntry},
    };

    use super::*;

    /// Tables with nothing but one limit and a clock.
    struct Clock {
        limit: Limit,
        scheduled: Cell<u64>,
        now: Cell<u64>,
    }

    impl Tables for Clock {
        fn port(&self, _port: u16) -> PortEntry {
            PortEntry::default()
        }
        fn endpoint(&self, _slot: u16) -> Endpoint {
            Endpoint::default()
        }
        fn config(&self) -> &Config {
            unreachable!("no limit depends on it")
        }
        fn now(&self) -> u64 {
            self.now.get()
        }
        fn fragment4(&self, _key: &FragmentKey4) -> Option<Fragment> {
            None
        }
        fn set_fragment4(&self, _key: &FragmentKey4, _fragment: &Fragment) {}
        fn fragment6(&self, _key: &FragmentKey6) -> Option<Fragment> {
            None
        }
        fn set_fragment6(&self, _key: &FragmentKey6, _fragment: &Fragment) {}
        fn echo(&self, _key: &EchoKey) -> Option<Echo> {
            None
        }
        fn set_echo(&self, _key: &EchoKey, _echo: &Echo) {}
        fn renew_echo(&self, _key: &EchoKey, _seen: u64) {}
        fn claim_echo(&self, _key: &EchoKey, _echo: &Echo, _stale: Option<Echo>) -> bool {
            false
        }
        fn is_open(&self, _port: u16) -> bool {
            true
        }
        fn host_flow(&self, _key: &HostFlowKey) -> Option<HostFlow> {
            None
        }
        fn set_host_flow(&self, _key: &HostFlowKey, _flow: &HostFlow) {}
        fn neighbour(&self, _key: &NeighbourKey) -> Option<Neighbour> {
            None
        }
        fn set_neighbour(&self, _key: &NeighbourKey, _neighbour: &Neighbour) {}
        fn may_ask(&self, _slot: u16, _now: u64) -> bool {
            true
        }
        fn is_broadcast(&self, _address: Address4) -> bool {
            false
        }
        fn limit(&self, _slot: u16) -> Option<&Limit> {
            Some(&self.limit)
        }
        fn schedule(&self, _slot: u16, time: u64, now: u64, slack: u64) -> bool {
            let from = self.scheduled.get().max(now);
            let passes = from <= now + slack;
            if passes {
                self.scheduled.set(from + time);
            }
            passes
        }
    }

    fn clock(rate: u64, slack: u64, counts_local: bool) -> Clock {
        Clock {
            limit: Limit::new(rate, slack, counts_local),
            scheduled: Cell::default(),
            now: Cell::new(1 << 40),
        }
    }

    fn passes(clock: &Clock, is_local: bool) -> bool {
        admits(clock, 1000, 1, is_local)
    }

    #[test]
    fn the_rate_holds_after_the_burst() {
        // A byte takes a microsecond, and ten thousand of them may come at once.
        let clock = clock(1_000_000, 10_000_000, true);
        let mut sent = 0;
        for _ in 0..1000 {
            sent += u32::from(passes(&clock, false));
            clock.now.set(clock.now.get() + 100_000);
        }
        // In a tenth of a second, a hundred packets besides the eleven of the burst.
        assert!((110..=112).contains(&sent), "{sent}");
    }

    #[test]
    fn an_idle_container_saves_nothing_up() {
        let clock = clock(1_000_000, 0, true);
        clock.now.set(clock.now.get() + 1_000_000_000);
        assert!(passes(&clock, false));
        assert!(!passes(&clock, false));
    }

    #[test]
    fn local_packets_count_if_they_are_to() {
        for counts_local in [false, true] {
            let clock = clock(1_000_000, 0, counts_local);
            assert!(passes(&clock, true));
            assert_eq!(passes(&clock, true), !counts_local);
        }
    }
}
