//! Breaks the decision code in every small way that cargo-mutants knows, and sees whether a test notices.
//!
//! A broken tree is first put to the unit tests and the fuzz targets' inputs, which takes seconds. What they do not notice is put to the
//! reference model and the tables of verdicts, with the programs in the kernel. What those do not notice either must be
//! on record, with the reason.
//!
//! With `--wire` what is broken are the checks that keep what leaves the machine what it was when it was checked. The
//! wire oracle has to notice each.

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

/// Trees that are broken at once, each by a worker.
const WORKERS: usize = 2;

/// Seconds after which tests that have not ended count as tests that have noticed. They take a small part of it, and so
/// does compiling everything for the first time.
const PATIENCE: &str = "900";

/// What to break.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Only what has one of these in its description, which begins with the file's name.
    only: Vec<String>,
    /// Take out what keeps packets as they were checked, and see whether the test `wire` notices.
    #[arg(long)]
    wire: bool,
}

/// What a broken tree came to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    /// It does not compile.
    Unbuildable,
    /// The inputs of the fuzz targets notice.
    CaughtByInputs,
    /// The reference model, a table of verdicts, or the verifier notices.
    CaughtByKernel,
    /// Nothing notices.
    Survived,
}

/// Breaks the code and prints what survives.
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
            bail!(
                "the tests of stage `{stage}` do not pass before anything is broken: run `cargo xtask test`"
            );
        }
    }

    let mut fates = try_all(&trees, &mutations)?;
    // One at a time: these tests use both processors themselves.
    let left: Vec<_> =
        mutations.iter().zip(&mut fates).filter(|(_, fate)| **fate == Fate::Survived).collect();
    let count = left.len();
    for (number, (mutation, fate)) in left.into_iter().enumerate() {
        *fate = first.broken(mutation, |tree| {
            Ok(if tree.kernel()? == Some(true) { Fate::Survived } else { Fate::CaughtByKernel })
        })?;
        println!("kernel {}/{count}: {} {}", number + 1, fate.shown(), mutation.name);
    }
    conclude(&mutations, &fates, is_complete)
}

