//! The fuzz targets: one function per target, from the bytes of an input to assertions.

use portmap_common::slot::HOST_SLOT;
use portmap_ebpf::Verdict;

use crate::{
    check, follow_ups,
    hook_ctx::{HOOK_CTX_BYTES, HookCtx},
    input::Input,
    past::{self, PAST_BYTES},
    state::State,
    values::{A, B, C, GONE, PORTS, one_of},
    world::{WORLD_BYTES, World},
};

/// Most frames in one sequence.
const MAX_STEPS: usize = 32;
/// An event with a smaller first byte is a frame.
const FRAMES: u8 = 0xd0;
/// Times between frames, around the lifetime and the conflict window of the fragment cache, the lifetimes of the
/// host's connections, and the interval between questions to the FIB.
const PAUSES: [u64; 14] = [
    0,
    1,
    1_000_000_000,
    1_000_000_001,
    30_000_000_000,
    30_000_000_001,
    0,
    10_000_000,
    10_000_001,
    180_000_000_000,
    180_000_000_001,
    432_000_000_000_000,
    432_000_000_000_001,
    60_000_000_001,
];

/// Decides on one frame, in a world with state that concerns it.
pub fn verdict(data: &[u8]) {
    let mut input = Input::new(data);
    let choices = input.fixed::<WORLD_BYTES>();
    let selection = input.fixed::<HOOK_CTX_BYTES>();
    let past = input.fixed::<PAST_BYTES>();
    let (world, ctx) = (World::new(choices), HookCtx::new(selection));
    let frame = input.frame(&ctx);
    input.append(&[&choices[..], &selection, &past].concat());
    input.append_frame(&frame);
    input.write_fixture();
    past::fill(&world, &ctx, &frame, past);
    let mut model = world.memory.borrow().clone();
    check::step(&ctx, &frame, &world, &mut model);
}

/// Decides on a sequence of frames, while time passes and containers are added and deleted.
pub fn sequence(data: &[u8]) {
    let mut input = Input::new(data);
    let choices = input.fixed::<WORLD_BYTES>();
    input.append(&choices);
    let mut world = World::new(choices);
    let mut model = State::default();
    let mut last: Option<Step> = None;
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        let event = input.fixed::<4>();
        if event[0] >= FRAMES {
            input.append(&event);
            apply_event(&mut world, &mut model, event);
            continue;
        }
        let (selection, frame) = last.as_ref().and_then(|last| related(last, event)).unwrap_or_else(|| {
            let selection = input.fixed::<HOOK_CTX_BYTES>();
            (selection, input.frame(&HookCtx::new(selection)))
        });
        // In a fixture each frame is verbatim.
        let [kind, pause, _, _] = event;
        input.append(&[&[kind, pause, 0, 0][..], &selection].concat());
        input.append_frame(&frame);
        input.write_fixture();
        world.now += one_of(&PAUSES, pause);
        let verdict = check::step(&HookCtx::new(selection), &frame, &world, &mut model);
        last = Some(Step { selection, frame, verdict });
    }
}

/// The previous frame.
struct Step {
    selection: [u8; HOOK_CTX_BYTES],
    frame: Vec<u8>,
    verdict: Verdict,
}

/// Returns a frame that follows the last one, with its context, if the event selects one and it exists.
fn related(last: &Step, [_, _, kind, position]: [u8; 4]) -> Option<([u8; HOOK_CTX_BYTES], Vec<u8>)> {
    const UPLINK: [u8; HOOK_CTX_BYTES] = [0; HOOK_CTX_BYTES];
    // The host veth of A.
    const VETH: [u8; HOOK_CTX_BYTES] = [4, 0, 0];
    match kind {
        0x70..=0x7f => Some((VETH, last.frame.clone())),
        0x80..=0xbf => Some((last.selection, follow_ups::subsequent_fragment(&last.frame, position)?)),
        0xc0..=0xdf => Some((UPLINK, follow_ups::reply(&last.frame, &last.verdict, position)?)),
        0xe0..=0xef => Some((UPLINK, follow_ups::error(&last.frame, &last.verdict)?)),
        0xf0..=0xff => Some((last.selection, last.frame.clone())),
        _ => None,
    }
}

/// Applies an event other than a frame.
fn apply_event(world: &mut World, model: &mut State, [kind, a, b, c]: [u8; 4]) {
    let slot = one_of(&[A, B, C, GONE], a);
    match kind % 9 {
        0 => world.delete(slot),
        1 => {
            // A number that no earlier container in this slot had.
            world.delete(slot);
            world.create(slot, 100 + u32::from(b) * 256 + u32::from(c));
        }
        2 => world.give(one_of(&PORTS[..6], b), one_of(&[A, B, C, HOST_SLOT], c)),
        3 => world.races.set(b % 10),
        4 => {
            // The map is full, and evicts its entries.
            world.memory.borrow_mut().fragments.clear();
            model.fragments.clear();
        }
        5 => {
            world.memory.borrow_mut().echoes.clear();
            model.echoes.clear();
        }
        6 => {
            world.memory.borrow_mut().host_connections.clear();
            model.host_connections.clear();
        }
        7 => {
            world.memory.borrow_mut().neighbours.clear();
            model.neighbours.clear();
        }
        _ => world.reroute(b, c),
    }
    // The daemon removes the flag of a port that becomes the host's.
    world.memory.borrow_mut().flagged.retain(|port| world.owner(*port).slot != HOST_SLOT);
    model.flagged.retain(|port| world.owner(*port).slot != HOST_SLOT);
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    /// Runs a target on its corpus and its fixtures.
    fn replay(name: &str, target: fn(&[u8])) {
        for kind in ["corpus", "fixtures"] {
            let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(kind).join(name);
            let inputs = fs::read_dir(directory).expect("it is in the repository");
            for input in inputs {
                let file = input.expect("a file").path();
                println!("{}", file.display());
                target(&fs::read(file).expect("it can be read"));
            }
        }
    }

    #[test]
    fn verdict_target_passes_corpus_and_fixtures() {
        replay("verdict", super::verdict);
    }

    #[test]
    fn sequence_target_passes_corpus_and_fixtures() {
        replay("sequence", super::sequence);
    }
}
