//! Development tasks, run as `cargo xtask TASK`.

use std::{env, process::ExitCode};

use clap::{Parser, Subcommand};

mod bench;
mod build;
mod check;
mod fuzz;
mod graph;
mod leftovers;
mod mutants;
mod objects;
mod process;
mod rust_source;
mod setup;
mod soak;
mod summary;
mod test;
#[path = "../../portmap-ebpf/toolchain.rs"]
mod toolchain;
mod vm;
mod workspace;

/// Development tasks of portmap. To begin: `cargo xtask build`, `cargo xtask demo`, `cargo xtask test
/// --quick`.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install missing tools; the other tasks do this for the tools that they need.
    Setup(setup::Arguments),
    /// Build the release binaries, target/release/portmapd and target/release/portmap.
    Build(build::Options),
    /// Rebuild the committed BPF objects (portmap-ebpf/objects) after a change of the BPF programs.
    Objects,
    /// Show portmap on real traffic, in namespaces that end with the demonstration (needs root).
    Demo(build::Forwarded),
    /// Measure the cost of packets, of rate limits or of containers, and write docs/benchmarks (needs root).
    Bench(build::Forwarded),
    /// Run the tests on this machine's kernel and in virtual machines; `--quick` takes three minutes (needs
    /// root).
    Test(test::Arguments),
    /// Fuzz the decision code: compare its verdicts with the specification, docs/datapath.md.
    Fuzz(fuzz::Arguments),
    /// Mutate the decision code and list the mutations that no test catches (needs root, takes an hour).
    Mutants(mutants::Arguments),
    /// Run a shell command under another kernel, in a virtual machine with a read-only view of this system.
    Vm(vm::Arguments),
    /// Check format, wording, module graph, lints, documentation and dependencies.
    Check(check::Arguments),
    /// Count the imports between modules, list circles, and draw docs/images/modules.svg.
    Graph(graph::Arguments),
}

fn main() -> ExitCode {
    let task = Arguments::parse().task;
    // Builds for users may embed the committed objects; tests and measurements use objects built from source.
    if !matches!(task, Task::Build(_) | Task::Demo(_)) && env::var_os(objects::VARIABLE).is_none() {
        // SAFETY: there is no other thread yet.
        unsafe { env::set_var(objects::VARIABLE, objects::SOURCE) };
    }
    let result = match task {
        Task::Setup(arguments) => setup::run(&arguments).map(|()| ExitCode::SUCCESS),
        Task::Build(options) => build::release(&options).map(|()| ExitCode::SUCCESS),
        Task::Objects => objects::make().map(|()| ExitCode::SUCCESS),
        Task::Demo(arguments) => build::demo(&arguments).map(|never| match never {}),
        Task::Bench(arguments) => bench::run(&arguments).map(|never| match never {}),
        Task::Test(arguments) => test::run(&arguments),
        Task::Fuzz(arguments) => fuzz::run(&arguments),
        Task::Mutants(arguments) => mutants::run(&arguments),
        Task::Vm(arguments) => vm::run(&arguments),
        Task::Check(arguments) => check::run(&arguments),
        Task::Graph(arguments) => graph::run(&arguments),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
