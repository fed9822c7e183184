//! The CNI plugin: it translates what container runtimes send into requests to the daemon.
//!
//! Runtimes differ in how they spell keys, when they call which command, and what they leave out. The modules follow
//! the way of an invocation: [`Invocation`] is its environment, `config` its standard input, `wanted` what both ask
//! for; `commands` talks to the `daemon`, and `result` writes its answer in the version of CNI that the runtime speaks.
//! `grant` alone decides which forms of port mappings the daemon can serve.

mod commands;
mod config;
mod conmon;
mod daemon;
mod error;
mod grant;
mod invocation;
mod keys;
mod result;
mod version;
mod wanted;

pub use self::{
    commands::{Answer, run},
    invocation::Invocation,
};

#[cfg(test)]
mod tests;
