//! Sizes and rates in text form: Mesos' bytes (`37500KB`, of 1,024 bytes each) and tc's rates (`300mbit`,
//! decimal).

use std::{fmt, str::FromStr};

use crate::error::{Error, Result};

/// A number of bytes, or of bytes per second, that a human writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HumanBytes(pub u64);

/// Units by name, in bits. Names are matched without regard to case, as tc does.
const UNITS: [(&str, u128); 25] = [
    ("B", 8),
    ("KB", 8 << 10),
    ("MB", 8 << 20),
    ("GB", 8 << 30),
    ("TB", 8 << 40),
    ("bit", 1),
    ("kbit", 1_000),
    ("mbit", 1_000_000),
    ("gbit", 1_000_000_000),
    ("tbit", 1_000_000_000_000),
    ("kibit", 1 << 10),
    ("mibit", 1 << 20),
    ("gibit", 1 << 30),
    ("tibit", 1 << 40),
    ("bps", 8),
    ("kbps", 8_000),
    ("mbps", 8_000_000),
    ("gbps", 8_000_000_000),
    ("tbps", 8_000_000_000_000),
    ("kibps", 8 << 10),
    ("mibps", 8 << 20),
    ("gibps", 8 << 30),
    ("tibps", 8 << 40),
    ("KiB", 8 << 10),
    ("MiB", 8 << 20),
];

impl FromStr for HumanBytes {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |why: &str| {
            Error::usage(format!(
                "{text:?} is not a size: {why}; expected bytes such as 37500KB (1 KB = 1024 B) or a \
                 rate such as 300mbit"
            ))
        };
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        if number.is_empty() {
            return Err(wrong("it does not start with a number"));
        }
        let number: u128 = number.parse().map_err(|_overflow| wrong("it is too large"))?;
        if number == 0 && unit.is_empty() {
            return Ok(Self(0));
        }
        if unit.is_empty() {
            return Err(wrong("it has no unit"));
        }
        let bits = UNITS
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(unit))
            .map(|(_, bits)| *bits)
            .ok_or_else(|| wrong(&format!("{unit:?} is not a unit")))?;
        let bytes = number.checked_mul(bits).map(|bits| bits / 8);
        bytes.and_then(|bytes| u64::try_from(bytes).ok()).map(Self).ok_or_else(|| wrong("it is too large"))
    }
}

impl fmt::Display for HumanBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}B", self.0)
    }
}

/// Formats a rate in bytes per second with a decimal unit of bits.
pub fn rate(bytes: u64) -> String {
    let bits = bytes.saturating_mul(8);
    let bits = u128::from(bits);
    let units = [(1_000_000_000, "Gbit/s"), (1_000_000, "Mbit/s"), (1_000, "kbit/s")];
    match units.into_iter().find(|(unit, _)| bits >= *unit) {
        None => format!("{bits} bit/s"),
        Some((unit, name)) => {
            let thousandths = bits * 1000 / unit;
            let text = format!("{}.{:03}", thousandths / 1000, thousandths % 1000);
            format!("{} {name}", text.trim_end_matches('0').trim_end_matches('.'))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_parses_bytes_and_rates() {
        for (text, bytes) in [
            ("0", 0),
            ("0B", 0),
            ("1B", 1),
            ("37500KB", 38_400_000),
            ("1mb", 1 << 20),
            ("2GB", 2 << 30),
            ("300mbit", 37_500_000),
            ("1kbit", 125),
            ("10gbit", 1_250_000_000),
            ("1Mbit", 125_000),
            ("1mibit", 131_072),
            ("1kbps", 1000),
            ("12bit", 1),
        ] {
            assert_eq!(text.parse(), Ok(HumanBytes(bytes)), "{text}");
        }
    }

    #[test]
    fn size_parse_error_names_the_part() {
        for (text, why) in [
            ("", "does not start"),
            ("fast", "does not start"),
            ("-1MB", "does not start"),
            ("1000", "no unit"),
            ("10 MB", "\" MB\" is not a unit"),
            ("1.5gbit", "\".5gbit\" is not a unit"),
            ("99999999999TB", "too large"),
            ("999999999999999999999999999999999999999999B", "too large"),
        ] {
            let error = text.parse::<HumanBytes>().expect_err(text);
            assert!(error.message.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn rate_is_formatted_in_bits() {
        for (bytes, text) in [
            (0, "0 bit/s"),
            (125_000, "1 Mbit/s"),
            (37_500_000, "300 Mbit/s"),
            (156_250_000, "1.25 Gbit/s"),
            (1024, "8.192 kbit/s"),
        ] {
            assert_eq!(rate(bytes), text);
        }
    }
}
