//! The state of the policer that holds a container to its egress rate limit (GCRA, ITU-T I.371).

/// GCRA state of one slot: its rate limit and the theoretical arrival time.
///
/// Every byte advances the theoretical arrival time (TAT) by the time that it takes at the limit's rate. A
/// packet conforms if the TAT is ahead of the clock by no more than the tolerance.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GcraState {
    /// Theoretical arrival time: when all bytes so far would have been sent at the limit's rate, in
    /// nanoseconds of the monotonic clock.
    pub tat: u64,
    /// Nanoseconds per byte, as a fixed-point number with [`FRACTION_BITS`] fraction bits; 0 if there is no
    /// limit.
    pub ns_per_byte: u64,
    /// Nanoseconds by which the TAT may be ahead of the clock: the burst.
    pub tolerance: u64,
    /// 1 if packets to the host and to other containers count as well, else 0.
    pub counts_local: u32,
    /// Reserved, 0.
    pub reserved: u32,
}

/// Fraction bits of [`GcraState::ns_per_byte`]. The smallest value above zero is 10<sup>-6</sup> ns.
pub const FRACTION_BITS: u32 = 20;

/// Lowest rate limit in bytes per second. The time of the longest packet at this rate is far from
/// overflowing.
pub const MIN_RATE: u64 = 1024;

/// Highest rate limit in bytes per second. Up to here, the time per byte has three significant digits.
pub const MAX_RATE: u64 = 1 << 40;

impl GcraState {
    /// Returns an unused limit of `rate` bytes per second with a tolerance in nanoseconds. Rates below
    /// [`MIN_RATE`] are raised to it.
    pub const fn new(rate: u64, tolerance: u64, counts_local: bool) -> Self {
        let rate = if rate < MIN_RATE { MIN_RATE } else { rate };
        let ns_per_byte = (1_000_000_000 << FRACTION_BITS) / rate;
        Self { tat: 0, ns_per_byte, tolerance, counts_local: counts_local as u32, reserved: 0 }
    }

    /// Returns the time in nanoseconds that `bytes` take at the limit's rate.
    #[inline(always)]
    pub const fn transmission_time(&self, bytes: u32) -> u64 {
        (self.ns_per_byte * bytes as u64) >> FRACTION_BITS
    }
}

const _: () = assert!(size_of::<GcraState>() == 32);
// The most bytes on the wire that a program passes for one packet must not overflow the multiplication.
const _: () = assert!(GcraState::new(MIN_RATE, 0, true).ns_per_byte.checked_mul(1 << 24).is_some());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gcra_transmission_time_is_exact_to_a_thousandth() {
        for rate in [MIN_RATE, 125_000, 12_500_000, 625_000_000, 12_500_000_000] {
            let limit = GcraState::new(rate, 0, false);
            for bytes in [60_u32, 1514, 65_549] {
                let exact = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
                let off = u128::from(limit.transmission_time(bytes)).abs_diff(exact);
                assert!(off * 1000 <= exact + 1000, "{bytes} bytes at {rate}: {off} ns off");
            }
        }
        assert_eq!(GcraState::default().transmission_time(1514), 0);
        assert_eq!(MAX_RATE, 1_099_511_627_776);
    }
}
