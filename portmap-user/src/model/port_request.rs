//! Static ports as a client requests them: by number, or as automatic ranges, which the daemon chooses.

use std::{fmt, num::NonZeroU16, str::FromStr};

use super::ports::{self, PortRange, PortSet};
use crate::error::{Error, Result};

/// Most automatic ranges of a container.
pub const MOST_AUTOMATIC: usize = 256;

/// Prefix of the text form of an automatic range.
const AUTOMATIC: &str = "auto:";
/// Suffix of one that is aligned.
const ALIGNED: &str = "+aligned";

/// A range of adjacent ports that the daemon chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AutomaticRange {
    /// Number of its ports.
    pub count: NonZeroU16,
    /// Whether its first port is a multiple of `count`, rounded up to a power of two.
    pub is_aligned: bool,
}

impl AutomaticRange {
    /// The number of which the first port must be a multiple.
    pub fn alignment(self) -> u32 {
        if self.is_aligned { u32::from(self.count.get()).next_power_of_two() } else { 1 }
    }
}

impl fmt::Display for AutomaticRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{AUTOMATIC}{}{}", self.count, if self.is_aligned { ALIGNED } else { "" })
    }
}

impl FromStr for AutomaticRange {
    type Err = Error;

    /// Parses `auto:N` or `auto:N+aligned`.
    fn from_str(text: &str) -> Result<Self> {
        let after = text.trim().strip_prefix(AUTOMATIC);
        let count =
            after.map(|after| (after.strip_suffix(ALIGNED).unwrap_or(after), after.ends_with(ALIGNED)));
        let range =
            count.and_then(|(count, is_aligned)| Some(Self { count: count.parse().ok()?, is_aligned }));
        range.ok_or_else(|| {
            Error::usage(format!(
                "the automatic range {text:?}: expected auto:N or auto:N+aligned with a number of ports between 1 and \
                 65535, such as auto:10"
            ))
        })
    }
}

/// An item of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Item {
    Numbered(PortRange),
    Automatic(AutomaticRange),
}

/// The static ports that a client requests, in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortRequest(Vec<Item>);

impl PortRequest {
    /// The ports that it names by number.
    pub fn numbered(&self) -> PortSet {
        self.0.iter().filter_map(|item| item.numbered()).collect::<Vec<_>>().into()
    }

    /// The ranges that the daemon chooses, in the order of the request.
    pub fn automatic(&self) -> Vec<AutomaticRange> {
        self.0.iter().filter_map(|item| item.automatic()).collect()
    }

    /// All requested ranges in the order of the request. `chosen` are those that the daemon has chosen for the
    /// automatic ones.
    pub fn granted(&self, chosen: &[PortRange]) -> Vec<PortRange> {
        let mut chosen = chosen.iter().copied();
        self.0.iter().filter_map(|item| item.numbered().or_else(|| chosen.next())).collect()
    }
}

impl Item {
    fn numbered(self) -> Option<PortRange> {
        if let Self::Numbered(range) = self { Some(range) } else { None }
    }

    fn automatic(self) -> Option<AutomaticRange> {
        if let Self::Automatic(range) = self { Some(range) } else { None }
    }
}

impl FromStr for PortRequest {
    type Err = Error;

    /// Parses a list such as `31000-31009,auto:2,auto:4+aligned`.
    fn from_str(text: &str) -> Result<Self> {
        let item = |item: &str| match item.trim().get(..4) {
            Some("auto") => item.parse().map(Item::Automatic),
            _ => ports::range_in(item, text).map(Item::Numbered),
        };
        Ok(Self(ports::items(text)?.into_iter().map(item).collect::<Result<_>>()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(text: &str) -> PortRequest {
        text.parse().expect("a request")
    }

    #[test]
    fn port_request_keeps_the_order() {
        let request = request("[31005, auto:2,31000-31001,auto:4+aligned]");
        assert_eq!(request.numbered().to_string(), "31000-31001,31005");
        let automatic: Vec<String> = request.automatic().iter().map(ToString::to_string).collect();
        assert_eq!(automatic, ["auto:2", "auto:4+aligned"]);
        let chosen = [(31010, 31011), (31004, 31007)]
            .map(|(first, last)| PortRange::new(first, last).expect("a range"));
        let granted: Vec<String> = request.granted(&chosen).iter().map(ToString::to_string).collect();
        assert_eq!(granted, ["31005", "31010-31011", "31000-31001", "31004-31007"]);
        assert_eq!("".parse(), Ok(PortRequest::default()));
    }

    #[test]
    fn port_request_alignment_is_a_power_of_two() {
        for (text, alignment) in
            [("auto:3", 1), ("auto:3+aligned", 4), ("auto:4+aligned", 4), ("auto:1+aligned", 1)]
        {
            assert_eq!(text.parse::<AutomaticRange>().expect(text).alignment(), alignment, "{text}");
        }
        assert_eq!("auto:65535+aligned".parse::<AutomaticRange>().expect("valid").alignment(), 65536);
    }

    #[test]
    fn port_request_parse_error_names_the_part() {
        for (text, part) in [
            ("auto:0", "\"auto:0\""),
            ("auto:65536", "\"auto:65536\""),
            ("auto", "\"auto\""),
            ("auto:", "\"auto:\""),
            ("auto:-1", "\"auto:-1\""),
            ("31000,auto:4+Aligned", "\"auto:4+Aligned\""),
            ("auto:4+aligned+aligned", "\"auto:4+aligned+aligned\""),
            ("automatic:3", "\"automatic:3\""),
            ("31000,auto:1,http", "\"http\""),
            ("auto:1,,auto:1", "\"\""),
            ("[auto:1", "bracket"),
        ] {
            let error = text.parse::<PortRequest>().expect_err(text);
            assert!(error.message.contains(part), "{text}: {error}");
        }
    }
}
