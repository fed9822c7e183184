//! Mutation tests: cargo-mutants lists small mutations of the decision code, and a test must catch each of
//! them.
//!
//! A mutated tree first runs the unit tests and the fuzz targets' inputs, which takes seconds. If those pass,
//! it runs the reference model and the tables of verdicts, with the programs in the kernel. A mutation that
//! survives both must be on record, with the reason.
//!
//! `--wire` instead removes checks that keep a packet unchanged between its verdict and the wire, one at a
//! time. The wire oracle must catch each removal.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::Mutex,
    thread,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

mod mutation;
mod record;
mod repair;

use self::{mutation::Mutation, record::Record, repair::Repair};
use crate::{
    build, process,
    setup::{self, Group, Report},
    workspace,
};

/// Trees that are tested at a time, each by a worker.
const WORKERS: usize = 2;

/// Seconds after which tests that still run count as failed. Tests, and the first build, take a small part of
/// it.
const PATIENCE: &str = "900";

/// Which mutations to test.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Parts of descriptions of mutations, which begin with the file's name; all mutations by default.
    only: Vec<String>,
    /// Remove checks that keep a packet unchanged behind its verdict; the test `wire` must catch each
    /// removal.
    #[arg(long)]
    wire: bool,
}

/// The outcome of a mutation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    /// It does not compile.
    Unbuildable,
    /// The unit tests or the inputs of the fuzz targets catch it.
    CaughtByInputs,
    /// The reference model, a table of verdicts, or the verifier catches it.
    CaughtByKernel,
    /// No test catches it.
    Survived,
}

/// Tests the mutations and prints the survivors.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    build::require_root("mutants")?;
    setup::ensure(&[Group::Build, Group::Run, Group::Fuzz, Group::Mutants], Report::Changes)?;
    if arguments.wire {
        return wire(&arguments.only);
    }
    let mut mutations = mutation::all()?;
    let is_complete = arguments.only.is_empty();
    mutations
        .retain(|mutation| is_complete || arguments.only.iter().any(|part| mutation.name.contains(part)));
    let work = workspace::metadata()?.target_directory.join("mutants");
    let mut trees = Vec::new();
    for number in 0..WORKERS {
        trees.push(Tree::copy(work.join(number.to_string()))?);
    }
    let Some(first) = trees.first() else { bail!("no trees") };
    for (stage, passes) in [("inputs", first.inputs()?), ("kernel", first.kernel()?)] {
        if passes != Some(true) {
            bail!("the tests of stage `{stage}` fail without a mutation: run `cargo xtask test`");
        }
    }

    let mut outcomes = try_all(&trees, &mutations)?;
    // One at a time, because these tests use both processors themselves.
    let left: Vec<_> =
        mutations.iter().zip(&mut outcomes).filter(|(_, outcome)| **outcome == Outcome::Survived).collect();
    let count = left.len();
    for (number, (mutation, outcome)) in left.into_iter().enumerate() {
        *outcome = first.broken(mutation, |tree| {
            Ok(if tree.kernel()? == Some(true) { Outcome::Survived } else { Outcome::CaughtByKernel })
        })?;
        println!("kernel {}/{count}: {} {}", number + 1, outcome.shown(), mutation.name);
    }
    conclude(&mutations, &outcomes, is_complete)
}

