//! Fuzzing of portmap's packet verdicts: a fuzzer's bytes become a world and frames, and every verdict on
//! them is compared with what `docs/datapath.md` says.
//!
//! [`reader`] and [`expected`] are that page as code, in a form of their own: they share types with the code
//! that they watch, but no function that decides. [`check`] compares, and asserts what must hold whatever the
//! packet. An input has fixed bytes, which choose the tables ([`world`]) and the hook ([`hook_ctx`]), and
//! frames: either built from choices ([`build`]), so that most of them are packets that go somewhere, or
//! given byte by byte.
#![forbid(unsafe_code)]

pub mod build;
pub mod check;
pub mod expected;
pub mod follow_ups;
pub mod hook_ctx;
pub mod input;
pub mod reader;
pub mod state;
pub mod targets;
pub mod values;
pub mod world;
