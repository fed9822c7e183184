//! Coverage-guided fuzzing of the decision code, see `tests/fuzz`.

use std::{
    fmt::{self, Display},
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::OnceLock,
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use crate::{
    process,
    setup::{self, Group, Report},
    workspace,
};

mod report;

use self::report::{Numbers, finding};

/// Longest input in bytes; the code reads headers only, and shorter inputs run faster.
const LONGEST: usize = 512;

/// A fuzz target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Target {
    /// Single frames.
    Verdict,
    /// Sequences of frames, with the flow state between them.
    Sequence,
}

/// Targets, inputs and duration.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Target to run; all of them by default.
    target: Option<Target>,
    /// Inputs to run the target on instead of fuzzing; after `--`, options of libFuzzer as well.
    inputs: Vec<PathBuf>,
    /// Seconds of fuzzing for each target.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Keep the input as a fixture of this name, as raw frames, which changes of the input builder do not
    /// affect.
    #[arg(long, value_name = "NAME", requires = "inputs", conflicts_with = "minimise")]
    fixture: Option<String>,
    /// Replace the committed corpus by the smallest set of known inputs with the same coverage.
    #[arg(long, conflicts_with = "inputs")]
    minimise: bool,
}

/// The outcome of one target.
pub(crate) struct Outcome {
    target: Target,
    /// Statistics, or the finding.
    pub result: Result<String>,
}

impl Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.target.name();
        match &self.result {
            Ok(numbers) => write!(formatter, "fuzz {name}: {numbers}"),
            Err(error) => write!(formatter, "fuzz {name} FAILED: {error:#}"),
        }
    }
}

