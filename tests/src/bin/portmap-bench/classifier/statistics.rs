//! Random numbers from a seed, and estimates from noisy measurements.

use serde::{Deserialize, Serialize};

/// Resamples of a bootstrap.
const RESAMPLES: usize = 1_000;

/// A generator of random numbers (`SplitMix64`): the same seed gives the same schedule and the same packets.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }

    /// Returns a number less than `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        let product = u128::from(self.next()) * bound as u128;
        usize::try_from(product >> 64).expect("less than the bound")
    }

    /// Shuffles elements.
    pub(crate) fn shuffle<T>(&mut self, elements: &mut [T]) {
        for place in (1..elements.len()).rev() {
            elements.swap(place, self.below(place + 1));
        }
    }
}

/// A value with its 95 % confidence interval.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Estimate {
    pub(crate) value: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

impl Estimate {
    /// Returns whether the interval contains zero.
    pub(crate) fn holds_zero(&self) -> bool {
        self.low <= 0.0 && self.high >= 0.0
    }
}

/// Returns the minimum.
pub(crate) fn minimum(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

/// Returns the median.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
        _ => sorted[middle],
    }
}

/// Estimates `statistic` of `rounds` by percentile bootstrap. It resamples whole rounds, because the
/// measurements of a round belong together.
pub(crate) fn bootstrap<T: Copy>(
    rounds: &[T],
    random: &mut Random,
    statistic: impl Fn(&[T]) -> f64,
) -> Estimate {
    let mut resample = rounds.to_vec();
    let mut values: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            for place in &mut resample {
                *place = rounds[random.below(rounds.len())];
            }
            statistic(&resample)
        })
        .collect();
    values.sort_unstable_by(f64::total_cmp);
    let tail = RESAMPLES / 40;
    Estimate { value: statistic(rounds), low: values[tail], high: values[RESAMPLES - 1 - tail] }
}

/// Estimates the median of the differences between two measurements of each round.
pub(crate) fn difference<T: Copy>(
    rounds: &[T],
    random: &mut Random,
    of: impl Fn(&T) -> (f64, f64),
) -> Estimate {
    bootstrap(rounds, random, |rounds| median_difference(rounds, &of))
}

/// Returns the median of the differences, without an interval.
pub(crate) fn median_difference<T>(rounds: &[T], of: impl Fn(&T) -> (f64, f64)) -> f64 {
    let differences: Vec<f64> = rounds
        .iter()
        .map(|round| {
            let (value, base) = of(round);
            value - base
        })
        .collect();
    median(&differences)
}
