//! What `portmap top` shows: rates from two readings of the counters. Values only.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use portmap_common::reason::Reason;

use super::queue::{Queues, per_second};
use crate::{
    api::{Container, ContainerStats, DropStats, HostStats, Reasons, Stats, Traffic},
    model::PortUse,
};

/// Points of a history; one for each reading.
pub(super) const HISTORY: usize = 240;

/// The daemon's answers at one moment.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    /// When the counters were read.
    pub(super) at: Instant,
    /// The counters.
    pub(super) stats: Stats,
    /// The containers with their limits and ports.
    pub(super) containers: Vec<Container>,
}

/// Packets and bytes per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rate {
    pub(super) packets: f64,
    pub(super) bytes: f64,
}

impl Rate {
    fn plus(self, other: Self) -> Self {
        Self { packets: self.packets + other.packets, bytes: self.bytes + other.bytes }
    }
}

/// Drops per second by reason.
pub(super) type DropRates = BTreeMap<String, f64>;

/// The last values of a series, oldest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct History(VecDeque<f64>);

impl History {
    fn push(&mut self, value: f64) {
        if self.0.len() == HISTORY {
            self.0.pop_front();
        }
        self.0.push_back(value);
    }

    /// The last `count` values, oldest first; fewer at the beginning.
    pub(super) fn last(&self, count: usize) -> impl Iterator<Item = f64> {
        self.0.iter().skip(self.0.len().saturating_sub(count)).copied()
    }
}

/// One container.
#[derive(Clone, Debug)]
pub(super) struct Row {
    /// The counters of the last reading.
    pub(super) stats: ContainerStats,
    /// Its limits and ports; `None` if it was removed between both requests.
    pub(super) container: Option<Container>,
    /// Rates by path.
    pub(super) paths: BTreeMap<String, Rate>,
    /// Received from all others.
    pub(super) rx: Rate,
    /// Sent to all others.
    pub(super) tx: Rate,
    /// Exchanged with the outside, both ways.
    pub(super) uplink: Rate,
    /// Drops of packets to it.
    pub(super) rx_drops: DropRates,
    /// Drops of packets from it.
    pub(super) tx_drops: DropRates,
    /// The queues of its limits.
    pub(super) queues: Queues,
    /// Received bytes per second.
    pub(super) rx_history: History,
    /// Sent bytes per second.
    pub(super) tx_history: History,
}

/// The use of a limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct LimitUse {
    pub(super) direction: &'static str,
    /// The used share; `None` if the queue could not be read, or not twice.
    pub(super) used: Option<f64>,
    /// Whether the limit delays or drops packets.
    pub(super) slows: bool,
}

impl LimitUse {
    /// Its place in an order: limits that slow a container down first, then by the used share.
    pub(super) fn weight(self) -> f64 {
        // Root in a container can let its queue count far more than the host lets pass.
        let share = self.used.unwrap_or_default().min(1e6);
        if self.slows { share + 1e7 } else { share }
    }
}

/// Share of its ephemeral ports from which on a container is short of them.
const SHORT_OF_PORTS: f64 = 0.8;

impl Row {
    /// All drops per second: by the programs, and by the queues.
    pub(super) fn drops(&self) -> f64 {
        let programs: f64 = self.rx_drops.values().chain(self.tx_drops.values()).sum();
        programs + self.queues.egress.drops + self.queues.ingress.drops
    }

    /// Why it loses packets now: directions and reasons with their rates, the largest first.
    pub(super) fn drop_reasons(&self) -> Vec<(String, f64)> {
        let Queues { egress, ingress, .. } = &self.queues;
        let mut all: Vec<(String, f64)> = [("rx", &self.rx_drops, ingress), ("tx", &self.tx_drops, egress)]
            .into_iter()
            .flat_map(|(direction, reasons, queue)| {
                let reasons = reasons.iter().map(|(reason, rate)| (reason.as_str(), *rate));
                reasons
                    .chain([("queue", queue.drops)])
                    .map(move |(reason, rate)| (format!("{direction}:{reason}"), rate))
            })
            .filter(|(_, rate)| *rate > 0.0)
            .collect();
        all.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        all
    }

