//! Which limit a container gets: from what was asked for it, from the daemon's flags and from the host.

use std::{fmt, str::FromStr};

use portmap_common::gcra::{MAX_RATE, MIN_RATE};
use serde::{Deserialize, Serialize};

use crate::{
    api::Limit,
    error::{Error, Result},
    sizes::{self, Size},
};

/// A direction of traffic, as a container sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// What it sends.
    Egress,
    /// What it receives.
    Ingress,
}

impl Direction {
    /// The name that flags have.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Ingress => "ingress",
        }
    }
}

/// A number of CPUs, in thousandths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Cpus {
    thousandths: u32,
}

impl Cpus {
    /// What a container has of which nobody has said more.
    pub const ONE: Self = Self { thousandths: 1000 };

    const fn whole(self) -> u64 {
        (self.thousandths / 1000) as u64
    }
}

impl TryFrom<f64> for Cpus {
    type Error = Error;

    fn try_from(cpus: f64) -> Result<Self> {
        if !(0.0..=1_000_000.0).contains(&cpus) {
            return Err(Error::usage(format!("{cpus} CPUs: expected a number such as 0.5 or 4")));
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the range was just checked"
        )]
        let thousandths = (cpus * 1000.0).round() as u32;
        Ok(Self { thousandths })
    }
}

impl From<Cpus> for f64 {
    fn from(cpus: Cpus) -> Self {
        Self::from(cpus.thousandths) / 1000.0
    }
}

impl FromStr for Cpus {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let number: f64 = text
            .parse()
            .map_err(|_invalid| Error::usage(format!("{text:?} CPUs: expected a number such as 0.5 or 4")))?;
        number.try_into()
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", f64::from(*self))
    }
}

/// A rate for each CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum PerCpu {
    /// The link's speed, divided among the host's CPUs.
    Auto,
    /// Bytes per second.
    Rate(Size),
}

impl FromStr for PerCpu {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "auto" { Ok(Self::Auto) } else { text.parse().map(Self::Rate) }
    }
}

impl TryFrom<String> for PerCpu {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

/// What the flags say about one direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// The same rate for every container, in bytes per second; 0 for none.
    pub fixed: Option<u64>,
    /// A rate for each whole CPU of a container.
    pub per_cpu: Option<PerCpu>,
    /// Least of those that are computed from CPUs.
    pub minimum: Option<u64>,
    /// Most that any container gets.
    pub maximum: Option<u64>,
    /// Rate while the burst lasts, if that is more.
    pub ceil: Option<u64>,
    /// Bytes that may exceed the rate at once.
    pub burst: Option<u64>,
}

/// What is computed from CPUs is at least this, as in Mesos: 1 Mbit/s.
const DEFAULT_MINIMUM: u64 = 125_000;

/// Part of a second for which a container may send at once what it has saved up, unless the flags say otherwise. A timer
/// that is late by less loses nothing of the rate.
const BURST_PER_SECOND: u64 = 500;
/// Least burst in bytes: two frames.
const LEAST_BURST: u64 = 2 * 1514;

/// The burst that goes with a rate.
pub fn default_burst(rate: u64) -> u64 {
    (rate / BURST_PER_SECOND).max(LEAST_BURST)
}

impl Policy {
    /// Refuses what contradicts itself.
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

