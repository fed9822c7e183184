//! Samples of the containers' rates, and their percentiles over a window.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use portmap_common::slot::veth_ifindex;
use tracing::{info, warn};

use super::{
    percentiles,
    totals::{Flow, Totals},
};
use crate::{
    api::monitor::RateStatistics,
    daemon::{
        env::Env,
        observe::collect::Key,
        registry::{Registry, Snapshot},
    },
    error::Result,
    failpoint,
    kernel::{link_stats, netlink::Netlink},
    settings::RateWindow,
};

/// The rates of one interval: bytes, packets, drops and errors per second, received and then sent.
type Sample = [u64; 8];

/// Samples of all containers' rates.
pub(in crate::daemon) struct Rates {
    window: RateWindow,
    series: Mutex<BTreeMap<Key, Series>>,
}

/// Samples of one container.
#[derive(Default)]
struct Series {
    /// The totals of the last sample, and their time.
    last: Option<(Instant, Totals)>,
    samples: VecDeque<(Instant, Sample)>,
}

impl Rates {
    /// Starts to take samples.
    pub(in crate::daemon) fn watch(
        window: RateWindow,
        env: Arc<Env>,
        registry: Arc<Registry>,
    ) -> Result<Arc<Self>> {
        let rates = Arc::new(Self { window, series: Mutex::default() });
        let (sampled, netlink) = (Arc::downgrade(&rates), Netlink::open()?);
        let sampling = thread::Builder::new().name("portmap-rates".to_owned()).spawn(move || {
            let (mut due, mut missing) = (Instant::now(), Missing::default());
            while let Some(rates) = sampled.upgrade() {
                let start = Instant::now();
                // Samples are taken at any time, so failpoints must not count them.
                missing
                    .report(failpoint::suppressed(|| rates.sample_all(&env, &netlink, &registry.snapshot())));
                drop(rates);
                let now = Instant::now();
                due = next_sample(due, now, now - start, window.interval);
                thread::sleep(due.saturating_duration_since(Instant::now()));
            }
        });
        if let Err(error) = sampling {
            warn!("there are no rates: cannot start a thread: {error}");
        }
        Ok(rates)
    }

    /// Takes a sample of each container in service, with one dump of the interfaces' counters.
    fn sample_all(&self, env: &Env, netlink: &Netlink, containers: &Snapshot) -> Result<()> {
        let links = link_stats::errors(netlink)?;
        let (counts, now) = (env.maps.slot_counts(&containers.slots())?, Instant::now());
        let current: BTreeMap<Key, u16> =
            containers.ready_entries().map(|entry| (Key::of(entry), entry.record.slot)).collect();
        let mut series = self.series();
        series.retain(|key, _| current.contains_key(key));
        for (key, slot) in current {
            // Without its counters there is no sample, because one with zeros would distort the next.
            let Some(link) = links.get(&veth_ifindex(slot)) else { continue };
            series.entry(key).or_default().add(now, Totals::of(&counts.get(slot), *link), self.window);
        }
        Ok(())
    }

    /// The percentiles of a container's rates.
    pub(in crate::daemon) fn of(&self, key: &Key) -> RateStatistics {
        let samples: Vec<Sample> = {
            let (series, now) = (self.series(), Instant::now());
            let of_container = series.get(key).map(|series| &series.samples);
            let is_young = |taken: Instant| now.duration_since(taken) <= self.window.window;
            let young = of_container.into_iter().flatten().filter(|(taken, _)| is_young(*taken));
            young.map(|(_, sample)| *sample).collect()
        };
        let of = |index: usize| percentiles::of(samples.iter().map(|sample| sample[index]).collect());
        RateStatistics {
            rx_rate: of(0),
            rx_packet_rate: of(1),
            rx_drop_rate: of(2),
            rx_error_rate: of(3),
            tx_rate: of(4),
            tx_packet_rate: of(5),
            tx_drop_rate: of(6),
            tx_error_rate: of(7),
            sampling_window_secs: self.window.window.as_secs_f64(),
            sampling_interval_secs: self.window.interval.as_secs_f64(),
        }
    }