    /// The limit that matters most: one that slows the container down, otherwise that of which the larger share is
    /// used.
    pub(super) fn limit(&self) -> Option<LimitUse> {
        let Queues { egress, ingress, .. } = &self.queues;
        let both = [
            ("rx", ingress, ingress.overlimits > 0.0),
            ("tx", egress, egress.overlimits > 0.0 || self.is_policed()),
        ];
        let limits = both.into_iter().filter(|(_, queue, _)| queue.limit.is_some());
        limits
            .map(|(direction, queue, slows)| LimitUse { direction, used: queue.used, slows })
            .max_by(|a, b| a.weight().total_cmp(&b.weight()))
    }

    /// Bytes that wait in both queues.
    pub(super) fn backlog(&self) -> u64 {
        self.queues.egress.backlog + self.queues.ingress.backlog
    }

    /// Whether a limit delays or drops its packets.
    pub(super) fn is_slowed(&self) -> bool {
        self.limit().is_some_and(|limit| limit.slows)
    }

    /// Whether the host drops what it sends beyond its limit. Its own queue would have delayed that, but root in the
    /// container can remove or change the queue.
    pub(super) fn is_policed(&self) -> bool {
        self.tx_drops.get(Reason::Rate.name()).is_some_and(|rate| *rate > 0.0)
    }

    /// The share of its ephemeral ports that is in use; 1 is all of them.
    pub(super) fn ports_used(&self) -> Option<f64> {
        let PortUse { in_use, total, .. } = self.stats.ephemeral_ports?;
        Some(f64::from(in_use) / f64::from(total.max(1)))
    }

    /// Whether few of its ephemeral ports are free.
    pub(super) fn is_short_of_ports(&self) -> bool {
        self.ports_used().is_some_and(|used| used >= SHORT_OF_PORTS)
    }

    /// Half of its connections have at most this round-trip time, in microseconds.
    pub(super) fn rtt(&self) -> Option<u32> {
        Some(self.stats.rtt_us?.p50)
    }

    /// A container at the time `at`, with its row at the reading before and the seconds since then.
    fn new(
        mut stats: ContainerStats,
        container: Option<Container>,
        at: Instant,
        before: Option<(Self, f64)>,
    ) -> Self {
        let last = before.as_ref().map(|(row, seconds)| (&row.stats, *seconds));
        let paths = rates(&stats.traffic, last.map(|(stats, seconds)| (&stats.traffic, seconds)));
        let sum = |prefix: &str| {
            let matching = paths.iter().filter(|(path, _)| path.starts_with(prefix));
            matching.fold(Rate::default(), |sum, (_, rate)| sum.plus(*rate))
        };
        let (rx, tx) = (sum("rx_"), sum("tx_"));
        let drops = |of: fn(&DropStats) -> &Reasons| {
            drop_rates(of(&stats.drops), last.map(|(stats, seconds)| (of(&stats.drops), seconds)))
        };
        let (rx_drops, tx_drops) = (drops(|drops| &drops.rx), drops(|drops| &drops.tx));
        let counters = [std::mem::take(&mut stats.egress), std::mem::take(&mut stats.ingress)];
        let limits = [
            container.as_ref().and_then(|container| container.egress.as_ref()),
            container.as_ref().and_then(|container| container.ingress.as_ref()),
        ];
        let age = Duration::from_millis(stats.read_age_ms.unwrap_or_default());
        let has_rates = before.is_some();
        let (queues, mut rx_history, mut tx_history) =
            before.map(|(row, _)| (Some(row.queues), row.rx_history, row.tx_history)).unwrap_or_default();
        let queues = Queues::next(queues, at.checked_sub(age).unwrap_or(at), limits, counters);
        if has_rates {
            rx_history.push(rx.bytes);
            tx_history.push(tx.bytes);
        }
        Self {
            rx,
            tx,
            uplink: sum("rx_outside").plus(sum("tx_outside")),
            rx_drops,
            tx_drops,
            queues,
            rx_history,
            tx_history,
            paths,
            stats,
            container,
        }
    }
}

