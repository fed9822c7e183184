//! The wire oracle: whatever a container does, what is seen of it is its own.
//!
//! A verdict is not what leaves the machine: the kernel cuts packets into segments, sums them up, tags them and puts them in
//! queues when the programs are done. So frames come in by every way that a container's root has, with everything that
//! can be said about a frame, and observers outside, at the host's stack and in another container look at what arrives
//! there. They read it as receivers do, and share nothing with the programs.
//!
//! What is sent depends on the seed alone. `PORTMAP_WIRE_FRAMES` or `PORTMAP_WIRE_SECONDS` make it longer,
//! `PORTMAP_WIRE_SEED` another one, and `PORTMAP_WIRE_BATCH` sends one batch only.

mod entry;
mod frames;
mod judge;
#[path = "../../ebpf/src/orders.rs"]
mod orders;
mod reading;
mod sockets;
mod world;

use std::{
    collections::BTreeMap,
    env,
    time::{Duration, Instant},
};

use portmap_tests::{faults::sample, random::Random};

use crate::{
    entry::{Entry, Shot},
    frames::Theme,
    judge::BATCH,
    world::World,
};

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
    fn batch(&self, batch: u64, ephemeral: (u16, u16), has_limit: bool) -> (Theme, Vec<Shot>) {
        let mut random = Random::new(self.seed.wrapping_mul(1_000_003).wrapping_add(batch));
        let theme = if has_limit {
            random.pick(&[Theme::Headers, Theme::Headers, Theme::Tiny, Theme::Any])
        } else {
            random.pick(&[
                Theme::Any,
                Theme::Any,
                Theme::Any,
                Theme::Any,
                Theme::Parts,
                Theme::Moved,
                Theme::Tiny,
            ])
        };
        let entry = match theme {
            // Those that see most of what others do not.
            Theme::Any => random.pick(&[&Entry::ALL[..], &[Entry::Program; 4]].concat()),
            Theme::Parts | Theme::Moved => Entry::Program,
            Theme::Tiny | Theme::Headers => random.pick(&[
                Entry::Virtio { bypass: true },
                Entry::Virtio { bypass: false },
                Entry::Program,
            ]),
        };
        // Many large ones at once would be too much for the kernel's queue of what has come in.
        let frames = if theme == Theme::Tiny { BATCH / 16 } else { BATCH };
        let shots = (0..u16::try_from(frames).expect("few"))
            .map(|index| {
                let number = u32::try_from(batch % (1 << 20)).expect("small") * 64 + u32::from(index);
                Shot::any(&mut random, theme, entry, index, number, ephemeral)
            })
            .collect();
        (theme, shots)
    }
}

/// Batches that are still sent after the first trouble, because others may be due to other faults.
const MORE: u64 = 400;

fn run(world: &mut World, plan: &Plan) {
    let mut last = None;
    let mut passed = BTreeMap::<String, u64>::new();
    for batch in plan.batches() {
        let (theme, shots) = plan.batch(batch, world.ephemeral, world.limit.is_some());
        world.at = format!("PORTMAP_WIRE_SEED={} PORTMAP_WIRE_BATCH={batch}", plan.seed);
        match world.fire(&shots) {
            Ok(packets) => {
                for of in [format!("{theme:?}"), format!("{:?}", shots[0].entry)] {
                    *passed.entry(of).or_default() += packets;
                }
            }
            Err(error) => panic!("{error}: {}", world.at),
        }
        if last.is_none() && !world.troubles.is_empty() {
            last = Some(batch + MORE);
        }
        if last == Some(batch) {
            break;
        }
    }
    println!("{}", world.summary());
    assert!(
        world.troubles.is_empty(),
        "to see a trouble again, put what is in front of it before `cargo test -p portmap-tests --test wire`:{}",
        world.troubles.told()
    );
    // What is all dropped shows nothing of what is behind the drop. Headers that are moved, and crumbs, have to be.
    let is_whole = plan.only.is_none() && world.limit.is_none() && plan.batches >= (FRAMES / BATCH) as u64;
    let may_be_dropped = |of: &str| ["Moved", "Tiny"].contains(&of);
    let dropped: Vec<_> =
        passed.iter().filter(|(of, packets)| **packets == 0 && !may_be_dropped(of)).collect();
    assert!(!is_whole || dropped.is_empty(), "nothing passes: {dropped:?}");
}

#[test]
fn wire_traffic_is_the_containers_own() {
    let plan = Plan::new(FRAMES);
    run(&mut World::new(None), &plan);
}

#[test]
fn wire_traffic_stays_within_the_limit() {
    let plan = Plan::new(FRAMES_WITH_LIMIT);
    run(&mut World::new(Some(LIMIT)), &plan);
}