/// Takes out each of the checks behind a verdict, and prints what the wire oracle sees then.
fn wire(only: &[String]) -> Result<ExitCode> {
    let work = workspace::metadata()?.target_directory.join("mutants");
    let tree = Tree::copy(work.join("0"))?;
    if let Some(trouble) = tree.wire()?.first() {
        bail!("the test `wire` does not pass before anything is taken out: {trouble}");
    }
    let mut is_blind = false;
    let is_wanted = |repair: &&Repair| only.is_empty() || only.iter().any(|part| repair.name.contains(part));
    for repair in repair::ALL.iter().filter(is_wanted) {
        let troubles = repair.without(&tree.directory, || tree.wire())?;
        let is_seen = troubles.iter().any(|trouble| trouble.contains(repair.seen));
        is_blind |= !is_seen;
        println!("{} {}", if is_seen { "noticed:" } else { "NOT noticed:" }, repair.name);
        for trouble in troubles {
            println!("    {trouble}");
        }
    }
    Ok(if is_blind { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Puts every broken tree to the inputs.
fn try_all(trees: &[Tree], mutations: &[Mutation]) -> Result<Vec<Fate>> {
    let queue = Mutex::new(mutations.iter().enumerate());
    let next = || queue.lock().ok().and_then(|mut queue| queue.next());
    let worker = |tree: &Tree| -> Result<Vec<(usize, Fate)>> {
        let mut fates = Vec::new();
        while let Some((number, mutation)) = next() {
            let fate = tree.broken(mutation, |tree| {
                Ok(match tree.inputs()? {
                    None => Fate::Unbuildable,
                    Some(false) => Fate::CaughtByInputs,
                    Some(true) => Fate::Survived,
                })
            })?;
            println!("inputs {}/{}: {} {}", number + 1, mutations.len(), fate.shown(), mutation.name);
            fates.push((number, fate));
        }
        Ok(fates)
    };
    let found = thread::scope(|scope| {
        let workers: Vec<_> = trees.iter().map(|tree| scope.spawn(move || worker(tree))).collect();
        let mut found = BTreeMap::new();
        for worker in workers {
            let Ok(fates) = worker.join() else { bail!("a worker has panicked, see above") };
            found.extend(fates?);
        }
        Ok(found)
    })?;
    Ok(found.into_values().collect())
}

/// Prints the numbers, and fails if something survives that is not on record.
fn conclude(mutations: &[Mutation], fates: &[Fate], is_complete: bool) -> Result<ExitCode> {
    let record = Record::read()?;
    let count = |wanted: Fate| fates.iter().filter(|fate| **fate == wanted).count();
    println!(
        "\n{} ways to break the decision code: {} do not compile, {} are noticed by the unit tests and the fuzz targets' inputs, \
         {} more by the model, the tables or the verifier, {} by nothing",
        fates.len(),
        count(Fate::Unbuildable),
        count(Fate::CaughtByInputs),
        count(Fate::CaughtByKernel),
        count(Fate::Survived)
    );
    let survivors: Vec<_> = mutations
        .iter()
        .zip(fates)
        .filter(|(_, fate)| **fate == Fate::Survived)
        .map(|(mutation, _)| mutation)
        .collect();
    let new: Vec<_> = survivors.iter().filter(|mutation| !record.has(mutation)).collect();
    for mutation in &new {
        println!("not on record: {}", mutation.row());
    }
    let mut failed = !new.is_empty();
    if is_complete {
        for row in record.without(&survivors) {
            println!("on record, but it does not survive: {row}");
            failed = true;
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

impl Fate {
    const fn shown(self) -> &'static str {
        match self {
            Self::Unbuildable => "does not compile:",
            Self::CaughtByInputs | Self::CaughtByKernel => "noticed:",
            Self::Survived => "NOT noticed:",
        }
    }
}

/// A copy of the repository, to be broken.
struct Tree {
    directory: PathBuf,
}

impl Tree {
    /// Copies every file that is, or could be, committed. What was built in the copy before is kept.
    fn copy(directory: PathBuf) -> Result<Self> {
        let mut list = Command::new("git");
        list.current_dir(workspace::root()).args(["ls-files", "--cached", "--others", "--exclude-standard"]);
        for name in process::read(&mut list)?.lines() {
            let (from, to) = (workspace::root().join(name), directory.join(name));
            // A file that was deleted and not yet committed is still in the list.
            let Ok(content) = fs::read(&from) else { continue };
            // A new time would have cargo build again what depends on it.
            if fs::read(&to).is_ok_and(|there| there == content) {
                continue;
            }
            let parent = to.parent().context("a file in a directory")?;
            fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
            fs::write(&to, content).with_context(|| format!("cannot write {}", to.display()))?;
        }
        Ok(Self { directory })
    }

    /// Does something while the tree is broken.
    fn broken(&self, mutation: &Mutation, check: impl FnOnce(&Self) -> Result<Fate>) -> Result<Fate> {
        let file = self.directory.join(&mutation.file);
        let whole = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        fs::write(&file, mutation.applied(&whole)?)?;
        let fate = check(self);
        fs::write(&file, whole)?;
        fate
    }

    /// Whether the fuzz targets pass on all their inputs, and the unit tests; none if they do not compile.
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

    /// Whether the model and the tables agree with the programs, and pings work; none if they do not compile.
    fn kernel(&self) -> Result<Option<bool>> {
        let manifest = self.directory.join("Cargo.toml");
        let tests = ["--package", "portmap-tests", "--test", "reference", "--test", "verdicts"];
        let test =
            |more: &[&str]| self.cargo(&["test", "--manifest-path"], &manifest, &[&tests[..], more].concat());
        if !test(&["--no-run"])? {
            return Ok(None);
        }
        // The programs' lengths are on record, too, and tell nothing here.
        if !test(&["--", "--skip", "as_long_as_on_record"])? {
            return Ok(Some(false));
        }
        // The programs were asked for their verdicts; what they do to a packet shows in real ones.
        let daemon = self.cargo(&["build", "--workspace", "--bins", "--manifest-path"], &manifest, &[])?;
        let run = |test: &[&str]| {
            let test = [&["--package", "portmap-tests", "--test"], test].concat();
            self.cargo(&["test", "--manifest-path"], &manifest, &test)
        };
        Ok(Some(daemon && run(&["shared_memory"])? && run(&["tools", "--", "echo::"])?))
    }

    /// What the wire oracle sees that must not be, a line for each kind; nothing if its tests pass.
    fn wire(&self) -> Result<Vec<String>> {
        /// Letters of a line that people read.
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

    /// Whether a cargo command succeeds in time.
    fn cargo(&self, first: &[&str], manifest: &Path, rest: &[&str]) -> Result<bool> {
        let mut command = self.command(first, manifest, rest);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let status =
            command.status().with_context(|| format!("cannot run `{}`", process::shown(&command)))?;
        Ok(status.success())
    }

    /// A cargo command in this tree, which is ended if it takes too long.
    fn command(&self, first: &[&str], manifest: &Path, rest: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command.args([PATIENCE, "cargo"]).args(first).arg(manifest).args(rest);
        command.current_dir(&self.directory).env("CARGO_TARGET_DIR", self.directory.join("target"));
        command.env_remove("CARGO_MANIFEST_DIR");
        command
    }
}
