//! An input: choices of fixed size, and frames.

use std::{env, fs};

use arbitrary::Unstructured;

use crate::{build, hook_ctx::HookCtx, values::byte};

/// First byte of a verbatim frame; its length in four bytes and its bytes follow. Smaller first bytes are
/// choices of [`build::frame`].
const VERBATIM: u8 = 0xf0;

/// Environment variable with the file to which the input is written with verbatim frames.
const VARIABLE: &str = "PORTMAP_FUZZ_VERBATIM";

/// The unread part of an input, and the read part with verbatim frames, which no change of the builder
/// affects.
#[derive(Debug)]
pub struct Input<'a> {
    choices: Unstructured<'a>,
    verbatim: Vec<u8>,
}

impl<'a> Input<'a> {
    /// Returns an input from the fuzzer or from a file.
    pub fn new(data: &'a [u8]) -> Self {
        Self { choices: Unstructured::new(data), verbatim: Vec::new() }
    }

    /// Returns whether the whole input is read.
    pub fn is_empty(&self) -> bool {
        self.choices.is_empty()
    }

    /// Reads the next bytes; zeros behind the end.
    pub fn fixed<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| byte(&mut self.choices))
    }

    /// Reads the next frame.
    pub fn frame(&mut self, ctx: &HookCtx) -> Vec<u8> {
        let first = byte(&mut self.choices);
        if first < VERBATIM {
            return build::frame(&mut self.choices, first, ctx);
        }
        let length = u32::from_le_bytes(self.fixed());
        let length = usize::try_from(length).map_or(usize::MAX, |length| length.min(self.choices.len()));
        self.choices.bytes(length).unwrap_or_default().to_vec()
    }

    /// Appends bytes to the [fixture](Self::write_fixture).
    pub fn append(&mut self, bytes: &[u8]) {
        self.verbatim.extend(bytes);
    }

    /// Appends a frame to the fixture.
    pub fn append_frame(&mut self, frame: &[u8]) {
        self.verbatim.push(VERBATIM);
        let length = u32::try_from(frame.len()).expect("inputs are short");
        self.verbatim.extend(length.to_le_bytes());
        self.verbatim.extend(frame);
    }

    /// Writes the fixture, if the environment names a file. A caller must do that before the assertions.
    pub fn write_fixture(&self) {
        if let Some(file) = env::var_os(VARIABLE) {
            fs::write(&file, &self.verbatim)
                .unwrap_or_else(|error| panic!("cannot write {}: {error}", file.display()));
        }
    }
}
