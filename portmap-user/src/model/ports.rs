//! Port ranges and sets of ports: text form and set algebra.

use std::{fmt, str::FromStr};

use crate::error::{Error, Result};

/// An inclusive, non-empty range of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// The range from `first` to `last`, both included; `None` if it would be empty.
    pub const fn new(first: u16, last: u16) -> Option<Self> {
        if first <= last { Some(Self { first, last }) } else { None }
    }

    /// The lowest port.
    pub const fn first(self) -> u16 {
        self.first
    }

    /// The highest port.
    pub const fn last(self) -> u16 {
        self.last
    }

    /// Number of ports in the range.
    pub const fn count(self) -> usize {
        self.last as usize - self.first as usize + 1
    }

    /// Whether `port` is in the range.
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

impl From<PortRange> for (u16, u16) {
    fn from(range: PortRange) -> Self {
        (range.first, range.last)
    }
}

impl TryFrom<(u16, u16)> for PortRange {
    type Error = Error;

    fn try_from((first, last): (u16, u16)) -> Result<Self> {
        Self::new(first, last)
            .ok_or_else(|| Error::usage(format!("the port range [{first},{last}] is reversed")))
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { self.first.fmt(f) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

/// A set of ports, stored as sorted ranges that neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortSet(Vec<PortRange>);

impl PortSet {
    /// The ranges, ascending.
    pub fn ranges(&self) -> &[PortRange] {
        &self.0
    }

    /// Whether there is no port in the set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of ports.
    pub fn count(&self) -> usize {
        self.0.iter().map(|range| range.count()).sum()
    }

    /// Every port, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.0.iter().flat_map(|range| range.first..=range.last)
    }

    /// Whether `port` is in the set.
    pub fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|range| range.contains(port))
    }

    /// The longest range; the first one of several.
    pub fn longest_run(&self) -> Option<PortRange> {
        self.0.iter().rev().max_by_key(|range| range.count()).copied()
    }

    /// The ports that are in both sets.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let overlaps = self.0.iter().flat_map(|a| {
            other.0.iter().filter_map(|b| PortRange::new(a.first.max(b.first), a.last.min(b.last)))
        });
        overlaps.collect::<Vec<_>>().into()
    }

    /// The ports that are in this set but not in the other.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        let (mut remaining, mut holes) = (Vec::new(), other.0.as_slice());
        for range in &self.0 {
            // Both are sorted, so holes before this range are before all later ones.
            holes = &holes[holes.partition_point(|hole| hole.last < range.first)..];
            // In 32 bits, so that the successor of 65535 does not overflow.
            let mut next = u32::from(range.first);
            for hole in holes.iter().take_while(|hole| hole.first <= range.last) {
                remaining.extend(range_of(next, u32::from(hole.first)));
                next = u32::from(hole.last) + 1;
            }
            remaining.extend(range_of(next, u32::from(range.last) + 1));
        }
        remaining.into()
    }

    /// The ports that are in either set.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        self.0.iter().chain(&other.0).copied().collect::<Vec<_>>().into()
    }
}

/// The half-open range from `first` to `end`; `None` if it is empty.
fn range_of(first: u32, end: u32) -> Option<PortRange> {
    let last = u16::try_from(end.checked_sub(1)?).ok()?;
    PortRange::new(u16::try_from(first).ok()?, last)
}

impl From<Vec<PortRange>> for PortSet {
    fn from(mut ranges: Vec<PortRange>) -> Self {
        ranges.sort_unstable();
        let mut merged: Vec<PortRange> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match merged.last_mut() {
                Some(previous) if u32::from(range.first) <= u32::from(previous.last) + 1 => {
                    previous.last = previous.last.max(range.last);
                }
                _ => merged.push(range),
            }
        }
        Self(merged)
    }
}

impl From<PortRange> for PortSet {
    fn from(range: PortRange) -> Self {
        Self(vec![range])
    }
}

impl From<PortSet> for Vec<(u16, u16)> {
    fn from(set: PortSet) -> Self {
        set.0.into_iter().map(Into::into).collect()
    }
}

impl TryFrom<Vec<(u16, u16)>> for PortSet {
    type Error = Error;

    fn try_from(pairs: Vec<(u16, u16)>) -> Result<Self> {
        let ranges: Result<Vec<PortRange>> = pairs.into_iter().map(PortRange::try_from).collect();
        Ok(ranges?.into())
    }
}

impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            range.fmt(f)?;
        }
        Ok(())
    }
}

impl FromStr for PortSet {
    type Err = Error;