/// Removes each of the checks behind a verdict, and prints the findings of the wire oracle.
fn wire(only: &[String]) -> Result<ExitCode> {
    let work = workspace::metadata()?.target_directory.join("mutants");
    let tree = Tree::copy(work.join("0"))?;
    if let Some(trouble) = tree.wire()?.first() {
        bail!("the test `wire` fails before any check is removed: {trouble}");
    }
    let mut is_blind = false;
    let is_wanted = |repair: &&Repair| only.is_empty() || only.iter().any(|part| repair.name.contains(part));
    for repair in repair::ALL.iter().filter(is_wanted) {
        let troubles = repair.without(&tree.directory, || tree.wire())?;
        let is_seen = troubles.iter().any(|trouble| trouble.contains(repair.seen));
        is_blind |= !is_seen;
        println!("{} {}", if is_seen { "caught:" } else { "NOT caught:" }, repair.name);
        for trouble in troubles {
            println!("    {trouble}");
        }
    }
    Ok(if is_blind { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Runs the unit tests and the inputs on every mutation.
fn try_all(trees: &[Tree], mutations: &[Mutation]) -> Result<Vec<Outcome>> {
    let queue = Mutex::new(mutations.iter().enumerate());
    let next = || queue.lock().ok().and_then(|mut queue| queue.next());
    let worker = |tree: &Tree| -> Result<Vec<(usize, Outcome)>> {
        let mut outcomes = Vec::new();
        while let Some((number, mutation)) = next() {
            let outcome = tree.broken(mutation, |tree| {
                Ok(match tree.inputs()? {
                    None => Outcome::Unbuildable,
                    Some(false) => Outcome::CaughtByInputs,
                    Some(true) => Outcome::Survived,
                })
            })?;
            println!("inputs {}/{}: {} {}", number + 1, mutations.len(), outcome.shown(), mutation.name);
            outcomes.push((number, outcome));
        }
        Ok(outcomes)
    };
    let found = thread::scope(|scope| {
        let workers: Vec<_> = trees.iter().map(|tree| scope.spawn(move || worker(tree))).collect();
        let mut found = BTreeMap::new();
        for worker in workers {
            let Ok(outcomes) = worker.join() else { bail!("a worker panicked, see above") };
            found.extend(outcomes?);
        }
        Ok(found)
    })?;
    Ok(found.into_values().collect())
}

/// Prints the numbers, and fails if a survivor is not on record.
fn conclude(mutations: &[Mutation], outcomes: &[Outcome], is_complete: bool) -> Result<ExitCode> {
    let record = Record::read()?;
    let count = |wanted: Outcome| outcomes.iter().filter(|outcome| **outcome == wanted).count();
    println!(
        "\n{} mutations of the decision code: {} do not compile, {} are caught by the unit tests and the fuzz targets' \
         inputs, {} by the model, the tables or the verifier, {} survive",
        outcomes.len(),
        count(Outcome::Unbuildable),
        count(Outcome::CaughtByInputs),
        count(Outcome::CaughtByKernel),
        count(Outcome::Survived)
    );
    let survivors: Vec<_> = mutations
        .iter()
        .zip(outcomes)
        .filter(|(_, outcome)| **outcome == Outcome::Survived)
        .map(|(mutation, _)| mutation)
        .collect();
    let new: Vec<_> = survivors.iter().filter(|mutation| !record.has(mutation)).collect();
    for mutation in &new {
        println!("not on record: {}", mutation.row());
    }
    let mut failed = !new.is_empty();
    if is_complete {
        for row in record.without(&survivors) {
            println!("on record, but does not survive: {row}");
            failed = true;
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

impl Outcome {
    const fn shown(self) -> &'static str {
        match self {
            Self::Unbuildable => "does not compile:",
            Self::CaughtByInputs | Self::CaughtByKernel => "caught:",
            Self::Survived => "NOT caught:",
        }
    }
}

/// A copy of the repository for mutations.
struct Tree {
    directory: PathBuf,
}

impl Tree {
    /// Copies every file that is, or could be, committed. An earlier copy keeps its build directory.
    fn copy(directory: PathBuf) -> Result<Self> {
        let mut list = Command::new("git");
        list.current_dir(workspace::root()).args(["ls-files", "--cached", "--others", "--exclude-standard"]);
        for name in process::read(&mut list)?.lines() {
            let (from, to) = (workspace::root().join(name), directory.join(name));
            // The list still contains a deleted file until the deletion is committed.
            let Ok(content) = fs::read(&from) else { continue };
            // A new modification time would make cargo rebuild the dependents.
            if fs::read(&to).is_ok_and(|there| there == content) {
                continue;
            }
            let parent = to.parent().context("a file in a directory")?;
            fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
            fs::write(&to, content).with_context(|| format!("cannot write {}", to.display()))?;
        }
        Ok(Self { directory })
    }

    /// Runs a check while the mutation is applied.
    fn broken(&self, mutation: &Mutation, check: impl FnOnce(&Self) -> Result<Outcome>) -> Result<Outcome> {
        let file = self.directory.join(&mutation.file);
        let whole = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        fs::write(&file, mutation.applied(&whole)?)?;
        let outcome = check(self);
        fs::write(&file, whole)?;
        outcome
    }

    /// Returns whether the fuzz targets pass on all their inputs, and the unit tests pass; `None` if they do
    /// not compile.
    fn inputs(&self) -> Result<Option<bool>> {
        let fuzz = self.directory.join("tests/fuzz/Cargo.toml");
        let test = |more: &[&str]| self.cargo(&["test", "--lib", "--manifest-path"], &fuzz, more);
        if !test(&["--no-run"])? {
            return Ok(None);
        }
        let common = self.directory.join("Cargo.toml");
        let units = ["--package", "portmap-common", "--package", "portmap-ebpf"];
        Ok(Some(test(&[])? && self.cargo(&["test", "--lib", "--manifest-path"], &common, &units)?))
    }

    /// Returns whether the model and the tables agree with the programs, and pings work; `None` if they do
    /// not compile.
    fn kernel(&self) -> Result<Option<bool>> {
        let manifest = self.directory.join("Cargo.toml");
        let tests = ["--package", "portmap-tests", "--test", "reference", "--test", "verdicts"];
        let test =
            |more: &[&str]| self.cargo(&["test", "--manifest-path"], &manifest, &[&tests[..], more].concat());
        if !test(&["--no-run"])? {
            return Ok(None);
        }
        // Every mutation changes the number of instructions, which says nothing about its effect.
        if !test(&["--", "--skip", "instructions_"])? {
            return Ok(Some(false));
        }
        // Those tests compare verdicts; real packets show the programs' changes to a packet.
        let daemon = self.cargo(&["build", "--workspace", "--bins", "--manifest-path"], &manifest, &[])?;
        let run = |test: &[&str]| {
            let test = [&["--package", "portmap-tests", "--test"], test].concat();
            self.cargo(&["test", "--manifest-path"], &manifest, &test)
        };
        Ok(Some(daemon && run(&["shared_memory"])? && run(&["tools", "--", "echo::"])?))
    }

    /// Returns the findings of the wire oracle, a line for each kind; none if its tests pass.
    fn wire(&self) -> Result<Vec<String>> {
        /// Characters of a line that are printed.
        const SHOWN: usize = 160;
        let manifest = self.directory.join("Cargo.toml");
        let daemon = self.cargo(&["build", "--workspace", "--bins", "--manifest-path"], &manifest, &[])?;
        let tests = ["--package", "portmap-tests", "--test", "wire"];
        let is_built = daemon && self.cargo(&["test", "--no-run", "--manifest-path"], &manifest, &tests)?;
        if !is_built {
            bail!("{} does not compile", self.directory.display());
        }
        let mut command = self.command(&["test", "--manifest-path"], &manifest, &tests);
        let output =
            command.output().with_context(|| format!("cannot run `{}`", process::shown(&command)))?;
        if output.status.success() {
            return Ok(Vec::new());
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let mut seen: Vec<String> = text
            .lines()
            .filter(|line| line.starts_with("PORTMAP_WIRE_SEED="))
            .map(|line| line.chars().take(SHOWN).collect())
            .collect();
        if seen.is_empty() {
            seen.push(format!("the tests end with {}", output.status));
        }
        Ok(seen)
    }

    /// Returns whether a cargo command succeeds in time.
    fn cargo(&self, first: &[&str], manifest: &Path, rest: &[&str]) -> Result<bool> {
        let mut command = self.command(first, manifest, rest);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let status =
            command.status().with_context(|| format!("cannot run `{}`", process::shown(&command)))?;
        Ok(status.success())
    }

    /// Returns a cargo command in this tree, with a time limit.
    fn command(&self, first: &[&str], manifest: &Path, rest: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.args([PATIENCE, "cargo"]).args(first).arg(manifest).args(rest);
        command.current_dir(&self.directory).env("CARGO_TARGET_DIR", self.directory.join("target"));
        command.env_remove("CARGO_MANIFEST_DIR");
        command
    }
}
