//! Verification that packets take the path that is measured: every packet is accounted for.

use std::{
    collections::HashMap,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use portmap_common::{reason::HostHook, tables::PortEntry};

use crate::classifier::{
    layout::{self, Mix},
    mesos,
    source::{BATCH, SEQUENCE, Source},
    world::{Classifier, NamespaceFile, World, eth0},
};

/// Time without an arrival after which missing packets count as lost.
const PATIENCE: Duration = Duration::from_secs(5);

/// Packets that are sent at a time: fewer than a CPU's backlog holds (`net.core.netdev_max_backlog`).
const PACE: u32 = 8 * BATCH;

/// Attempts before a loss is attributed to the classifier.
const ATTEMPTS: u32 = 5;

/// Counters of the packets that arrived, by namespace: the kernel counts packets with a wrong header
/// checksum.
#[derive(Debug)]
pub(crate) struct Sinks {
    host: NamespaceFile,
    containers: NamespaceFile,
    interfaces: NamespaceFile,
}

/// Packets that arrived on the host and in containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arrived {
    pub(crate) host: u64,
    pub(crate) containers: u64,
}

impl Arrived {
    /// Returns where packets of a mix must arrive behind a classifier.
    fn expected(classifier: Classifier, mix: Mix, packets: u64) -> Self {
        let delivers = !matches!(classifier, Classifier::None | Classifier::Empty);
        if delivers && mix == Mix::Owned {
            Self { host: 0, containers: packets }
        } else {
            Self { host: packets, containers: 0 }
        }
    }
}

impl Sinks {
    pub(crate) fn open(world: &World) -> Result<Self> {
        Ok(Self {
            host: NamespaceFile::open("netstat")?,
            containers: world.containers.run(|_session| NamespaceFile::open("netstat"))?,
            interfaces: world.containers.run(|_session| NamespaceFile::open("dev"))?,
        })
    }

    pub(crate) fn now(&self) -> Result<Arrived> {
        Ok(Arrived { host: checksum_errors(&self.host)?, containers: checksum_errors(&self.containers)? })
    }

    /// Fails unless exactly `packets` packets have arrived since `before`, at the expected place.
    pub(crate) fn check(
        &self,
        before: Arrived,
        classifier: Classifier,
        mix: Mix,
        packets: u64,
    ) -> Result<()> {
        let expected = Arrived::expected(classifier, mix, packets);
        let mut progress = (Instant::now(), before);
        let arrived = loop {
            let now = self.now()?;
            let arrived =
                Arrived { host: now.host - before.host, containers: now.containers - before.containers };
            if now != progress.1 {
                progress = (Instant::now(), now);
            }
            // A kernel thread may process the last packets of a CPU's backlog.
            if arrived.host + arrived.containers >= packets || progress.0.elapsed() > PATIENCE {
                break arrived;
            }
            thread::sleep(Duration::from_millis(1));
        };
        ensure!(
            arrived == expected,
            "{} packets to {} ports through {}: {} arrived on the host and {} in containers, expected {} and {}",
            packets,
            mix.name(),
            classifier.interface(),
            arrived.host,
            arrived.containers,
            expected.host,
            expected.containers
        );
        Ok(())
    }

    /// Packets that each container's `eth0` has received.
    fn received(&self) -> Result<HashMap<String, u64>> {
        let text = self.interfaces.read()?;
        let lines = text.lines().filter_map(|line| line.split_once(':'));
        lines
            .map(|(name, fields)| {
                // bytes packets …
                let packets = fields.split_whitespace().nth(1).and_then(|field| field.parse().ok());
                Ok((name.trim().to_owned(), packets.context("/proc/net/dev has a line without packets")?))
            })
            .collect()
    }
}

fn checksum_errors(file: &NamespaceFile) -> Result<u64> {
    let text = file.read()?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("IpExt:"));
    let count = lines.next().zip(lines.next()).and_then(|(names, values)| {
        let mut fields = names.split_whitespace().zip(values.split_whitespace());
        fields.find(|(name, _)| *name == "InCsumErrors")?.1.parse().ok()
    });
    count.context("/proc/net/netstat has no InCsumErrors")
}

