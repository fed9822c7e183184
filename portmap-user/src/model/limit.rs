//! Rate limits: the daemon's policy, and the limit that it gives a container.

use std::str::FromStr;

use portmap_common::gcra::MAX_RATE;

use super::cpus::Cpus;
use crate::{
    error::{Error, Result},
    sizes::{self, HumanBytes},
};

/// A limit on a container's traffic in one direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Long-term rate in bytes per second.
    pub rate: u64,
    /// Rate while the burst lasts, in bytes per second.
    pub ceil: u64,
    /// Bytes that may exceed the rate at once.
    pub burst: u64,
    /// Leaf qdisc: `fq_codel`, or the fallback of a kernel without it.
    pub leaf: String,
}

/// A direction of traffic, from the container's point of view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Traffic that the container sends.
    Egress,
    /// Traffic that the container receives.
    Ingress,
}

impl Direction {
    /// The name in flags.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Ingress => "ingress",
        }
    }
}

/// A rate per CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PerCpu {
    /// The link's speed divided by the number of the host's CPUs.
    Auto,
    /// A fixed rate.
    Rate(HumanBytes),
}

impl FromStr for PerCpu {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "auto" { Ok(Self::Auto) } else { text.parse().map(Self::Rate) }
    }
}

/// The daemon's limit policy for one direction, from its flags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Default rate of every container, in bytes per second; 0: unlimited.
    pub fixed: Option<u64>,
    /// Rate per whole CPU of a container.
    pub per_cpu: Option<PerCpu>,
    /// Lower bound of rates computed from CPUs, in bytes per second.
    pub minimum: Option<u64>,
    /// Upper bound of every container's rate, in bytes per second.
    pub maximum: Option<u64>,
    /// Rate while the burst lasts, in bytes per second; ignored if below the rate.
    pub ceil: Option<u64>,
    /// Bytes that may exceed the rate at once; [`default_burst`] if not given.
    pub burst: Option<u64>,
}

/// Lowest rate limit in bytes per second: 1 kbit/s. HTB forgets a debt of more than 60 seconds, and at this
/// rate a packet of four full-size frames still makes a smaller one.
const MIN_RATE: u64 = 125;

/// Default lower bound of rates computed from CPUs, as in Mesos: 1 Mbit/s in bytes per second.
const DEFAULT_MINIMUM: u64 = 125_000;

/// Default bursts per second: a burst is what the rate sends in 2 ms. A timer that is late by less than that
/// does not reduce the rate.
const BURST_PER_SECOND: u64 = 500;
/// Minimum burst in bytes: one frame, and as much as tc gives a class by default.
const MIN_BURST: u64 = 1600;

/// The default burst of a rate, in bytes.
pub fn default_burst(rate: u64) -> u64 {
    (rate / BURST_PER_SECOND).max(MIN_BURST)
}

impl Policy {
    /// Fails if the policy contradicts itself, or a rate is out of range.
    pub fn check(&self, direction: Direction) -> Result<()> {
        let flag = direction.name();
        if let (Some(minimum), Some(maximum)) = (self.minimum, self.maximum)
            && minimum > maximum
        {
            return Err(Error::usage(format!(
                "--minimum-{flag}-rate-limit {minimum}B is more than --maximum-{flag}-rate-limit {maximum}B: expected \
                 at most that"
            )));
        }
        let rates = [
            (format!("--{flag}-rate-limit-per-container"), self.fixed.filter(|rate| *rate != 0)),
            (format!("--maximum-{flag}-rate-limit"), self.maximum),
            (format!("--{flag}-ceil-limit"), self.ceil),
        ];
        for (name, rate) in rates {
            if let Some(rate) = rate {
                check_rate(&name, rate)?;
            }
        }
        Ok(())
    }

    /// Returns the limit of a container with these CPUs that requests the rate `requested`, in bytes per
    /// second (0: unlimited). `speed` is the link's speed per CPU, for `auto`, if it is known.
    pub fn limit(
        &self,
        requested: Option<u64>,
        cpus: Option<Cpus>,
        speed: Option<u64>,
        leaf: &str,
    ) -> Option<Limit> {
        let rate = match requested.or(self.fixed) {
            Some(0) => None,
            Some(rate) => Some(rate),
            None => self.per_cpu_rate(speed).map(|per_cpu| {
                let rate = per_cpu.saturating_mul(cpus.unwrap_or(Cpus::ONE).whole());
                rate.max(self.minimum.unwrap_or(DEFAULT_MINIMUM))
            }),
        };
        let rate = rate?.min(self.maximum.unwrap_or(MAX_RATE)).clamp(MIN_RATE, MAX_RATE);
        Some(Limit {
            rate,
            ceil: self.ceil.unwrap_or(rate).max(rate),
            burst: self.burst.unwrap_or_else(|| default_burst(rate)),
            leaf: leaf.to_owned(),
        })
    }

