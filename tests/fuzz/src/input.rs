//! An input: choices of fixed size, and frames.

use std::{env, fs};

use arbitrary::Unstructured;

use crate::{build, hook_ctx::HookCtx, values::byte};

/// First byte of a frame that is given byte by byte; its length in four bytes and the bytes follow. Smaller
/// first bytes are choices of [`build::frame`].
const VERBATIM: u8 = 0xf0;

/// Names a file to which the input is written with every frame byte by byte.
const VARIABLE: &str = "PORTMAP_FUZZ_VERBATIM";

/// What is left of an input, and what has been read in a form that no change of the builder affects.
#[derive(Debug)]
pub struct Input<'a> {
    choices: Unstructured<'a>,
    verbatim: Vec<u8>,
}

impl<'a> Input<'a> {
    /// An input from the fuzzer or from a file.
    pub fn new(data: &'a [u8]) -> Self {
        Self { choices: Unstructured::new(data), verbatim: Vec::new() }
    }

    /// Whether everything is read.
    pub fn is_empty(&self) -> bool {
        self.choices.is_empty()
    }

    /// The next bytes; zeros behind the end.
    pub fn fixed<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| byte(&mut self.choices))
    }

    /// The next frame.
    pub fn frame(&mut self, ctx: &HookCtx) -> Vec<u8> {
        let first = byte(&mut self.choices);
        if first < VERBATIM {
            return build::frame(&mut self.choices, first, ctx);
        }
        let length = u32::from_le_bytes(self.fixed());
        let length = usize::try_from(length).map_or(usize::MAX, |length| length.min(self.choices.len()));
        self.choices.bytes(length).unwrap_or_default().to_vec()
    }

    /// Adds bytes to what is [kept](Self::keep).
    pub fn note(&mut self, bytes: &[u8]) {
        self.verbatim.extend(bytes);
    }

    /// Adds a frame to what is kept.
    pub fn note_frame(&mut self, frame: &[u8]) {
        self.verbatim.push(VERBATIM);
        let length = u32::try_from(frame.len()).expect("inputs are short");
        self.verbatim.extend(length.to_le_bytes());
        self.verbatim.extend(frame);
    }

    /// Writes down what has been noted, as a fixture, if the environment says where. To be done before
    /// anything is asserted.
    pub fn keep(&self) {
        if let Some(file) = env::var_os(VARIABLE) {
            fs::write(&file, &self.verbatim)
                .unwrap_or_else(|error| panic!("cannot write {}: {error}", file.display()));
        }
    }
}
