//! Runs of a loaded program on a test packet (`BPF_PROG_TEST_RUN`).

use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use portmap_common::marks::{DRY_RUN_HWTSTAMP, DRY_RUN_MARK};
use portmap_ebpf::verdict_codec::EncodedVerdict;

use crate::{
    kernel::error::{Context as _, Result},
    paths::Pins,
};

/// Size of `__sk_buff` in bytes (`linux/bpf.h`).
const CONTEXT: usize = 192;
/// Offsets of its fields.
const MARK: usize = 8;
const PRIORITY: usize = 32;
const IFINDEX: usize = 40;
const CB: [usize; 5] = [48, 52, 56, 60, 64];
const HWTSTAMP: usize = 184;

/// Result of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The program's return code.
    pub code: i32,
    /// `cb`, `priority` and `mark` of the packet: the verdict of a dry run.
    pub words: EncodedVerdict,
}

impl Run {
    /// The packet's mark.
    pub const fn mark(&self) -> u32 {
        let [.., mark] = self.words;
        mark
    }
}

/// Runs a pinned program once on a frame with a mark, at an interface of the calling thread's namespace. The
/// kernel does not send the frame. With [`DRY_RUN_MARK`] the program only reports its verdict; else it counts
/// as for any packet.
pub fn run(pins: &Pins, program: &str, frame: &[u8], ifindex: u32, mark: u32) -> Result<Run> {
    let pin = pins.program(program);
    let running = || format!("cannot run {}", pin.display());
    let program = SchedClassifier::from_pin(&pin).context(running)?;
    let (mut before, mut after) = ([0; CONTEXT], [0; CONTEXT]);
    set_word(&mut before, MARK, mark);
    set_word(&mut before, IFINDEX, ifindex);
    if mark == DRY_RUN_MARK {
        before[HWTSTAMP..].copy_from_slice(&DRY_RUN_HWTSTAMP.to_ne_bytes());
    }
    let options = TestRunOptions {
        data_in: Some(frame),
        ctx_in: Some(&before),
        ctx_out: Some(&mut after),
        ..TestRunOptions::default()
    };
    let code = program.test_run(options).context(running)?.return_value.cast_signed();
    let [first, a, b, c, d] = CB.map(|place| word(&after, place));
    Ok(Run { code, words: [first, a, b, c, d, word(&after, PRIORITY), word(&after, MARK)] })
}

fn word(context: &[u8; CONTEXT], place: usize) -> u32 {
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&context[place..place + 4]);
    u32::from_ne_bytes(bytes)
}

fn set_word(context: &mut [u8; CONTEXT], place: usize, word: u32) {
    context[place..place + 4].copy_from_slice(&word.to_ne_bytes());
}
