//! Tools of the other tasks: finding them, and installing missing ones.

use std::fmt::Display;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

mod apt;
mod bpf;
mod crates;
mod python;
mod tools;
pub(crate) mod unpacked;

/// Tools that are needed together.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Group {
    /// A compiler and a linker for BPF.
    Build,
    /// Programs that the demonstration, the benchmarks and the tests run.
    Run,
    /// Programs that boot another kernel in a virtual machine.
    Vm,
    /// Programs that the benchmark of rate limits compares portmap with.
    Peers,
    /// Lints for the BPF programs.
    BpfLints,
    /// Checks of dependencies: licences, advisories, unused ones.
    Dependencies,
    /// Programs that build and run the fuzz targets.
    Fuzz,
    /// Mutation tests.
    Mutants,
}

/// Verbosity of the set-up.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Report {
    /// Print tools that are found and tools that are installed.
    Everything,
    /// Print tools that are installed.
    Changes,
}

impl Report {
    /// Prints a tool that is found.
    fn found(self, what: impl Display) {
        if self == Self::Everything {
            println!("found {what}");
        }
    }
}

/// Prints a tool that is about to be installed.
fn installing(what: impl Display) {
    println!("installing {what}");
}

/// Tools to set up.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Groups of tools; all of them by default.
    groups: Vec<Group>,
}

/// Sets up the groups, continuing after a failure.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let groups =
        if arguments.groups.is_empty() { Group::value_variants() } else { arguments.groups.as_slice() };
    let mut failed = 0;
    for &group in groups {
        if let Err(error) = ensure(&[group], Report::Everything) {
            eprintln!("error: {error:#}");
            failed += 1;
        }
    }
    if failed > 0 {
        bail!("{failed} of {} groups of tools are not complete", groups.len());
    }
    Ok(())
}

/// Ensures that every tool of the groups is installed.
pub(crate) fn ensure(groups: &[Group], report: Report) -> Result<()> {
    for group in groups {
        match group {
            Group::Build => bpf::ensure_compiler(report)?,
            Group::Run => {
                tools::ensure(&tools::RUN, report)?;
                unpacked::ensure_prometheus(report)?;
                unpacked::ensure_engines(report)?;
                // Only one test needs it, and reports that it is missing.
                if let Err(error) = python::ensure(report) {
                    eprintln!("schemathesis is not installed: {error:#}");
                }
            }
            Group::Vm => tools::ensure(&tools::VM, report)?,
            Group::Peers => tools::ensure(&tools::PEERS, report)?,
            Group::BpfLints => bpf::ensure_lints(report)?,
            Group::Dependencies => {
                crates::ensure(&crates::DENY, report)?;
                crates::ensure(&crates::SHEAR, report)?;
            }
            Group::Fuzz => {
                tools::ensure(&tools::FUZZ, report)?;
                crates::ensure(&crates::FUZZ, report)?;
            }
            Group::Mutants => crates::ensure(&crates::MUTANTS, report)?,
        }
    }
    Ok(())
}

/// Updates the lists of Debian packages, once in a run of this program.
pub(crate) fn update_package_lists() -> Result<()> {
    if !apt::usable() {
        bail!("the lists of Debian packages are missing or too old: run, as root, `apt-get update`");
    }
    apt::update()
}
