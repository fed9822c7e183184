//! Whether a container may send a packet now, as far as the limit on its rate goes.
//!
//! Its own queue holds a container to the limit, without loss. But that queue is inside the container, whose root can do
//! away with it; what then comes too fast is dropped here. The schedule is as generous as a queue can be late.

use core::num::NonZero;

use crate::{
    frame::Frame,
    packet::{Content, Version, content::Kind},
    tables::Tables,
};

/// Bytes of a UDP header.
const UDP_HEADER: u32 = 8;
/// `IPPROTO_TCP`.
const TCP: u32 = 6;

/// Whether the packet may pass. If so, it has used up its part of the limit.
#[inline(always)]
pub fn admits<V: Version>(
    frame: &impl Frame,
    tables: &impl Tables,
    content: &Content<V>,
    protocol: u32,
    slot: u16,
    is_local: bool,
) -> bool {
    let Some(limit) = tables.limit(slot) else { return true };
    if limit.cost == 0 || (is_local && limit.counts_local == 0) {
        return true;
    }
    let bytes = match NonZero::new(frame.segment()) {
        Some(segment) if content.kind == Kind::Ports => on_wire::<V>(frame, protocol, segment),
        _ => frame.length(),
    };
    tables.schedule(slot, limit.time_of(bytes), tables.now(), limit.slack)
}

/// Bytes of all segments that a frame is to be cut into, each with headers of its own, as the kernel's queues count them
/// (`qdisc_pkt_len_init`). Headers with options or extensions count as if they had none.
#[inline(always)]
fn on_wire<V: Version>(frame: &impl Frame, protocol: u32, segment: NonZero<u32>) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "it is a small constant")]
    let in_front = V::PLAIN as u32;
    let transport = if protocol == TCP { tcp_header(frame, V::PLAIN) } else { UDP_HEADER };
    let headers = in_front + transport;
    let payload = frame.length().saturating_sub(headers);
    let segments = (payload + segment.get() - 1) / segment;
    frame.length() + segments.saturating_sub(1) * headers
}

/// Bytes of the TCP header at `offset`: four times the upper half of its thirteenth byte.
#[inline(always)]
fn tcp_header(frame: &impl Frame, offset: usize) -> u32 {
    frame.words(offset + 12).map_or(0, |[word]| (word >> 28) * 4)
}

#[cfg(test)]
mod tests {
    extern crate std;

    use core::cell::Cell;

    use portmap_common::{
        limit::Limit,
        memory::{Echo, EchoKey, Fragment, FragmentKey4, FragmentKey6, HostFlow, HostFlowKey},
        tables::{Config, Endpoint, PortEntry},
    };

    use super::*;
    use crate::{
        InMemory,
        packet::{V4, content::Ports},
    };

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

    fn passes(clock: &Clock, frame: &InMemory<'_>, is_local: bool) -> bool {
        admits::<V4>(
            frame,
            clock,
            &Content::new(Kind::Ports, Ports { source: 1, destination: 2 }, 0, 0),
            TCP,
            1,
            is_local,
        )
    }

    #[test]
    fn the_rate_holds_after_the_burst() {
        // A byte takes a microsecond, and ten thousand of them may come at once.
        let clock = clock(1_000_000, 10_000_000, true);
        let bytes = [0; 1000];
        let frame = InMemory { bytes: &bytes, ..InMemory::default() };
        let mut sent = 0;
        for _ in 0..1000 {
            sent += u32::from(passes(&clock, &frame, false));
            clock.now.set(clock.now.get() + 100_000);
        }
        // In a tenth of a second, a hundred packets besides the eleven of the burst.
        assert!((110..=112).contains(&sent), "{sent}");
    }

    #[test]
    fn an_idle_container_saves_nothing_up() {
        let clock = clock(1_000_000, 0, true);
        let bytes = [0; 1000];
        let frame = InMemory { bytes: &bytes, ..InMemory::default() };
        clock.now.set(clock.now.get() + 1_000_000_000);
        assert!(passes(&clock, &frame, false));
        assert!(!passes(&clock, &frame, false));
    }

    #[test]
    fn local_packets_count_if_they_are_to() {
        let bytes = [0; 1000];
        let frame = InMemory { bytes: &bytes, ..InMemory::default() };
        for counts_local in [false, true] {
            let clock = clock(1_000_000, 0, counts_local);
            assert!(passes(&clock, &frame, true));
            assert_eq!(passes(&clock, &frame, true), !counts_local);
        }
    }

    #[test]
    fn every_segment_has_headers() {
        let mut bytes = [0; 14 + 20 + 32 + 10_000];
        // A TCP header of 32 bytes.
        bytes[14 + 20 + 12] = 8 << 4;
        let frame = InMemory { bytes: &bytes, ..InMemory::default() };
        let on_wire =
            |protocol, segment| on_wire::<V4>(&frame, protocol, NonZero::new(segment).expect("not zero"));
        assert_eq!(on_wire(TCP, 1000), 10 * (14 + 20 + 32 + 1000));
        assert_eq!(on_wire(TCP, 999), 11 * (14 + 20 + 32) + 10_000);
        // A datagram: 24 bytes that were the TCP header's are payload.
        assert_eq!(on_wire(17, 999), 11 * (14 + 20 + 8) + 10_024);
    }
}
