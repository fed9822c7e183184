//! Limits on what containers send, as the program at their host veths enforces them.

/// The limit of one slot, and how much of it is used up: a virtual schedule (GCRA, ITU-T I.371) in which every byte takes
/// its time, and a packet may pass as long as the schedule is not too far ahead of the clock.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    /// When what was sent so far would have been sent at the limit's rate, in nanoseconds of the monotonic clock.
    pub scheduled: u64,
    /// Nanoseconds that a byte takes, times 2<sup>[`COST_BITS`]</sup>; 0 if there is no limit.
    pub cost: u64,
    /// Nanoseconds by which the schedule may be ahead of the clock.
    pub slack: u64,
    /// 1 if what stays on the host (for containers and the host itself) counts, too.
    pub counts_local: u32,
    /// Reserved, 0.
    pub reserved: u32,
}

/// Binary digits of a byte's time behind the point. The cheapest byte that is told from none takes 10<sup>-6</sup> ns.
pub const COST_BITS: u32 = 20;

/// Smallest limit in bytes per second. The time of the longest packet at this rate is far from overflowing.
pub const SMALLEST_RATE: u64 = 1024;

/// Largest limit in bytes per second. A byte's time has three significant digits up to here.
pub const LARGEST_RATE: u64 = 1 << 40;

impl Limit {
    /// The limit of `rate` bytes per second, of which none is used up; `slack` in nanoseconds.
    pub const fn new(rate: u64, slack: u64, counts_local: bool) -> Self {
        let rate = if rate < SMALLEST_RATE { SMALLEST_RATE } else { rate };
        let cost = (1_000_000_000 << COST_BITS) / rate;
        Self { scheduled: 0, cost, slack, counts_local: counts_local as u32, reserved: 0 }
    }

    /// Nanoseconds that so many bytes take.
    #[inline(always)]
    pub const fn time_of(&self, bytes: u32) -> u64 {
        (self.cost * bytes as u64) >> COST_BITS
    }
}

const _: () = assert!(size_of::<Limit>() == 32);
// The longest that programs let pass, with all that it becomes on the wire.
const _: () = assert!(Limit::new(SMALLEST_RATE, 0, true).cost.checked_mul(1 << 24).is_some());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_take_their_time() {
        for rate in [SMALLEST_RATE, 125_000, 12_500_000, 625_000_000, 12_500_000_000] {
            let limit = Limit::new(rate, 0, false);
            for bytes in [60_u32, 1514, 65_549] {
                let exact = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
                let off = u128::from(limit.time_of(bytes)).abs_diff(exact);
                assert!(off * 1000 <= exact + 1000, "{bytes} bytes at {rate}: {off} ns off");
            }
        }
        assert_eq!(Limit::default().time_of(1514), 0);
        assert_eq!(LARGEST_RATE, 1_099_511_627_776);
    }
}