    // A poisoned lock is taken, because a sample that is lost harms nothing.
    fn series(&self) -> MutexGuard<'_, BTreeMap<Key, Series>> {
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When the sample after that of the time `due` is taken, which has ended `now` and has taken so long. Late samples do
/// not delay the next ones, so that a window has all of its samples. But at most half of the time is spent on
/// samples, however many containers there are.
fn next_sample(due: Instant, now: Instant, took: Duration, interval: Duration) -> Instant {
    (due + interval).max(now + took)
}

/// Samples in succession that could not be taken.
#[derive(Debug, Default)]
struct Missing(u64);

impl Missing {
    /// Logs the first failure and the end of the failures, because samples are as frequent as every second.
    fn report(&mut self, sample: Result<()>) {
        match sample {
            Err(error) => {
                if self.0 == 0 {
                    warn!("samples of the rates are missing: {error}; retrying");
                }
                self.0 += 1;
            }
            Ok(()) if self.0 > 0 => {
                info!("samples of the rates are taken again; {} are missing", self.0);
                self.0 = 0;
            }
            Ok(()) => {}
        }
    }
}

impl Series {
    /// Adds the rates since the last totals, and removes samples that are too old or too many.
    fn add(&mut self, now: Instant, totals: Totals, window: RateWindow) {
        if let Some((before, old)) = self.last.replace((now, totals)) {
            let seconds = now.duration_since(before).as_secs_f64();
            if seconds > 0.0 {
                self.samples.push_back((now, rates(&old, &totals, seconds)));
            }
        }
        let is_old = |taken: Instant| now.duration_since(taken) > window.window;
        while self.samples.len() > window.capacity()
            || self.samples.front().is_some_and(|(taken, _)| is_old(*taken))
        {
            self.samples.pop_front();
        }
    }
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "differences of a short time are far from 2^52"
)]
fn rates(old: &Totals, new: &Totals, seconds: f64) -> Sample {
    let values = |totals: &Totals| {
        let of = |Flow { bytes, packets, drops, errors }| [bytes, packets, drops, errors];
        let (rx, tx) = (of(totals.rx), of(totals.tx));
        std::array::from_fn::<u64, 8, _>(|index| if index < 4 { rx[index] } else { tx[index - 4] })
    };
    let (old, new) = (values(old), values(new));
    std::array::from_fn(|index| (new[index].saturating_sub(old[index]) as f64 / seconds) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: RateWindow =
        RateWindow { window: Duration::from_secs(5), interval: Duration::from_secs(1) };

    fn totals(bytes: u64) -> Totals {
        Totals {
            rx: Flow { bytes, drops: 7, ..Flow::default() },
            tx: Flow { packets: bytes / 10, ..Flow::default() },
        }
    }

    /// 60 samples of a second each in a minute, although each takes a while.
    #[test]
    fn rate_samples_do_not_drift() {
        let (start, interval) = (Instant::now(), Duration::from_secs(1));
        let (mut due, wakes, took) = (start, Duration::from_micros(200), Duration::from_millis(30));
        for _ in 0..60 {
            due = next_sample(due, due + wakes + took, took, interval);
        }
        assert_eq!(due, start + Duration::from_mins(1));
        // Slow ones leave as much time as they take, and are not made up for.
        let slow = Duration::from_secs(3);
        due = next_sample(due, due + slow, slow, interval);
        assert_eq!(due, start + Duration::from_mins(1) + 2 * slow);
    }

    #[test]
    fn rate_samples_are_differences_per_second_within_the_window() {
        let (start, mut series) = (Instant::now(), Series::default());
        for (second, bytes) in [(0, 0), (1, 100), (3, 500), (4, 400), (5, 1400), (6, 1500), (7, 1600)] {
            series.add(start + Duration::from_secs(second), totals(bytes), WINDOW);
        }
        let of = |index: usize| series.samples.iter().map(|(_, sample)| sample[index]).collect::<Vec<_>>();
        // Counters do not decrease; if they seem to, the rate is 0. The sample of the first second is too old.
        assert_eq!(of(0), [200, 0, 1000, 100, 100]);
        assert_eq!(of(2), [0; 5]);
        assert_eq!(of(5), [20, 0, 100, 10, 10]);
        for second in 0..100 {
            series.add(start + Duration::from_millis(8000 + second), totals(0), WINDOW);
        }
        assert_eq!(series.samples.len(), WINDOW.capacity());
    }
}