/// The host: packets that the programs leave to its stack, and those from outside that they drop.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Host {
    /// Packets per second by hook.
    pub(super) passed: BTreeMap<String, f64>,
    /// Drops per second.
    pub(super) drops: f64,
    /// The reason of most of them.
    pub(super) reason: Option<String>,
}

impl Host {
    fn new(stats: &HostStats, before: Option<(&HostStats, f64)>) -> Self {
        let of_hook = |(hook, reasons): (&String, &Reasons)| {
            let last = before.and_then(|(stats, seconds)| Some((stats.passed.get(hook)?, seconds)));
            (hook.clone(), drop_rates(reasons, last).values().sum())
        };
        let drops = |of: fn(&DropStats) -> &Reasons| {
            let last = before.map(|(stats, seconds)| (of(&stats.drops), seconds));
            drop_rates(of(&stats.drops), last)
        };
        let (rx, tx) = (drops(|drops| &drops.rx), drops(|drops| &drops.tx));
        let all = || rx.iter().chain(&tx);
        let most = all().filter(|(_, rate)| **rate > 0.0).max_by(|(_, a), (_, b)| a.total_cmp(b));
        Self {
            passed: stats.passed.iter().map(of_hook).collect(),
            drops: all().map(|(_, rate)| rate).sum(),
            reason: most.map(|(reason, _)| reason.clone()),
        }
    }
}

/// All containers and the host, as of the last reading.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    /// The containers, by name.
    pub(super) rows: Vec<Row>,
    /// The host.
    pub(super) host: Host,
    /// Time between the last two readings; `None` after the first, which has no rates.
    pub(super) interval: Option<Duration>,
    /// Whether any reading had round-trip times, so that their column stays when connections end.
    pub(super) has_rtt: bool,
    last: Option<(Instant, HostStats)>,
}

impl Table {
    /// Takes a reading in. Rates are those since the reading before.
    pub(super) fn advance(&mut self, reading: Reading) {
        let Reading { at, stats, containers } = reading;
        self.interval = self.last.as_ref().map(|(before, _)| at.saturating_duration_since(*before));
        let seconds = self.interval.map(|interval| interval.as_secs_f64()).filter(|seconds| *seconds > 0.0);
        let last_host = self.last.as_ref().map(|(_, host)| host);
        self.host = Host::new(&stats.host, last_host.zip(seconds));
        let mut details: BTreeMap<String, Container> =
            containers.into_iter().map(|container| (container.name.clone(), container)).collect();
        let before = std::mem::take(&mut self.rows).into_iter();
        let mut before: BTreeMap<String, Row> = before.map(|row| (row.stats.name.clone(), row)).collect();
        let rows = stats.containers.into_iter().map(|stats| {
            let same = before.remove(&stats.name).filter(|row| continues(&row.stats, &stats));
            let container = details.remove(&stats.name);
            Row::new(stats, container, at, same.zip(seconds))
        });
        self.rows = rows.collect();
        self.has_rtt |= self.rows.iter().any(|row| row.rtt().is_some());
        self.last = Some((at, stats.host));
    }
}

/// Whether `now` continues the counters of `before`. The counters of another container that has the name
/// meanwhile begin at zero.
fn continues(before: &ContainerStats, now: &ContainerStats) -> bool {
    let grows = |(path, before): (&String, &Traffic)| {
        now.traffic.get(path).is_some_and(|now| now.packets >= before.packets && now.bytes >= before.bytes)
    };
    before.slot == now.slot && before.traffic.iter().all(grows)
}

fn rates(
    now: &BTreeMap<String, Traffic>,
    before: Option<(&BTreeMap<String, Traffic>, f64)>,
) -> BTreeMap<String, Rate> {
    let rate = |(path, now): (&String, &Traffic)| {
        let rate = before.map(|(all, seconds)| {
            let last = all.get(path).copied().unwrap_or_default();
            Rate {
                packets: per_second(now.packets, last.packets, seconds),
                bytes: per_second(now.bytes, last.bytes, seconds),
            }
        });
        (path.clone(), rate.unwrap_or_default())
    };
    now.iter().map(rate).collect()
}

