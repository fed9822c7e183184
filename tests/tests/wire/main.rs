//! The wire oracle: all traffic of a container on the wire must be its own.
//!
//! A verdict does not show what leaves the machine: after the programs the kernel segments, computes
//! checksums, adds tags and queues. The test therefore injects frames through every send path available to
//! root in a container, with all metadata that a frame can have. Observers outside, at the host's stack and
//! in another container check what arrives. They parse it as receivers do, and share no code with the
//! programs.
//!
//! The frames depend on the seed alone. `PORTMAP_WIRE_FRAMES` or `PORTMAP_WIRE_SECONDS` set the length of a
//! run, `PORTMAP_WIRE_SEED` the seed, and `PORTMAP_WIRE_BATCH` sends a single batch.

mod counts;
mod frames;
mod headers;
mod oracle;
#[path = "../../ebpf/src/orders.rs"]
mod orders;
mod parser;
mod probe;
mod send_path;
mod sockets;
mod testbed;
mod violations;

use std::{
    collections::BTreeMap,
    env,
    time::{Duration, Instant},
};

use portmap_tests::{faults::sample, random::Random};

use crate::{frames::Theme, oracle::BATCH, probe::Probe, send_path::SendPath, testbed::Testbed};

/// Default number of frames, without and with a limit.
const FRAMES: usize = 20_000;
const FRAMES_WITH_LIMIT: usize = 8_000;
/// A limit that they exceed, in bytes per second.
const LIMIT: u64 = 12_500_000;

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

/// The batches to send.
struct Plan {
    seed: u64,
    only: Option<u64>,
    batches: u64,
    ends: Option<Instant>,
}

impl Plan {
    fn new(frames: usize) -> Self {
        let seed = number("PORTMAP_WIRE_SEED").unwrap_or(1);
        let frames = number("PORTMAP_WIRE_FRAMES").unwrap_or_else(|| (frames / sample()) as u64);
        let ends =
            number("PORTMAP_WIRE_SECONDS").map(|seconds| Instant::now() + Duration::from_secs(seconds));
        Self { seed, only: number("PORTMAP_WIRE_BATCH"), batches: frames.div_ceil(BATCH as u64), ends }
    }

    /// Returns the numbers of the batches.
    fn batches(&self) -> impl Iterator<Item = u64> {
        let first = self.only.unwrap_or_default();
        (first..).take_while(move |batch| match (self.only, self.ends) {
            (Some(only), _) => *batch == only,
            (_, Some(ends)) => Instant::now() < ends,
            _ => *batch < self.batches,
        })
    }

    /// Returns the theme of a batch and its probes, which all take one send path.
    fn batch(&self, batch: u64, ephemeral: (u16, u16), has_limit: bool) -> (Theme, Vec<Probe>) {
        let mut random = Random::new(self.seed.wrapping_mul(1_000_003).wrapping_add(batch));
        let theme = if has_limit {
            random.pick(&[Theme::ManyHeaders, Theme::ManyHeaders, Theme::TinySegments, Theme::Any])
        } else {
            random.pick(&[
                Theme::Any,
                Theme::Any,
                Theme::Any,
                Theme::Any,
                Theme::Fragments,
                Theme::MovedHeaders,
                Theme::TinySegments,
            ])
        };
        let path = match theme {
            // `Program` more often, because it detects most of what the other paths do not.
            Theme::Any => random.pick(&[&SendPath::ALL[..], &[SendPath::Program; 4]].concat()),
            Theme::Fragments | Theme::MovedHeaders => SendPath::Program,
            Theme::TinySegments | Theme::ManyHeaders => random.pick(&[
                SendPath::Virtio { bypass: true },
                SendPath::Virtio { bypass: false },
                SendPath::Program,
            ]),
        };
        // Fewer, because many large frames at once overflow the kernel's receive backlog.
        let frames = if theme == Theme::TinySegments { BATCH / 16 } else { BATCH };
        let probes = (0..u16::try_from(frames).expect("few"))
            .map(|index| {
                let number = u32::try_from(batch % (1 << 20)).expect("small") * 64 + u32::from(index);
                Probe::any(&mut random, theme, path, index, number, ephemeral)
            })
            .collect();
        (theme, probes)
    }
}

/// Batches that are still sent after the first violation, because others may have other causes.
const MORE: u64 = 400;

fn run(testbed: &mut Testbed, plan: &Plan) {
    let mut last = None;
    let mut passed = BTreeMap::<String, u64>::new();
    for batch in plan.batches() {
        let (theme, probes) = plan.batch(batch, testbed.ephemeral, testbed.limit.is_some());
        testbed.replay = format!("PORTMAP_WIRE_SEED={} PORTMAP_WIRE_BATCH={batch}", plan.seed);
        match testbed.send_batch(&probes) {
            Ok(packets) => {
                for of in [format!("{theme:?}"), format!("{:?}", probes[0].path)] {
                    *passed.entry(of).or_default() += packets;
                }
            }
            Err(error) => panic!("{error}: {}", testbed.replay),
        }
        if last.is_none() && !testbed.violations.is_empty() {
            last = Some(batch + MORE);
        }
        if last == Some(batch) {
            break;
        }
    }
    println!("{}", testbed.summary());
    assert!(
        testbed.violations.is_empty(),
        "to replay a violation, put its variables before `cargo test -p portmap-tests --test wire`:{}",
        testbed.violations.report()
    );
    // A batch that is dropped entirely tests nothing behind the drop. Only moved headers and tiny
    // segments must be dropped.
    let is_whole = plan.only.is_none() && testbed.limit.is_none() && plan.batches >= (FRAMES / BATCH) as u64;
    let may_be_dropped = |of: &str| ["MovedHeaders", "TinySegments"].contains(&of);
    let dropped: Vec<_> =
        passed.iter().filter(|(of, packets)| **packets == 0 && !may_be_dropped(of)).collect();
    assert!(!is_whole || dropped.is_empty(), "nothing passes: {dropped:?}");
}

#[test]
fn wire_traffic_is_the_containers_own() {
    let plan = Plan::new(FRAMES);
    run(&mut Testbed::new(None), &plan);
}

#[test]
fn wire_traffic_stays_within_the_limit() {
    let plan = Plan::new(FRAMES_WITH_LIMIT);
    run(&mut Testbed::new(Some(LIMIT)), &plan);
}