    /// The rate per whole CPU in bytes per second, if there is one. `speed` is the link's speed per CPU, for
    /// `auto`, if it is known.
    pub fn per_cpu_rate(&self, speed: Option<u64>) -> Option<u64> {
        match self.per_cpu? {
            PerCpu::Rate(rate) => Some(rate.0),
            PerCpu::Auto => speed,
        }
    }

    /// Compares the policy with the speed of the uplink in bytes per second. Returns a warning if the upper
    /// bound has no effect.
    ///
    /// # Errors
    ///
    /// If a container could never reach its limit.
    pub fn check_speed(&self, direction: Direction, uplink: &str, speed: u64) -> Result<Option<String>> {
        let flag = direction.name();
        let limits = [
            (format!("--{flag}-rate-limit-per-container"), self.fixed),
            (format!("--minimum-{flag}-rate-limit"), self.minimum),
        ];
        let beyond = |name: &str, rate: u64| {
            format!(
                "{name} is {}, which is more than the speed of {uplink}, {}: expected at most that (see \
                 --network-link-speed)",
                sizes::rate(rate),
                sizes::rate(speed)
            )
        };
        for (name, rate) in limits {
            if let Some(rate) = rate.filter(|rate| *rate > speed) {
                return Err(Error::usage(beyond(&name, rate)));
            }
        }
        let maximum = self.maximum.filter(|rate| *rate > speed);
        Ok(maximum.map(|rate| beyond(&format!("--maximum-{flag}-rate-limit"), rate)))
    }

    /// Fails if the policy does not allow a container the requested rate.
    pub fn check_asked(&self, direction: Direction, requested: Option<u64>) -> Result<()> {
        let Some(rate) = requested else { return Ok(()) };
        let name = direction.name();
        if rate != 0 {
            check_rate(&format!("the {name} rate"), rate)?;
        }
        match self.maximum {
            Some(maximum) if rate == 0 || rate > maximum => {
                let requested = if rate == 0 { "none (0)".to_owned() } else { sizes::rate(rate) };
                Err(Error::usage(format!(
                    "the requested {name} limit is {requested}: expected at most {} (--maximum-{name}-rate-limit)",
                    sizes::rate(maximum)
                )))
            }
            _ => Ok(()),
        }
    }
}

