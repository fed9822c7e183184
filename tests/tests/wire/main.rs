//! The wire oracle: whatever a container does, what is seen of it is its own.
//!
//! A verdict is not what leaves the machine: the kernel cuts packets into segments, sums them up, tags them and puts them in
//! queues when the programs are done. So frames come in by every way that a container's root has, with everything that
//! can be said about a frame, and observers outside, at the host's stack and in another container look at what arrives
//! there. They read it as receivers do, and share nothing with the programs.
//!
//! What is sent depends on the seed alone. `PORTMAP_WIRE_FRAMES` or `PORTMAP_WIRE_SECONDS` make it longer,
//! `PORTMAP_WIRE_SEED` another one, and `PORTMAP_WIRE_BATCH` sends one batch only.

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

/// Frames that are sent if nobody says otherwise, and with a limit.
const FRAMES: usize = 20_000;
const FRAMES_WITH_LIMIT: usize = 8_000;
/// A limit that they exceed, in bytes per second.
const LIMIT: u64 = 12_500_000;

fn number(variable: &str) -> Option<u64> {
    env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

/// What is to be sent.
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

    /// The numbers of the batches.
    fn batches(&self) -> impl Iterator<Item = u64> {
        let first = self.only.unwrap_or_default();
        (first..).take_while(move |batch| match (self.only, self.ends) {
            (Some(only), _) => *batch == only,
            (_, Some(ends)) => Instant::now() < ends,
            _ => *batch < self.batches,
        })
    }

    /// What a batch is about, and its frames, which all come by one way.
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
            // Those that see most of what others do not.
            Theme::Any => random.pick(&[&SendPath::ALL[..], &[SendPath::Program; 4]].concat()),
            Theme::Fragments | Theme::MovedHeaders => SendPath::Program,
            Theme::TinySegments | Theme::ManyHeaders => random.pick(&[
                SendPath::Virtio { bypass: true },
                SendPath::Virtio { bypass: false },
                SendPath::Program,
            ]),
        };
        // Many large ones at once would be too much for the kernel's queue of what has come in.
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

/// Batches that are still sent after the first trouble, because others may be due to other faults.
const MORE: u64 = 400;

fn run(testbed: &mut Testbed, plan: &Plan) {
    let mut last = None;
    let mut passed = BTreeMap::<String, u64>::new();
    for batch in plan.batches() {
        let (theme, probes) = plan.batch(batch, testbed.ephemeral, testbed.limit.is_some());
        testbed.at = format!("PORTMAP_WIRE_SEED={} PORTMAP_WIRE_BATCH={batch}", plan.seed);
        match testbed.send_batch(&probes) {
            Ok(packets) => {
                for of in [format!("{theme:?}"), format!("{:?}", probes[0].path)] {
                    *passed.entry(of).or_default() += packets;
                }
            }
            Err(error) => panic!("{error}: {}", testbed.at),
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
        "to see a trouble again, put what is in front of it before `cargo test -p portmap-tests --test wire`:{}",
        testbed.violations.report()
    );
    // What is all dropped shows nothing of what is behind the drop. Headers that are moved, and crumbs, have to be.
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
