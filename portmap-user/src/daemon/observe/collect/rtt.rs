//! Percentiles of round-trip times, in bounded memory.

use crate::model::RttPercentiles;

/// Most samples in memory.
const MOST: usize = 1 << 16;

/// Round-trip times of connections. Of more than [`MOST`], every second, fourth, … one is kept.
pub(super) struct RttSamples {
    kept: Vec<u32>,
    seen: usize,
    stride: usize,
}

impl Default for RttSamples {
    fn default() -> Self {
        Self { kept: Vec::new(), seen: 0, stride: 1 }
    }
}

impl RttSamples {
    /// Adds a connection's round-trip time in microseconds.
    pub(super) fn add(&mut self, rtt: u32) {
        if self.seen.is_multiple_of(self.stride) {
            self.kept.push(rtt);
        }
        self.seen += 1;
        if self.kept.len() > MOST {
            self.stride *= 2;
            let mut index = 0_usize;
            self.kept.retain(|_| {
                index += 1;
                index % 2 == 1
            });
        }
    }

    /// The percentiles: of `n` sorted samples, that with the index `n * p / 100`, as in Mesos.
    pub(super) fn percentiles(mut self) -> Option<RttPercentiles> {
        self.kept.sort_unstable();
        let at = |percent: usize| self.kept.get(self.kept.len() * percent / 100).copied();
        Some(RttPercentiles { p50: at(50)?, p90: at(90)?, p95: at(95)?, p99: at(99)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(samples: impl IntoIterator<Item = u32>) -> Option<RttPercentiles> {
        let mut all = RttSamples::default();
        samples.into_iter().for_each(|sample| all.add(sample));
        assert!(all.kept.len() <= MOST);
        all.percentiles()
    }

    #[test]
    fn rtt_percentiles_are_elements_of_the_sorted_samples() {
        assert_eq!(of([]), None);
        assert_eq!(of([7]), Some(RttPercentiles { p50: 7, p90: 7, p95: 7, p99: 7 }));
        let expected = RttPercentiles { p50: 51, p90: 91, p95: 96, p99: 100 };
        assert_eq!(of((1..=100).rev()), Some(expected));
    }

    #[test]
    fn rtt_percentiles_of_many_connections_need_bounded_memory() {
        let number = |n: u64| u32::try_from(n * 7_919 % 1_000_000).expect("a small number");
        let found = of((0..1_000_000).map(number)).expect("percentiles");
        let bounds = [(found.p50, 500_000), (found.p90, 900_000), (found.p95, 950_000), (found.p99, 990_000)];
        for (found, expected) in bounds {
            assert!(found.abs_diff(expected) < 5_000, "{found} {expected}");
        }
    }
}
