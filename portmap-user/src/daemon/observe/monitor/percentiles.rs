//! Percentiles of samples, as Mesos computes them.

use crate::api::monitor::Percentiles;

/// The percentiles of some samples, interpolated between the two nearest; `None` of fewer than two.
pub(super) fn of(mut samples: Vec<u64>) -> Option<Percentiles> {
    samples.sort_unstable();
    let [min, .., max] = *samples.as_slice() else { return None };
    let at = |fraction: f64| interpolated(&samples, fraction);
    Some(Percentiles {
        samples: u64::try_from(samples.len()).unwrap_or(u64::MAX),
        min,
        max,
        p50: at(0.5),
        p90: at(0.9),
        p95: at(0.95),
        p99: at(0.99),
        p999: at(0.999),
        p9999: at(0.9999),
    })
}

/// The value at the position `fraction * (n - 1)` of the sorted samples, between two of which it is linear.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "there are a few thousand samples, and rates are far from 2^52"
)]
fn interpolated(sorted: &[u64], fraction: f64) -> u64 {
    let position = fraction * (sorted.len() - 1) as f64;
    let below = position as usize;
    let one = sorted.get(below).copied().unwrap_or_default();
    let next = sorted.get(below + 1).copied().unwrap_or(one);
    one + ((next - one) as f64 * position.fract()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_percentiles_are_interpolated() {
        assert_eq!(of(vec![]), None);
        assert_eq!(of(vec![7]), None, "one sample is too few");
        let two = of(vec![100, 0]).expect("percentiles");
        assert_eq!((two.samples, two.min, two.max), (2, 0, 100));
        assert_eq!((two.p50, two.p90, two.p95, two.p99), (50, 90, 95, 99));
        let many = of((0..=10_000).rev().collect()).expect("percentiles");
        let expected = [5_000, 9_000, 9_500, 9_900, 9_990, 9_999];
        assert_eq!([many.p50, many.p90, many.p95, many.p99, many.p999, many.p9999], expected);
        // The rates of the test of Mesos' collector: 100, 100, 50, 50, 50 and the like.
        for (high, low) in [(100, 50), (10, 5), (5, 1), (1, 1), (10, 0), (1, 0)] {
            let rates = of(vec![high, high, low, low, low]).expect("percentiles");
            assert_eq!((rates.samples, rates.min, rates.max), (5, low, high));
            assert_eq!((rates.p50, rates.p90), (low, high));
        }
        assert_eq!(of(vec![5; 3]).expect("percentiles").p9999, 5);
    }
}