/// Verifies the path of packets with [`attempt`]. A busy machine may drop any packet, so a loss is reported
/// and verified again before it counts.
pub(crate) fn verify(
    world: &World,
    source: &mut Source,
    sinks: &Sinks,
    case: (Classifier, Mix),
    sequence: (&[u16], &[PortEntry], u32),
) -> Result<()> {
    for again in (0..ATTEMPTS).rev() {
        match attempt(world, source, sinks, case, sequence) {
            Err(error) if again > 0 => {
                eprintln!("{error:#}; the machine may be busy: verifying again, {again} times at most");
            }
            result => return result,
        }
    }
    unreachable!("the last attempt returns")
}

/// Sends `packets` packets of the sequence `ports` through a classifier, a few at a time, and checks all
/// counters: those of the sinks, of each container's `eth0`, and of the classifier.
fn attempt(
    world: &World,
    source: &mut Source,
    sinks: &Sinks,
    (classifier, mix): (Classifier, Mix),
    (ports, table, packets): (&[u16], &[PortEntry], u32),
) -> Result<()> {
    ensure!(packets as usize <= SEQUENCE, "{packets} packets: expected at most {SEQUENCE}");
    let (arrived, received) = (sinks.now()?, sinks.received()?);
    let counted = Counted::read(world, classifier)?;
    let sent = u64::from(packets);
    for place in (0..packets).step_by(PACE as usize) {
        let now = PACE.min(packets - place);
        source.send(classifier.ifindex(), place, now)?;
        sinks.check(arrived, classifier, mix, u64::from(place + now))?;
    }

    let mut expected: HashMap<u16, u64> = HashMap::new();
    if Arrived::expected(classifier, mix, sent).containers > 0 {
        for port in &ports[..packets as usize] {
            *expected.entry(table[usize::from(*port)].slot).or_default() += 1;
        }
    }
    let now = sinks.received()?;
    for slot in layout::slots(layout::MOST_CONTAINERS) {
        let name = eth0(slot);
        let since = now.get(&name).zip(received.get(&name)).map(|(now, before)| now - before);
        let wanted = expected.get(&slot).copied().unwrap_or_default();
        ensure!(
            since == Some(wanted),
            "through {}, container {slot} received {since:?} packets, expected {wanted}",
            classifier.interface()
        );
    }
    counted.check(world, classifier, &expected, sent)
}

/// The counters of a classifier.
enum Counted {
    Nothing,
    Portmap { by_slot: Vec<u64>, host_port: u64 },
    U32(u64),
}

impl Counted {
    fn read(world: &World, classifier: Classifier) -> Result<Self> {
        Ok(match classifier {
            Classifier::None | Classifier::Empty | Classifier::Deliver => Self::Nothing,
            Classifier::U32(_) => Self::U32(mesos::hits(&classifier.interface())?),
            Classifier::Portmap => Self::Portmap {
                by_slot: layout::slots(layout::MOST_CONTAINERS)
                    .map(|slot| Ok(world.maps.counters(slot)?.rx_outside.packets))
                    .collect::<Result<_>>()?,
                host_port: world.maps.host(HostHook::Uplink)?.host_port,
            },
        })
    }

    /// Fails unless the counters have grown by the packets of each container, and by the rest for the host.
    fn check(
        &self,
        world: &World,
        classifier: Classifier,
        expected: &HashMap<u16, u64>,
        sent: u64,
    ) -> Result<()> {
        let delivered: u64 = expected.values().sum();
        match (self, Self::read(world, classifier)?) {
            (Self::U32(before), Self::U32(now)) => ensure!(
                now - before == delivered,
                "the filters of {} counted {} packets, expected {delivered}",
                classifier.interface(),
                now - before
            ),
            (
                Self::Portmap { by_slot: slots_before, host_port: host_before },
                Self::Portmap { by_slot, host_port },
            ) => {
                for (slot, (now, before)) in
                    layout::slots(layout::MOST_CONTAINERS).zip(by_slot.iter().zip(slots_before))
                {
                    let wanted = expected.get(&slot).copied().unwrap_or_default();
                    ensure!(
                        now - before == wanted,
                        "rx_outside of slot {slot} counted {} packets, expected {wanted}",
                        now - before
                    );
                }
                let left = host_port - host_before;
                ensure!(
                    left == sent - delivered,
                    "host_port of the uplink counted {left} packets, expected {}",
                    sent - delivered
                );
            }
            _ => {}
        }
        Ok(())
    }
}
