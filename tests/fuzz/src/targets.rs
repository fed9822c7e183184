//! The fuzz targets: one function per target, from the bytes of an input to assertions.

use portmap_common::{
    flow_state::{Echo, FragCacheEntry},
    hook_point::HookPoint,
    slot::HOST_SLOT,
};
use portmap_ebpf::{Tables as _, Verdict};

use crate::{
    check, follow_ups,
    hook_ctx::{HOOK_CTX_BYTES, HookCtx},
    input::Input,
    reader::{self, Content, Inner, Part},
    spec::datagram,
    state::State,
    values::{A, B, C, GONE, IDS, PORTS, one_of},
    world::{WORLD_BYTES, World},
};

/// Most frames in one sequence.
const MAX_STEPS: usize = 32;
/// An event with a smaller first byte is a frame.
const FRAMES: u8 = 0xd0;
/// Times between frames, around the lifetime and the conflict window of the fragment cache.
const PAUSES: [u64; 6] = [0, 1, 1_000_000_000, 1_000_000_001, 30_000_000_000, 30_000_000_001];

/// Decides on one frame, in a world with state of its datagram or its identifier.
pub fn verdict(data: &[u8]) {
    let mut input = Input::new(data);
    let choices = input.fixed::<WORLD_BYTES>();
    let selection = input.fixed::<HOOK_CTX_BYTES>();
    let memories = input.fixed::<7>();
    let (world, ctx) = (World::new(choices), HookCtx::new(selection));
    let frame = input.frame(&ctx);
    input.append(&[&choices[..], &selection, &memories].concat());
    input.append_frame(&frame);
    input.write_fixture();
    fill_state(&world, &ctx, &frame, memories);
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
    match kind {
        0x80..=0xbf => Some((last.selection, follow_ups::subsequent_fragment(&last.frame, position)?)),
        0xc0..=0xdf => Some((UPLINK, follow_ups::reply(&last.frame, &last.verdict)?)),
        0xe0..=0xef => Some((UPLINK, follow_ups::error(&last.frame, &last.verdict)?)),
        0xf0..=0xff => Some((last.selection, last.frame.clone())),
        _ => None,
    }
}

/// Applies an event other than a frame.
fn apply_event(world: &mut World, model: &mut State, [kind, a, b, c]: [u8; 4]) {
    let slot = one_of(&[A, B, C, GONE], a);
    match kind % 6 {
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
        _ => {
            world.memory.borrow_mut().echoes.clear();
            model.echoes.clear();
        }
    }
}

/// Fills the state with entries that are relevant to this frame.
fn fill_state(world: &World, ctx: &HookCtx, frame: &[u8], memories: [u8; 7]) {
    let [fragment, source, destination, echo, own_id, other_id, races] = memories;
    world.races.set(if races >= 0xe0 { races & 0x0f } else { 0 });
    let Some(packet) = reader::packet(frame) else { return };
    let behind = packet.behind();
    let mut memory = world.memory.borrow_mut();
    let mut ids = vec![one_of(&IDS, other_id)];
    let mut peers = vec![packet.source, packet.destination];
    let scope = match ctx.hook {
        HookPoint::VethIngress(slot) => slot,
        HookPoint::ContainerLoEgress => A | 0x8000,
        _ => HOST_SLOT,
    };
    if let Some(behind) = behind
        && let Part::First(id) | Part::Subsequent(id) = behind.part
        && fragment != 0
    {
        let kind = one_of(
            &[FragCacheEntry::PORTS, FragCacheEntry::ECHO_REQUEST, FragCacheEntry::ECHO_REPLY],
            fragment,
        );
        let ages = [0, 1_000_000_000, 30_000_000_000, 30_000_000_001, 1_000_000_001];
        let seen = world.now - one_of(&ages, fragment >> 2);
        let source =
            if kind == FragCacheEntry::PORTS { one_of(&PORTS, source) } else { one_of(&IDS, source) };
        let destination = if kind == FragCacheEntry::PORTS { one_of(&PORTS, destination) } else { 0 };
        let scope = if fragment >= 0xe0 { scope ^ 1 } else { scope };
        let entry = FragCacheEntry { seen, kind, source, destination };
        memory.fragments.insert(datagram(&packet, behind, id, scope), entry);
        ids.push(source);
    }
    match behind.and_then(|behind| packet.content(behind)) {
        Some(Content::Echo { id, .. }) => ids.push(id),
        Some(Content::Error { quote: Inner::Request(id, _), destination, .. }) => {
            ids.push(id);
            peers.push(destination);
        }
        _ => {}
    }
    // Now, and around the lifetime of an owner.
    let seen = world.now - one_of(&[0, 60_000_000_000, 60_000_000_001], echo >> 4);
    let live = |slot| {
        let generation = world.endpoint(slot).generation;
        Echo { generation, slot, id: one_of(&IDS, own_id), seen }
    };
    let entry = match echo & 0x0f {
        0 => return,
        1..=5 => live(A),
        6 | 7 => live(B),
        8 => live(C),
        9 | 10 => Echo { generation: 4, ..live(A) },
        11 => live(GONE),
        12 => Echo { generation: 6, ..live(B) },
        13 => Echo { generation: 1, ..live(HOST_SLOT) },
        _ => live(HOST_SLOT),
    };
    if echo >= 0xe0 {
        memory.default_owner = Some(entry);
    }
    for peer in peers {
        memory.echoes.extend(ids.iter().map(|id| (((packet.is_v6, peer), *id), entry)));
    }
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
