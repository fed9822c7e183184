//! Violations: deviations of the observed traffic, with the probes that can have caused them.

use std::collections::BTreeMap;

use crate::{
    frames::FIRST_PORT,
    oracle::{Vantage, frame_number},
    parser::{ETHERNET, packet},
    probe::{self, Probe},
    sockets::Received,
};

/// Violations: the first of each kind.
#[derive(Debug, Default)]
pub(crate) struct Violations(BTreeMap<String, String>);

impl Violations {
    /// Records a violation, unless a recorded one differs in numbers only.
    pub(crate) fn note(&mut self, violation: &str, report: impl FnOnce() -> String) {
        let mut kind: String = violation.chars().take(60).filter(|letter| !letter.is_ascii_digit()).collect();
        // Different addresses and ports are the same kind.
        for word in [" source", " destination", " port", " tag", " ICMP error"] {
            if let Some(index) = kind.find(word) {
                kind.truncate(index + word.len() + 5);
            }
        }
        if self.0.len() < 24 {
            self.0.entry(kind).or_insert_with(report);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn report(&self) -> String {
        self.0.values().flat_map(|violation| ["\n\n", violation]).collect()
    }
}

/// Describes a violation with the observed data and the probe that it belongs to.
pub(crate) fn report(at: Vantage, received: &Received, violation: &str, probes: &[Probe]) -> String {
    let bytes = &received.bytes;
    let number = frame_number(bytes, probes[0].number)
        .or_else(|| by_port(bytes).map(|index| probes[0].number + index));
    let sent = number.and_then(|number| probes.iter().find(|probe| probe.number == number));
    let sent = sent.map_or_else(|| listed(probes), |probe| format!("\n  {probe}"));
    let shown = probe::hex(&bytes[..bytes.len().min(256)]);
    format!("{at:?}: {violation}: {} bytes: {shown}\nof:{sent}", bytes.len())
}

/// Returns the index in its batch of a frame with a destination port of its own.
fn by_port(frame: &[u8]) -> Option<u32> {
    let (header, rest) = frame.split_first_chunk::<ETHERNET>()?;
    let (_, to) = packet(rest, header[12] == 0x86, false).ok()?.ports()?;
    to.checked_sub(FIRST_PORT).map(u32::from)
}

pub(crate) fn listed(probes: &[Probe]) -> String {
    probes.iter().flat_map(|probe| ["\n  ".to_owned(), probe.to_string()]).collect()
}
