//! Finding the tools that the tasks need, and installing those that are missing.

use std::fmt::Display;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

mod apt;
mod bpf;
mod crates;
mod tools;

/// Tools that are needed together.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Group {
    /// A compiler and a linker for BPF.
    Build,
    /// What the demonstration, the benchmarks and the tests run.
    Run,
    /// What boots another kernel.
    Vm,
    /// What the benchmark of limits compares portmap with.
    Peers,
    /// Lints of the BPF programs.
    BpfLints,
    /// What reads the licences of dependencies and the advisories about them.
    Dependencies,
    /// What builds and runs the fuzz targets.
    Fuzz,
    /// What breaks the decision code on purpose.
    Mutants,
}

/// How much of a set-up is told.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Report {
    /// What is there as well as what is installed.
    Everything,
    /// Only what is installed.
    Changes,
}

impl Report {
    /// Tells of something that needs no change.
    fn found(self, what: impl Display) {
        if self == Self::Everything {
            println!("found {what}");
        }
    }
}

/// Tells of something that is about to be installed.
fn installing(what: impl Display) {
    println!("installing {what}");
}

/// What to set up.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Groups of tools; all of them by default.
    groups: Vec<Group>,
}

/// Sets up the groups asked for, and goes on with the others if one fails.
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

/// Sees to it that every tool of the groups is there.
pub(crate) fn ensure(groups: &[Group], report: Report) -> Result<()> {
    for group in groups {
        match group {
            Group::Build => bpf::ensure_compiler(report)?,
            Group::Run => tools::ensure(&tools::RUN, report)?,
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

/// Brings the lists of Debian packages up to date, once in a run of this program.
pub(crate) fn update_package_lists() -> Result<()> {
    if !apt::usable() {
        bail!("the lists of Debian packages are missing or too old: run, as root, `apt-get update`");
    }
    apt::update()
}
