//! The queues of a container's limits, from the readings of the daemon's collector. Values only.
//!
//! These readings have a time of their own, because the daemon reads the queues of many containers less often than
//! it answers requests. A rate is the increase between two readings divided by the time between them.

use std::time::{Duration, Instant};

use crate::model::{Limit, QueueStats};

/// Readings closer together count as one. Their times are known to some milliseconds only, because a response takes
/// a while and states the age in whole milliseconds.
const SAME: Duration = Duration::from_millis(50);

/// The queue of one direction.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Queue {
    /// The limit in bytes per second; `None` if there is none.
    pub(super) limit: Option<u64>,
    /// Sent bytes per second as a share of the limit; 1 is all of it. `None` without a limit or two readings.
    pub(super) used: Option<f64>,
    /// Bytes that wait.
    pub(super) backlog: u64,
    /// Packets that it drops per second.
    pub(super) drops: f64,
    /// Times per second that a packet had to wait for the limit.
    pub(super) overlimits: f64,
}

/// The counters of a queue: its root qdisc first, then the class and the qdisc below.
pub(super) type Counters = Vec<QueueStats>;

/// The counters of both queues, and when they were read.
#[derive(Clone, Debug)]
struct Reading {
    at: Instant,
    egress: Counters,
    ingress: Counters,
}

/// Both queues of a container.
#[derive(Clone, Debug, Default)]
pub(super) struct Queues {
    /// The queue of what it sends.
    pub(super) egress: Queue,
    /// The queue of what it receives.
    pub(super) ingress: Queue,
    /// The reading from which the rates have been computed, and the next ones begin.
    read: Option<Reading>,
}

impl Queues {
    /// The queues after another response, which contains a reading of the time `at`.
    pub(super) fn next(
        before: Option<Self>,
        at: Instant,
        limits: [Option<&Limit>; 2],
        [egress, ingress]: [Counters; 2],
    ) -> Self {
        let before = before.unwrap_or_default();
        let seconds = before.read.as_ref().map(|read| at.saturating_duration_since(read.at));
        if seconds.is_some_and(|time| time < SAME) {
            // The same reading once more: its rates still hold.
            let [sends, receives] = limits;
            return Self {
                egress: before.egress.with(sends, &egress),
                ingress: before.ingress.with(receives, &ingress),
                read: before.read,
            };
        }
        let since = |of: fn(&Reading) -> &Counters| {
            before.read.as_ref().zip(seconds).map(|(read, time)| (of(read).as_slice(), time.as_secs_f64()))
        };
        Self {
            egress: Queue::new(limits[0], &egress, since(|read| &read.egress)),
            ingress: Queue::new(limits[1], &ingress, since(|read| &read.ingress)),
            read: Some(Reading { at, egress, ingress }),
        }
    }
}

impl Queue {
    /// The queue, from its counters and the earlier ones with the seconds in between.
    fn new(limit: Option<&Limit>, now: &[QueueStats], before: Option<(&[QueueStats], f64)>) -> Self {
        // Counters that could not be read are none, not zero.
        let before = before.filter(|(before, _)| !before.is_empty() && !now.is_empty());
        // HTB counts a wait for the limit at the class, newer kernels at the qdisc, too.
        let overlimits =
            |all: &[QueueStats]| all.iter().map(|queue| queue.overlimits).max().unwrap_or_default();
        let rate = |of: &dyn Fn(&[QueueStats]) -> u64| {
            before.map(|(before, seconds)| per_second(of(now), of(before), seconds))
        };
        // The root's counters include those of the queues below.
        let root = |of: fn(&QueueStats) -> u64| move |all: &[QueueStats]| all.first().map_or(0, of);
        #[expect(clippy::cast_precision_loss, reason = "it is shown in percent")]
        let used = limit.and_then(|limit| Some(rate(&root(|queue| queue.bytes))? / limit.rate.max(1) as f64));
        Self {
            used,
            drops: rate(&root(|queue| queue.drops)).unwrap_or_default(),
            overlimits: rate(&overlimits).unwrap_or_default(),
            ..Self::default().with(limit, now)
        }
    }

    /// The same rates with a limit and the bytes that wait.
    fn with(self, limit: Option<&Limit>, now: &[QueueStats]) -> Self {
        let backlog = now.first().map_or(0, |root| root.backlog);
        let used = self.used.filter(|_| limit.is_some());
        Self { limit: limit.map(|limit| limit.rate), used, backlog, ..self }
    }
}

/// The increase per second; 0 if the counter has begun again, as those of a new qdisc do.
pub(super) fn per_second(now: u64, before: u64, seconds: f64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "it is shown with three digits")]
    let increase = now.saturating_sub(before) as f64;
    increase / seconds
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit() -> Limit {
        Limit { rate: 1000, ceil: 1000, burst: 1, leaf: "bfifo".to_owned() }
    }

    fn counters(bytes: u64, overlimits: u64) -> Counters {
        let root = QueueStats {
            kind: "htb".to_owned(),
            bytes,
            backlog: 9,
            drops: bytes / 100,
            ..QueueStats::default()
        };
        vec![root, QueueStats { overlimits, ..QueueStats::default() }]
    }

    fn next(before: Option<Queues>, at: Instant, egress: Counters) -> Queues {
        Queues::next(before, at, [Some(&limit()), None], [egress, Vec::new()])
    }

    #[test]
    fn top_queue_reports_the_used_share_of_the_limit() {
        let start = Instant::now();
        let first = next(None, start, counters(1000, 4));
        assert_eq!((first.egress.used, first.egress.limit), (None, Some(1000)));
        let second = next(Some(first), start + Duration::from_secs(2), counters(2900, 10));
        let expected = Queue { limit: Some(1000), used: Some(0.95), backlog: 9, drops: 9.5, overlimits: 3.0 };
        assert_eq!((second.egress, second.ingress), (expected, Queue::default()));
    }

    /// A daemon with many containers reads their queues every few seconds. Responses in between contain the same
    /// reading, whose age grows: neither a rate of 0 now nor twice the rate later.
    #[test]
    fn top_queue_rates_use_the_time_of_the_reading() {
        let start = Instant::now();
        let mut queues = next(None, start, counters(0, 0));
        queues = next(Some(queues), start + Duration::from_secs(4), counters(2000, 8));
        assert_eq!((queues.egress.used, queues.egress.overlimits), (Some(0.5), 2.0));
        for jitter in [0, 7, 13] {
            let at = start + Duration::from_secs(4) + Duration::from_millis(jitter);
            queues = next(Some(queues), at, counters(2000, 8));
            assert_eq!((queues.egress.used, queues.egress.overlimits), (Some(0.5), 2.0), "{jitter}");
        }
        queues = next(Some(queues), start + Duration::from_secs(8), counters(4000, 8));
        assert_eq!((queues.egress.used, queues.egress.overlimits), (Some(0.5), 0.0));
    }

    #[test]
    fn top_queue_that_could_not_be_read_has_no_rate() {
        let start = Instant::now();
        let mut queues = next(None, start, counters(9_000_000, 0));
        for (second, counters) in [(1, Vec::new()), (2, counters(9_000_000, 0))] {
            queues = next(Some(queues), start + Duration::from_secs(second), counters);
            assert_eq!((queues.egress.used, queues.egress.drops), (None, 0.0), "{second}");
        }
    }
}