    /// Parses a list such as `31000-32000,33000`. One pair of brackets around the list and spaces around
    /// commas are accepted.
    fn from_str(text: &str) -> Result<Self> {
        let ranges: Result<Vec<PortRange>> =
            items(text)?.into_iter().map(|item| range_in(item, text)).collect();
        Ok(ranges?.into())
    }
}

/// Splits a list at its commas, without the brackets around it.
pub(super) fn items(text: &str) -> Result<Vec<&str>> {
    let trimmed = text.trim();
    let inside = match (trimmed.strip_prefix('['), trimmed.ends_with(']')) {
        (Some(inside), true) => &inside[..inside.len() - 1],
        (None, false) => trimmed,
        _ => return Err(invalid(trimmed, text, "has an unmatched bracket")),
    };
    Ok(if inside.trim().is_empty() { Vec::new() } else { inside.split(',').collect() })
}

/// Parses a port or a range of the list `text`.
pub(super) fn range_in(item: &str, text: &str) -> Result<PortRange> {
    let port = |number: &str| match number.trim().parse::<u32>() {
        Ok(0) => Err(invalid(item, text, "has port 0, which cannot be owned")),
        Ok(number) => u16::try_from(number).map_err(|_beyond| invalid(item, text, "is beyond port 65535")),
        Err(_not_a_number) => Err(invalid(item, text, "is neither a port nor a range")),
    };
    let (first, last) = item.split_once('-').unwrap_or((item, item));
    let range = PortRange::new(port(first)?, port(last)?);
    range.ok_or_else(|| invalid(item, text, "is a reversed range"))
}

fn invalid(item: &str, text: &str, problem: &str) -> Error {
    Error::usage(format!(
        "{item:?} in the port list {text:?} {problem}: expected ports and ranges between 1 and 65535 such as \
         31000-32000,33000"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(text: &str) -> PortSet {
        text.parse().expect("a port list")
    }

    /// Membership of every port: the reference for the set algebra.
    fn bits(set: &PortSet) -> Vec<bool> {
        let mut bits = vec![false; 65_536];
        set.iter().for_each(|port| bits[usize::from(port)] = true);
        bits
    }

    #[test]
    fn ports_list_is_sorted_and_merged() {
        assert_eq!(set("33000, 31000-32000").to_string(), "31000-32000,33000");
        assert_eq!(set("[5-7,8,9-10,7]").to_string(), "5-10");
        assert_eq!(set("65535").to_string(), "65535");
        assert_eq!(set("1-65535").count(), 65_535);
        assert!(set("[]").is_empty());
    }

    #[test]
    fn ports_parse_error_names_the_part() {
        for (text, part) in [
            ("31000-", "\"31000-\""),
            ("32000-31000", "reversed"),
            ("0", "port 0"),
            ("0-10", "port 0"),
            ("65536", "beyond port 65535"),
            ("80,http", "\"http\""),
            ("80,,90", "\"\""),
            ("[80", "bracket"),
            ("80]", "bracket"),
            ("-5", "\"-5\""),
            ("1-2-3", "\"1-2-3\""),
        ] {
            let error = text.parse::<PortSet>().expect_err(text);
            assert!(error.message.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn ports_set_algebra_matches_bitmaps() {
        let sets = [
            "",
            "1-65535",
            "65535",
            "1",
            "10-20,30-40,65000-65535",
            "15-35",
            "21-29",
            "10-40",
            "20,30",
            "1-9",
        ];
        for a in sets.map(set) {
            for b in sets.map(set) {
                let pairs = || bits(&a).into_iter().zip(bits(&b));
                assert_eq!(bits(&a.union(&b)), pairs().map(|(x, y)| x | y).collect::<Vec<_>>(), "{a} + {b}");
                assert_eq!(
                    bits(&a.intersection(&b)),
                    pairs().map(|(x, y)| x & y).collect::<Vec<_>>(),
                    "{a} & {b}"
                );
                assert_eq!(
                    bits(&a.difference(&b)),
                    pairs().map(|(x, y)| x && !y).collect::<Vec<_>>(),
                    "{a} - {b}"
                );
            }
        }
    }

    #[test]
    fn ports_pairs_are_inclusive_bounds() {
        let pairs = vec![(31000, 31009), (40000, 40000)];
        assert_eq!(Vec::from(set("31000-31009,40000")), pairs);
        assert_eq!(PortSet::try_from(pairs), Ok(set("31000-31009,40000")));
        assert!(PortSet::try_from(vec![(5, 4)]).is_err());
    }
}
