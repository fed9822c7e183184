//! Numbers of CPUs, as limits depend on them.

use std::{fmt, str::FromStr};

use crate::error::{Error, Result};

/// A number of CPUs, in thousandths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpus {
    thousandths: u32,
}

impl Cpus {
    /// The default of a container whose CPUs were not given.
    pub const ONE: Self = Self { thousandths: 1000 };

    /// Number of whole CPUs, rounded down.
    pub const fn whole(self) -> u64 {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_parse_error_for_negative_and_non_numbers() {
        for text in ["-1", "many", "NaN", ""] {
            assert!(text.parse::<Cpus>().is_err(), "{text}");
        }
        assert_eq!("0.5".parse::<Cpus>().expect("a number").to_string(), "0.5");
    }
}