fn check_rate(what: &str, rate: u64) -> Result<()> {
    if (MIN_RATE..=MAX_RATE).contains(&rate) {
        return Ok(());
    }
    Err(Error::usage(format!(
        "{what} is {rate}B per second: expected between {} and {}",
        HumanBytes(MIN_RATE),
        HumanBytes(MAX_RATE)
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MBIT: u64 = 125_000;

    fn rate(policy: &Policy, asked: Option<u64>, cpus: f64, speed: Option<u64>) -> Option<u64> {
        let cpus = Some(Cpus::try_from(cpus).expect("a number"));
        policy.limit(asked, cpus, speed, "fq_codel").map(|limit| limit.rate)
    }

    #[test]
    fn limit_is_none_without_a_flag() {
        assert_eq!(rate(&Policy::default(), None, 4.0, Some(MBIT)), None);
        let bounds = Policy { minimum: Some(MBIT), maximum: Some(2 * MBIT), ..Policy::default() };
        assert_eq!(rate(&bounds, None, 4.0, None), None);
    }

    #[test]
    fn limit_precedence_is_requested_then_fixed_then_per_cpu() {
        let policy = Policy {
            fixed: Some(10 * MBIT),
            per_cpu: Some(PerCpu::Rate(HumanBytes(MBIT))),
            ..Policy::default()
        };
        assert_eq!(rate(&policy, Some(3 * MBIT), 4.0, None), Some(3 * MBIT));
        assert_eq!(rate(&policy, Some(0), 4.0, None), None);
        assert_eq!(rate(&policy, None, 4.0, None), Some(10 * MBIT));
        let policy = Policy { fixed: None, ..policy };
        assert_eq!(rate(&policy, None, 4.9, None), Some(4 * MBIT));
        // Zero means unlimited, although Mesos takes it for the minimum.
        assert_eq!(rate(&Policy { fixed: Some(0), ..policy }, None, 4.0, None), None);
    }

    #[test]
    fn limit_minimum_bounds_computed_rates_and_maximum_all() {
        let policy = Policy {
            per_cpu: Some(PerCpu::Rate(HumanBytes(10 * MBIT))),
            minimum: Some(5 * MBIT),
            maximum: Some(20 * MBIT),
            ..Policy::default()
        };
        assert_eq!(rate(&policy, None, 0.5, None), Some(5 * MBIT));
        assert_eq!(rate(&policy, None, 3.0, None), Some(20 * MBIT));
        assert_eq!(rate(&policy, Some(MBIT), 3.0, None), Some(MBIT));
        let fixed = Policy { fixed: Some(MBIT), ..policy.clone() };
        assert_eq!(rate(&fixed, None, 3.0, None), Some(MBIT));
        let fixed = Policy { fixed: Some(90 * MBIT), ..policy };
        assert_eq!(rate(&fixed, None, 3.0, None), Some(20 * MBIT));
        // The default minimum is 1 Mbit/s.
        let policy = Policy { per_cpu: Some(PerCpu::Rate(HumanBytes(10 * MBIT))), ..Policy::default() };
        assert_eq!(rate(&policy, None, 0.1, None), Some(MBIT));
    }

    #[test]
    fn limit_auto_is_none_for_unknown_link_speed() {
        let policy = Policy { per_cpu: Some(PerCpu::Auto), ..Policy::default() };
        assert_eq!(rate(&policy, None, 2.0, Some(100 * MBIT)), Some(200 * MBIT));
        assert_eq!(rate(&policy, None, 2.0, None), None);
    }

    #[test]
    fn limit_ceil_is_at_least_the_rate() {
        let policy = Policy { ceil: Some(5 * MBIT), burst: Some(100_000), ..Policy::default() };
        let limit = |rate| policy.limit(Some(rate), None, None, "bfifo").expect("a limit");
        assert_eq!((limit(MBIT).ceil, limit(MBIT).burst), (5 * MBIT, 100_000));
        assert_eq!(limit(8 * MBIT).ceil, 8 * MBIT);
        let limit = Policy::default().limit(Some(1000 * MBIT), None, None, "bfifo").expect("a limit");
        assert_eq!(limit.burst, 250_000);
    }

    #[test]
    fn limit_beyond_the_link_speed_is_refused_or_warned_of() {
        let check = |policy: &Policy| policy.check_speed(Direction::Egress, "eth0", MBIT);
        assert_eq!(check(&Policy { fixed: Some(MBIT), maximum: Some(MBIT), ..Policy::default() }), Ok(None));
        let policy = Policy { maximum: Some(2 * MBIT), ..Policy::default() };
        let warning = check(&policy).expect("a warning").expect("a warning");
        assert!(warning.contains("--maximum-egress-rate-limit is 2 Mbit/s"), "{warning}");
        for (policy, flag) in [
            (Policy { fixed: Some(MBIT + 1), ..Policy::default() }, "--egress-rate-limit-per-container"),
            (Policy { minimum: Some(MBIT + 1), ..Policy::default() }, "--minimum-egress-rate-limit"),
        ] {
            let error = check(&policy).expect_err(flag);
            assert!(error.message.contains(flag) && error.message.contains("eth0, 1 Mbit/s"), "{error}");
        }
    }

    #[test]
    fn limit_policy_error_names_the_flag() {
        let policy = Policy { minimum: Some(2 * MBIT), maximum: Some(MBIT), ..Policy::default() };
        let error = policy.check(Direction::Ingress).expect_err("the minimum is more");
        assert!(error.message.contains("--minimum-ingress-rate-limit 250000B"), "{error}");
        let policy = Policy { fixed: Some(1), ..Policy::default() };
        assert!(policy.check(Direction::Egress).expect_err("too little").message.contains("125B"));
        let policy = Policy { maximum: Some(MBIT), ..Policy::default() };
        for asked in [0, MBIT + 1, 10] {
            assert!(policy.check_asked(Direction::Egress, Some(asked)).is_err(), "{asked}");
        }
        assert!(policy.check_asked(Direction::Egress, Some(MBIT)).is_ok());
    }
}