    /// The limit of a container for which `asked` was asked, in bytes per second (0: none), and which has so many CPUs.
    /// `speed` is what one CPU gets if the flags leave that to the link, if that is known.
    pub fn limit(
        &self,
        asked: Option<u64>,
        cpus: Option<Cpus>,
        speed: Option<u64>,
        leaf: &str,
    ) -> Option<Limit> {
        let rate = match asked.or(self.fixed) {
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

    fn per_cpu_rate(&self, speed: Option<u64>) -> Option<u64> {
        match self.per_cpu? {
            PerCpu::Rate(rate) => Some(rate.0),
            PerCpu::Auto => speed,
        }
    }

    /// Refuses to give a container what is asked for it.
    pub fn check_asked(&self, direction: Direction, asked: Option<u64>) -> Result<()> {
        let Some(asked) = asked else { return Ok(()) };
        let name = direction.name();
        if asked != 0 {
            check_rate(&format!("the {name} rate"), asked)?;
        }
        match self.maximum {
            Some(maximum) if asked == 0 || asked > maximum => {
                let wanted = if asked == 0 { "none (0)".to_owned() } else { sizes::rate(asked) };
                Err(Error::usage(format!(
                    "an {name} limit of {wanted} is asked for: expected at most {} (--maximum-{name}-rate-limit)",
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
        Size(MIN_RATE),
        Size(MAX_RATE)
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
    fn nobody_is_limited_unless_somebody_says_so() {
        assert_eq!(rate(&Policy::default(), None, 4.0, Some(MBIT)), None);
        let bounds = Policy { minimum: Some(MBIT), maximum: Some(2 * MBIT), ..Policy::default() };
        assert_eq!(rate(&bounds, None, 4.0, None), None);
    }

    #[test]
    fn what_is_asked_for_comes_first_then_the_fixed_rate_then_cpus() {
        let policy =
            Policy { fixed: Some(10 * MBIT), per_cpu: Some(PerCpu::Rate(Size(MBIT))), ..Policy::default() };
        assert_eq!(rate(&policy, Some(3 * MBIT), 4.0, None), Some(3 * MBIT));
        assert_eq!(rate(&policy, Some(0), 4.0, None), None);
        assert_eq!(rate(&policy, None, 4.0, None), Some(10 * MBIT));
        let policy = Policy { fixed: None, ..policy };
        assert_eq!(rate(&policy, None, 4.9, None), Some(4 * MBIT));
        // Zero means no limit also where Mesos takes it for the minimum.
        assert_eq!(rate(&Policy { fixed: Some(0), ..policy }, None, 4.0, None), None);
    }

    #[test]
    fn the_minimum_is_for_computed_rates_only_and_the_maximum_for_all() {
        let policy = Policy {
            per_cpu: Some(PerCpu::Rate(Size(10 * MBIT))),
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
        // Without a minimum, 1 Mbit/s.
        let policy = Policy { per_cpu: Some(PerCpu::Rate(Size(10 * MBIT))), ..Policy::default() };
        assert_eq!(rate(&policy, None, 0.1, None), Some(MBIT));
    }

    #[test]
    fn a_link_of_unknown_speed_limits_nobody() {
        let policy = Policy { per_cpu: Some(PerCpu::Auto), ..Policy::default() };
        assert_eq!(rate(&policy, None, 2.0, Some(100 * MBIT)), Some(200 * MBIT));
        assert_eq!(rate(&policy, None, 2.0, None), None);
    }

    #[test]
    fn a_ceil_below_the_rate_is_the_rate() {
        let policy = Policy { ceil: Some(5 * MBIT), burst: Some(100_000), ..Policy::default() };
        let limit = |rate| policy.limit(Some(rate), None, None, "bfifo").expect("a limit");
        assert_eq!((limit(MBIT).ceil, limit(MBIT).burst), (5 * MBIT, 100_000));
        assert_eq!(limit(8 * MBIT).ceil, 8 * MBIT);
        let limit = Policy::default().limit(Some(1000 * MBIT), None, None, "bfifo").expect("a limit");
        assert_eq!(limit.burst, 250_000);
    }

    #[test]
    fn contradictions_are_named() {
        let policy = Policy { minimum: Some(2 * MBIT), maximum: Some(MBIT), ..Policy::default() };
        let error = policy.check(Direction::Ingress).expect_err("the minimum is more");
        assert!(error.message.contains("--minimum-ingress-rate-limit 250000B"), "{error}");
        let policy = Policy { fixed: Some(1), ..Policy::default() };
        assert!(policy.check(Direction::Egress).expect_err("too little").message.contains("1024B"));
        let policy = Policy { maximum: Some(MBIT), ..Policy::default() };
        for asked in [0, MBIT + 1, 10] {
            assert!(policy.check_asked(Direction::Egress, Some(asked)).is_err(), "{asked}");
        }
        assert!(policy.check_asked(Direction::Egress, Some(MBIT)).is_ok());
        assert!(
            "-1".parse::<Cpus>().is_err()
                && "many".parse::<Cpus>().is_err()
                && "NaN".parse::<Cpus>().is_err()
        );
    }
}
