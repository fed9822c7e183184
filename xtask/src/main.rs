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

/// Development tasks of portmap.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Finds the tools that the other tasks need and installs what is missing.
    Setup(setup::Arguments),
    /// Builds the release binaries.
    Build,
    /// Builds the BPF objects that are committed for those who have no BPF toolchain.
    Objects,
    /// Shows portmap at work in namespaces of its own (needs root).
    Demo(build::Forwarded),
    /// Measures portmap against its alternatives (needs root).
    Bench(build::Forwarded),
    /// Runs all tests, on this machine's kernel and in virtual machines (needs root).
    Test(test::Arguments),
    /// Looks for frames on which the decision code breaks its specification.
    Fuzz(fuzz::Arguments),
    /// Breaks the decision code in many ways and sees whether tests notice (needs root, takes an hour).
    Mutants(mutants::Arguments),
    /// Runs a shell command under another kernel, in a virtual machine that sees this system read-only.
    Vm(vm::Arguments),
    /// Checks format, lints, documentation, licences and advisories.
    Check(check::Arguments),
    /// Draws the imports between modules (docs/images/modules.svg), counts them and names circles.
    Graph(graph::Arguments),
}

fn main() -> ExitCode {
    let task = Arguments::parse().task;
    // What users build may have the committed objects; what is tested and measured is built from its sources.
    if !matches!(task, Task::Build | Task::Demo(_)) && env::var_os(objects::VARIABLE).is_none() {
        // SAFETY: there is no other thread yet.
        unsafe { env::set_var(objects::VARIABLE, objects::SOURCE) };
    }
    let result = match task {
        Task::Setup(arguments) => setup::run(&arguments).map(|()| ExitCode::SUCCESS),
        Task::Build => build::release().map(|()| ExitCode::SUCCESS),
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