/// Fuzzes, or runs, keeps or minimises inputs.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let targets = arguments.target.map_or_else(|| Target::value_variants().to_vec(), |target| vec![target]);
    if !arguments.inputs.is_empty() || arguments.minimise {
        setup::ensure(&[Group::Fuzz], Report::Changes)?;
        for target in targets {
            match &arguments.fixture {
                Some(name) => target.keep(name, &arguments.inputs)?,
                None if arguments.minimise => target.minimise()?,
                None => process::run(target.command()?.args(&arguments.inputs))?,
            }
        }
        return Ok(ExitCode::SUCCESS);
    }
    let outcomes = fuzz(&targets, arguments.seconds);
    let failed = outcomes.iter().any(|outcome| outcome.result.is_err());
    for outcome in outcomes {
        println!("{outcome}");
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Replays corpus and fixtures of every target, then fuzzes each for some seconds.
pub(crate) fn all(seconds: u64) -> Vec<Outcome> {
    fuzz(Target::value_variants(), seconds)
}

fn fuzz(targets: &[Target], seconds: u64) -> Vec<Outcome> {
    let outcome = |&target: &Target| {
        println!("fuzzing {} for {seconds} s", target.name());
        let result = setup::ensure(&[Group::Fuzz], Report::Changes).and_then(|()| target.fuzz(seconds));
        Outcome { target, result }
    };
    targets.iter().map(outcome).collect()
}

impl Target {
    const fn name(self) -> &'static str {
        match self {
            Self::Verdict => "verdict",
            Self::Sequence => "sequence",
        }
    }

    /// Returns a directory of this target in the repository, such as its `corpus`.
    fn directory(self, kind: &str) -> Result<PathBuf> {
        made(directory().join(kind).join(self.name()))
    }

    /// The target's program, built.
    fn command(self) -> Result<Command> {
        let program = built()?.join(self.name());
        let mut command = Command::new(program);
        command.arg(format!("-artifact_prefix={}/", self.directory("artifacts")?.display()));
        // The assertion names its line.
        command.env("RUST_BACKTRACE", "0");
        Ok(command)
    }

    fn fuzz(self, seconds: u64) -> Result<String> {
        let (corpus, fixtures) = (self.directory("corpus")?, self.directory("fixtures")?);
        let (known, named) = (files(&corpus)?, files(&fixtures)?);
        // Replay them first: as a corpus they would be truncated to the longest length and mutated at once.
        let known_and_named: Vec<_> = known.iter().chain(&named).collect();
        if !known_and_named.is_empty() {
            self.read(self.command()?.args(known_and_named))?;
        }
        // libFuzzer writes new inputs to the first directory, which is not in the repository.
        let found = made(target_directory()?.join("corpus").join(self.name()))?;
        let mut command = self.command()?;
        command
            .args([&found, &corpus, &fixtures])
            .arg(format!("-max_len={LONGEST}"))
            .arg(format!("-max_total_time={seconds}"))
            // An input that takes seconds is a finding as well; normal ones take microseconds.
            .args(["-timeout=10", "-print_final_stats=1"]);
        let output = self.read(&mut command)?;
        let numbers = Numbers::read(&output)
            .with_context(|| format!("cannot parse the output of {}: {output}", self.name()))?;
        Ok(format!("{} inputs of the corpus, {} fixtures, {numbers}", known.len(), named.len()))
    }

    /// Runs the target's program and returns what it prints.
    fn read(self, command: &mut Command) -> Result<String> {
        let output = command
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot run `{}`", process::shown(command)))?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() {
            bail!("{}", finding(self.name(), &text));
        }
        Ok(text)
    }

    /// Writes an input as a fixture and prints whether it still fails.
    fn keep(self, name: &str, inputs: &[PathBuf]) -> Result<()> {
        let [input] = inputs else { bail!("expected exactly one input for a fixture") };
        let file = self.directory("fixtures")?.join(name);
        if file.exists() {
            bail!("{} exists already", file.display());
        }
        let outcome = self.read(self.command()?.arg(input).env("PORTMAP_FUZZ_VERBATIM", &file));
        if !file.exists() {
            bail!("{} was not written: {:?}", file.display(), outcome.err());
        }
        let state = if outcome.is_ok() { "passes" } else { "fails" };
        println!("{} {state}; commit it", file.display());
        Ok(())
    }

    fn minimise(self) -> Result<()> {
        let corpus = self.directory("corpus")?;
        let found = made(target_directory()?.join("corpus").join(self.name()))?;
        let fewest = target_directory()?.join("fewest").join(self.name());
        if fewest.exists() {
            fs::remove_dir_all(&fewest)?;
        }
        made(fewest.clone())?;
        // Hit counters would keep several times as many inputs.
        self.read(
            self.command()?.args(["-set_cover_merge=1", "-use_counters=0"]).args([&fewest, &corpus, &found]),
        )?;
        for file in files(&corpus)? {
            fs::remove_file(file)?;
        }
        for file in files(&fewest)? {
            let name = file.file_name().context("a file has a name")?;
            fs::copy(&file, corpus.join(name))?;
        }
        println!("{}: {} inputs", corpus.display(), files(&corpus)?.len());
        Ok(())
    }
}

/// The directory of the fuzz targets.
fn directory() -> PathBuf {
    workspace::root().join("tests/fuzz")
}

/// Their `Cargo.toml`.
pub(crate) fn manifest() -> PathBuf {
    directory().join("Cargo.toml")
}

/// Returns the target directory of the fuzz targets, whose builds have coverage counters.
pub(crate) fn target_directory() -> Result<PathBuf> {
    Ok(workspace::metadata()?.target_directory.join("fuzz"))
}

/// Builds the targets, once in a run of this program, and returns the directory of their programs.
fn built() -> Result<&'static Path> {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    if let Some(directory) = BUILT.get() {
        return Ok(directory);
    }
    let target = target_directory()?;
    let host = host()?;
    // The decision code has no unsafe code, so a sanitizer would add nothing, and it would need a nightly
    // toolchain.
    let mut command = workspace::cargo();
    command.args(["fuzz", "build", "--sanitizer", "none", "--target", &host, "--fuzz-dir"]);
    command.arg(directory()).arg("--target-dir").arg(&target);
    process::run_silently(&mut command)?;
    Ok(BUILT.get_or_init(|| target.join(host).join("release")))
}

/// Returns the compiler's default target.
fn host() -> Result<String> {
    let text = process::read(Command::new("rustc").arg("-vV"))?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc does not name its host")
}

fn made(directory: PathBuf) -> Result<PathBuf> {
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    Ok(directory)
}

/// The files in a directory, in order.
fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        files.push(entry?.path());
    }
    files.sort();
    Ok(files)
}
