//! Fuzzing of the packet verdicts: the fuzzer's bytes become a world and frames, and every verdict is
//! compared with the specification, `docs/datapath.md`.
//!
//! [`reader`] and [`spec`] implement the specification independently: they share types with the decision
//! code, but no function that decides. [`check`] compares the verdicts, and asserts invariants. An input has
//! fixed bytes, which select the tables ([`world`]) and the hook ([`hook_ctx`]), and frames: built from
//! choices ([`build`]), so that most of them are delivered, or verbatim.
#![forbid(unsafe_code)]

pub mod build;
pub mod check;
pub mod expected;
pub mod fib;
pub mod follow_ups;
pub mod hook_ctx;
pub mod input;
pub mod past;
pub mod reader;
pub mod spec;
pub mod state;
pub mod targets;
pub mod tcp;
pub mod values;
pub mod world;
