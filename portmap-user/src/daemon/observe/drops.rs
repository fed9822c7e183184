//! Counts of drops, and the decoding of samples.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
};

use portmap_common::{
    event::DropEvent,
    reason::{Drops, Reason},
    slot::HOST_SLOT,
    tables::Address6,
};

use crate::{
    api::{Direction, DropCount, DropSample, OUTSIDE},
    daemon::{env::Env, registry::Snapshot},
    error::Result,
    kernel::clock,
    model::Protocol,
};

/// The counts of drops by container, direction and reason; with a name, only those of that container or of
/// [`OUTSIDE`].
///
/// # Errors
///
/// If there is no such container, or a map cannot be read.
pub(in crate::daemon) fn all(env: &Env, containers: &Snapshot, name: Option<&str>) -> Result<Vec<DropCount>> {
    let slots: Vec<(String, u16)> = if let Some(name) = name {
        vec![(name.to_owned(), slot_of(containers, name)?)]
    } else {
        let mut all: Vec<_> = containers.records().map(|record| (record.name.clone(), record.slot)).collect();
        all.push((OUTSIDE.to_owned(), HOST_SLOT));
        all
    };
    let mut found = Vec::new();
    let counts = env.maps.slot_counts(&slots.iter().map(|(_, slot)| *slot).collect())?;
    for (name, slot) in slots {
        add_drops(&mut found, &name, &counts.get(slot).drops);
    }
    Ok(found)
}

/// The slot of a container; the host's for [`OUTSIDE`].
///
/// # Errors
///
/// If there is no such container.
pub(in crate::daemon) fn slot_of(containers: &Snapshot, name: &str) -> Result<u16> {
    if name == OUTSIDE { Ok(HOST_SLOT) } else { Ok(containers.entry(name)?.record.slot) }
}

fn add_drops(found: &mut Vec<DropCount>, name: &str, drops: &Drops) {
    for (direction, counts) in [(Direction::Rx, &drops.rx), (Direction::Tx, &drops.tx)] {
        for reason in Reason::ALL {
            let packets = counts.get(*reason);
            if packets > 0 {
                found.push(DropCount {
                    name: name.to_owned(),
                    direction,
                    reason: reason.name().to_owned(),
                    packets,
                    text: reason.text().to_owned(),
                });
            }
        }
    }
}

/// Decodes a sample. Its `suppressed` counts from the addition of the container.
pub(super) fn describe(event: &DropEvent, slots: &BTreeMap<u16, String>) -> Result<DropSample> {
    let name = match slots.get(&event.slot) {
        _ if event.slot == HOST_SLOT => OUTSIDE.to_owned(),
        Some(name) => name.clone(),
        // The container has been deleted since.
        None => format!("slot {}", event.slot),
    };
    let reason = Reason::ALL.get(usize::from(event.reason));
    // The programs report zeros if they cannot parse the IP header. `::` is a valid source, but no packet has
    // it as its source and destination.
    let is_readable = [event.source, event.destination] != [Address6::default(); 2];
    let protocol =
        if is_readable { Protocol(event.protocol).to_string() } else { format!("{:#06x}", event.ether_type) };
    Ok(DropSample {
        time: clock::local(clock::wall_time(event.time)?)?,
        name,
        reason: reason.map_or_else(|| format!("reason {}", event.reason), |reason| reason.name().to_owned()),
        source: is_readable.then(|| address(event.source)),
        source_port: port(event.source_port),
        destination: is_readable.then(|| address(event.destination)),
        destination_port: port(event.destination_port),
        protocol,
        length: event.length,
        suppressed: event.suppressed,
    })
}

fn address(address: Address6) -> IpAddr {
    Ipv6Addr::from(address.bytes).to_canonical()
}

const fn port(port: u16) -> Option<u16> {
    if port == 0 { None } else { Some(port) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drop_sample_is_decoded() {
        let slots = BTreeMap::from([(3, "web".to_owned())]);
        let mapped = |last| Address6::new([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, last]);
        let event = DropEvent {
            suppressed: 7,
            source: mapped(1),
            destination: mapped(2),
            length: 60,
            slot: 3,
            source_port: 31000,
            ether_type: 0x0800,
            protocol: 17,
            reason: Reason::SourcePort as u8,
            ..DropEvent::default()
        };
        let sample = describe(&event, &slots).expect("described");
        assert_eq!((sample.name.as_str(), sample.reason.as_str()), ("web", "source_port"));
        assert_eq!(sample.source, Some([10, 0, 0, 1].into()));
        assert_eq!((sample.source_port, sample.destination_port), (Some(31000), None));
        assert_eq!((sample.protocol.as_str(), sample.length, sample.suppressed), ("udp", 60, 7));
        let arp = DropEvent { slot: 4, ether_type: 0x0806, reason: 250, ..DropEvent::default() };
        let sample = describe(&arp, &slots).expect("described");
        assert_eq!((sample.name.as_str(), sample.reason.as_str()), ("slot 4", "reason 250"));
        assert_eq!((sample.source, sample.protocol.as_str()), (None, "0x0806"));
        let outside =
            DropEvent { destination: Address6::new([1; 16]), protocol: 200, ..DropEvent::default() };
        let sample = describe(&outside, &slots).expect("described");
        assert_eq!((sample.name.as_str(), sample.protocol.as_str()), ("outside", "200"));
        assert_eq!(sample.source, Some(Ipv6Addr::UNSPECIFIED.into()));
        assert!(sample.destination.is_some_and(|destination| destination.is_ipv6()));
    }
}