/// The rate of each reason. A reason without packets is not in a reading.
fn drop_rates(now: &Reasons, before: Option<(&Reasons, f64)>) -> DropRates {
    let rate = |(reason, now): (&String, &u64)| {
        let rate = before
            .map(|(all, seconds)| per_second(*now, all.get(reason).copied().unwrap_or_default(), seconds));
        (reason.clone(), rate.unwrap_or_default())
    };
    now.iter().map(rate).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Counters of a container: bytes received from outside, and sent to the host.
    pub(in crate::cli::top) fn stats(name: &str, rx: u64, tx: u64) -> ContainerStats {
        let traffic = [("rx_outside", rx), ("tx_host", tx), ("own", 77)];
        let traffic = traffic.map(|(path, bytes)| (path.to_owned(), Traffic { packets: bytes / 100, bytes }));
        ContainerStats {
            name: name.to_owned(),
            slot: 1,
            traffic: traffic.into(),
            drops: DropStats::default(),
            egress: Vec::new(),
            ingress: Vec::new(),
            ephemeral_ports: None,
            rtt_us: None,
            read_age_ms: None,
        }
    }

    pub(in crate::cli::top) fn reading(at: Instant, containers: Vec<ContainerStats>) -> Reading {
        let host = HostStats { passed: BTreeMap::new(), drops: DropStats::default() };
        Reading { at, stats: Stats { containers, host }, containers: Vec::new() }
    }

    fn advanced(readings: [Vec<ContainerStats>; 2], seconds: u64) -> Table {
        let (mut table, start) = (Table::default(), Instant::now());
        for (number, containers) in (0..).zip(readings) {
            table.advance(reading(start + Duration::from_secs(number * seconds), containers));
        }
        table
    }

    #[test]
    fn top_rates_are_the_increase_per_second() {
        let table = advanced([vec![stats("a", 1000, 500)], vec![stats("a", 5000, 700)]], 2);
        let row = &table.rows[0];
        assert_eq!(row.rx, Rate { packets: 20.0, bytes: 2000.0 });
        assert_eq!(row.tx, Rate { packets: 1.0, bytes: 100.0 });
        assert_eq!(row.uplink, row.rx, "it exchanges nothing else with the outside");
        assert_eq!(row.rx_history.last(9).collect::<Vec<_>>(), [2000.0]);
        assert_eq!(table.interval, Some(Duration::from_secs(2)));
    }

    #[test]
    fn top_first_reading_has_no_rates() {
        let mut table = Table::default();
        table.advance(reading(Instant::now(), vec![stats("a", 1000, 500)]));
        assert_eq!((table.rows[0].rx, table.interval), (Rate::default(), None));
        assert_eq!(table.rows[0].rx_history.last(9).count(), 0);
    }

    /// Neither a huge rate nor a negative one, and no history of the earlier container.
    #[test]
    fn top_new_container_of_a_name_begins_without_rates() {
        let table = advanced([vec![stats("a", 1_000_000, 500)], vec![stats("a", 200, 900)]], 1);
        assert_eq!((table.rows[0].rx, table.rows[0].tx), (Rate::default(), Rate::default()));
        let table =
            advanced([vec![stats("a", 100, 0)], vec![ContainerStats { slot: 2, ..stats("a", 900, 0) }]], 1);
        assert_eq!(table.rows[0].rx, Rate::default());
    }

    #[test]
    fn top_drops_count_reasons_that_are_new() {
        let mut later = stats("a", 0, 0);
        later.drops.tx.insert("source_port".to_owned(), 30);
        let table = advanced([vec![stats("a", 0, 0)], vec![later]], 3);
        assert_eq!(table.rows[0].tx_drops["source_port"].to_bits(), 10_f64.to_bits());
        assert!((table.rows[0].drops() - 10.0).abs() < 1e-9);
    }

    #[test]
    fn top_history_is_bounded() {
        let mut history = History::default();
        for value in 0..1000_u32 {
            history.push(value.into());
        }
        assert_eq!(history.last(usize::MAX).count(), HISTORY);
        assert_eq!(history.last(2).collect::<Vec<_>>(), [998.0, 999.0]);
    }
}
