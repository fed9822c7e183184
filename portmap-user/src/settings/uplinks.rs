//! `--uplink`: the interfaces that lead outside.

use std::fmt;

use crate::{
    error::{Error, Result},
    model::interface_name::{LONGEST, is_of_kernel},
};

/// A value of `--uplink`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UplinkChoice {
    /// The interfaces of default routes.
    Auto,
    /// The interface with this name.
    Name(String),
    /// All interfaces whose names match this pattern, in which `*` stands for any characters and `?` for one.
    Pattern(String),
}

impl UplinkChoice {
    /// Whether the choice is by name, and `name` is one of those that it selects.
    pub fn names(&self, name: &str) -> bool {
        match self {
            Self::Auto => false,
            Self::Name(wanted) => wanted == name,
            Self::Pattern(pattern) => matches(pattern.as_bytes(), name.as_bytes()),
        }
    }
}

impl fmt::Display for UplinkChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Name(text) | Self::Pattern(text) => write!(f, "{text:?}"),
        }
    }
}

/// Parses the values of the flag.
pub(super) fn parsed(values: Option<Vec<String>>) -> Result<Vec<UplinkChoice>> {
    let Some(values) = values.filter(|values| !values.is_empty()) else {
        return Ok(vec![UplinkChoice::Auto]);
    };
    values.into_iter().map(parse).collect()
}

fn parse(value: String) -> Result<UplinkChoice> {
    if value == "auto" {
        return Ok(UplinkChoice::Auto);
    }
    let is_pattern = value.contains(['*', '?']);
    // A pattern that no name matches selects nothing.
    if !is_pattern && !is_of_kernel(&value) {
        return Err(Error::usage(format!(
            "--uplink {value:?}: expected the name of an interface (at most {LONGEST} bytes), a pattern such as \
             eth* or bond?, or auto; repeat the flag for several"
        )));
    }
    Ok(if is_pattern { UplinkChoice::Pattern(value) } else { UplinkChoice::Name(value) })
}

/// Whether a pattern matches a whole name.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match pattern.split_first() {
        None => name.is_empty(),
        Some((b'*', rest)) if rest.starts_with(b"*") => matches(rest, name),
        // Names are short, so trying every length is cheap.
        Some((b'*', rest)) => (0..=name.len()).any(|taken| matches(rest, &name[taken..])),
        Some((b'?', rest)) => name.split_first().is_some_and(|(_, behind)| matches(rest, behind)),
        Some((byte, rest)) => {
            name.split_first().is_some_and(|(first, behind)| first == byte && matches(rest, behind))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uplink_patterns_match_as_in_a_shell() {
        for (pattern, name, expected) in [
            ("eth*", "eth0", true),
            ("eth*", "eth", true),
            ("eth*", "veth0", false),
            ("bond?", "bond0", true),
            ("bond?", "bond", false),
            ("bond?", "bond10", false),
            ("en*s?", "enp3s0", true),
            ("en*s?", "enp3s10", false),
            ("*", "wg0", true),
            ("*.*", "eth0.100", true),
            ("*.*", "eth0", false),
        ] {
            let choice = parse(pattern.to_owned()).expect(pattern);
            assert_eq!(choice, UplinkChoice::Pattern(pattern.to_owned()));
            assert_eq!(choice.names(name), expected, "{pattern} {name}");
        }
        let exact = parse("eth0".to_owned()).expect("a name");
        assert_eq!(["eth0", "eth01"].map(|name| exact.names(name)), [true, false]);
    }

    #[test]
    fn uplink_values_are_validated() {
        assert_eq!(parsed(None).expect("the default"), [UplinkChoice::Auto]);
        for invalid in ["", "a/b", "eth0 eth1", "abcdefghijklmnop"] {
            let error = parse(invalid.to_owned()).expect_err(invalid).message;
            assert!(error.contains(&format!("--uplink {invalid:?}: expected")), "{error}");
        }
    }
}
