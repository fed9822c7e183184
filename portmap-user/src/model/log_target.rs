//! Whose verdicts are logged.

use std::{fmt, str::FromStr};

use super::name;

/// A container or a port. A number is a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTarget {
    /// The source or destination port.
    Port(u16),
    /// The container with this name, which need not exist yet.
    Container(String),
}

impl FromStr for LogTarget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            // Nothing would ever be logged for a name that no container can have.
            name::check(text).map_err(|error| error.to_string())?;
            return Ok(Self::Container(text.to_owned()));
        }
        match text.parse() {
            Ok(port) if port != 0 => Ok(Self::Port(port)),
            _ => Err(format!("{text} is no port: expected 1 to 65535, or the name of a container")),
        }
    }
}

impl fmt::Display for LogTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => port.fmt(f),
            Self::Container(name) => name.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_target_is_a_port_or_a_container() {
        assert_eq!("31000".parse(), Ok(LogTarget::Port(31000)));
        for name in ["web", "web-31000", "8080a"] {
            assert_eq!(name.parse(), Ok(LogTarget::Container(name.to_owned())));
        }
        for number in ["0", "65536", "99999999999999999999"] {
            assert!(number.parse::<LogTarget>().is_err_and(|error| error.contains(number)));
        }
        for name in ["", "web,api", "web:31000", "*", "outside", "a\x1b[2J"] {
            let expected = format!("{name:?} cannot be a container's name");
            let error = name.parse::<LogTarget>().expect_err(name);
            assert!(error.starts_with(&expected), "{error}");
        }
    }
}
