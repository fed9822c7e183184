//! Durations in text form, with Mesos' units (`5secs`, `50ms`, `1.5hrs`) or one letter (`5s`).

use std::{fmt, str::FromStr, time::Duration};

use crate::error::{Error, Result};

/// A duration that a human writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HumanDuration(pub Duration);

/// Units by name, in seconds.
const UNITS: [(&str, f64); 13] = [
    ("ns", 1e-9),
    ("us", 1e-6),
    ("ms", 1e-3),
    ("secs", 1.0),
    ("s", 1.0),
    ("mins", 60.0),
    ("m", 60.0),
    ("hrs", 3600.0),
    ("h", 3600.0),
    ("days", 86_400.0),
    ("d", 86_400.0),
    ("weeks", 604_800.0),
    ("w", 604_800.0),
];

impl FromStr for HumanDuration {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |why: &str| {
            Error::usage(format!("{text:?} is not a duration: {why}; expected one such as 5secs, 50ms or 5s"))
        };
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let number: f64 = number.parse().map_err(|_no_number| wrong("it does not start with a number"))?;
        if number == 0.0 && unit.is_empty() {
            return Ok(Self(Duration::ZERO));
        }
        let (_, seconds) = UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .ok_or_else(|| wrong(&format!("{unit:?} is not a unit")))?;
        Duration::try_from_secs_f64(number * seconds).map(Self).map_err(|_too_long| wrong("it is too long"))
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Long ones as people write them.
        for (name, unit) in [("days", 86_400), ("hrs", 3600)] {
            if self.0.subsec_nanos() == 0 && self.0.as_secs() >= unit && self.0.as_secs().is_multiple_of(unit)
            {
                return write!(f, "{}{name}", self.0.as_secs() / unit);
            }
        }
        write!(f, "{:?}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duration_parses_both_unit_styles() {
        for (text, expected) in [
            ("5secs", Duration::from_secs(5)),
            ("5s", Duration::from_secs(5)),
            ("50ms", Duration::from_millis(50)),
            ("1.5hrs", Duration::from_mins(90)),
            ("0", Duration::ZERO),
        ] {
            assert_eq!(text.parse(), Ok(HumanDuration(expected)), "{text}");
        }
    }

    #[test]
    fn duration_is_written_in_units_that_it_parses() {
        for text in ["1days", "14days", "2hrs", "25hrs", "90s", "1.5s", "50ms"] {
            let duration: HumanDuration = text.parse().expect(text);
            assert_eq!(duration.to_string(), text);
        }
    }

    #[test]
    fn duration_parse_error_names_the_part() {
        for (text, expected) in [
            ("", "start with a number"),
            ("5", "\"\" is not a unit"),
            ("5 s", "\" s\" is not a unit"),
            ("-5s", "start with a number"),
            ("1.2.3s", "start with a number"),
            ("99999999999999999999weeks", "too long"),
        ] {
            let error = text.parse::<HumanDuration>().expect_err(text);
            assert!(error.message.contains(expected), "{text}: {error}");
        }
    }
}
