//! Tests: on this machine's kernel, and on other kernels in virtual machines.

use std::{
    fmt::Write as _,
    fs,
    io::{BufRead as _, BufReader},
    num::NonZero,
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum as _};

use crate::{
    build, fuzz,
    leftovers::Mark,
    process,
    setup::{self, Group, Report},
    soak::{self, Soak},
    summary::Counts,
    vm::{self, Image, Job, Kernel, Limits, StaleBreakpoint},
    workspace,
};

/// The member whose integration tests run under every kernel.
const TESTS: &str = "portmap-tests";

/// Seconds of fuzzing for each target.
const FUZZ_SECONDS: u64 = 12;

/// Test programs that hardly depend on the kernel: output and errors of commands, container runtimes, contents of
/// files, flags, and routing tables. Other test programs cover the verdicts and counters behind them on every kernel.
const HERE_ONLY: [&str; 15] = [
    "api",
    "clients",
    "commands",
    "demo",
    "drops",
    "events",
    "explain",
    "host_view",
    "mesos",
    "metrics",
    "monitor",
    "run",
    "server",
    "state",
    "views",
];

/// Test programs that catch most mistakes within seconds.
const QUICK: [&str; 7] = ["commands", "drops", "explain", "paths", "reference", "verdicts", "wire"];

/// Tests with many similar cases try one in this number with `--quick` and on emulated machines, which are
/// about ten times slower; the full test on this machine tries all of them.
const SAMPLE: u32 = 24;

/// Test programs with tools such as iperf3 and iptables, which start slowly on emulated machines, with many hosts, or
/// with files and settings more than packets: they run on the oldest kernel and on this machine's.
const EARLIEST_AND_HERE: [&str; 6] =
    ["coexistence", "host_integrity", "hosts", "matrix", "reachability", "tools"];

/// Concurrent tests for each CPU of this machine.
const TESTS_PER_CPU: usize = 2;

/// Concurrent tests in a virtual machine, which has two CPUs.
const GUEST_THREADS: usize = 2 * TESTS_PER_CPU;

/// Restarts of a machine whose emulator failed.
const RESTARTS: u32 = 2;

/// Which tests to run, and where.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Run the tests that catch most mistakes, within three minutes: unit tests, and on this machine's kernel
    /// verdicts, paths and commands, with one in 24 of many similar cases. No virtual machine, no soak test,
    /// no fuzzing.
    #[arg(long, conflicts_with_all = ["kernel", "no_vm"])]
    quick: bool,
    /// Run on this machine's kernel only.
    #[arg(long, conflicts_with = "kernel")]
    no_vm: bool,
    /// Kernel series to run in a virtual machine; may be repeated. All series by default.
    #[arg(long, value_enum)]
    kernel: Vec<Kernel>,
    /// Seconds without output of its tests after which a virtual machine is stopped.
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    patience: u64,
    /// Seconds after the start of this command at which a virtual machine that still runs is stopped.
    #[arg(long, default_value_t = 4800, value_name = "SECONDS")]
    timeout: u64,
    /// Names, or parts of names, of the tests to run, and other arguments of the test programs.
    #[arg(last = true)]
    filter: Vec<String>,
}

/// The outcome of the tests on one kernel.
struct Run {
    kernel: String,
    counts: Counts,
    /// A failure apart from failed tests.
    trouble: Option<String>,
}

/// Runs the tests and prints the numbers.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let deadline = Instant::now() + Duration::from_secs(arguments.timeout);
    build::require_root("test")?;
    setup::ensure(&[Group::Build, Group::Run], Report::Changes)?;
    if !arguments.quick {
        build::logging_daemon()?;
    }
    // The tests run the programs in the target directory.
    process::run(workspace::cargo().args(["build", "--workspace", "--bins"]))?;

    if arguments.quick {
        let mark = Mark::new()?;
        let (counts, trouble) = run_with_cargo(&mark, Selection::Quick, &arguments.filter)?;
        let runs = [Run { kernel: this_kernel()?, counts, trouble }];
        let failed = print_summary(&runs, &[], &["tests without `--quick`".to_owned()]);
        return Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS });
    }
    let programs = programs()?;
    let mark = Mark::new()?;
    let mut here = run_here(&programs, &mark, &arguments.filter)?;
    let left = mark.leftovers();
    if !left.is_empty() {
        here.trouble = Some(format!("leftovers of the tests: {}", left.join("; ")));
    }
    // Names select tests; the fuzz targets are not tests.
    let fuzzed = if arguments.filter.is_empty() { fuzz::all(FUZZ_SECONDS) } else { Vec::new() };
    let mut runs = vec![here];
    let mut not_run = Vec::new();
    for kernel in kernels(arguments) {
        match prepare(kernel, &programs, arguments) {
            Ok((image, batch)) => runs.push(run_in_vm(&image, &batch, deadline)),
            Err(reason) => not_run.push(format!("kernel {}: {reason:#}", kernel.line())),
        }
    }
    // A kernel that the command line names must be available.
    let demanded = !arguments.kernel.is_empty() && !not_run.is_empty();
    let failed = print_summary(&runs, &fuzzed, &not_run);
    Ok(if failed || demanded { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn kernels(arguments: &Arguments) -> Vec<Kernel> {
    if arguments.kernel.is_empty() { Kernel::value_variants().to_vec() } else { arguments.kernel.clone() }
}

/// Runs every test of the workspace on this machine's kernel. Without a filter, the soak test runs in
/// parallel with the others.
fn run_here(programs: &Programs, mark: &Mark, filter: &[String]) -> Result<Run> {
    let kernel = this_kernel()?;
    println!("testing on this machine, kernel {kernel}");
    if !filter.is_empty() {
        let (counts, trouble) = run_with_cargo(mark, Selection::All, filter)?;
        return Ok(Run { kernel, counts, trouble });
    }
    let program = programs.files.iter().find(|file| is_test(file, soak::PROGRAM));
    let soak =
        Soak { program: program.context("there is no soak test")?, directory: &programs.directory, mark };
    let others = ["--skip".to_owned(), soak::TEST.to_owned()];
    let (others, soaked) = thread::scope(|scope| {
        let soaked = scope.spawn(|| soak.run());
        (run_with_cargo(mark, Selection::All, &others), soaked.join())
    });
    let (mut counts, trouble) = others?;
    let soaked = soaked.map_err(|_panic| anyhow::anyhow!("the thread of the soak test panicked"))??;
    let (soaked, of_the_soak) = soak::report(&soaked);
    counts += soaked;
    Ok(Run { kernel, counts, trouble: trouble.or(of_the_soak) })
}

/// Returns the running kernel's release.
fn this_kernel() -> Result<String> {
    let release =
        fs::read_to_string("/proc/sys/kernel/osrelease").context("cannot read the kernel's release")?;
    Ok(release.trim().to_owned())
}

/// The tests that cargo runs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Selection {
    All,
    /// Unit tests and [`QUICK`], with samples.
    Quick,
}

/// Runs tests with cargo. Returns the numbers, and a failure apart from failed tests.
fn run_with_cargo(mark: &Mark, selection: Selection, filter: &[String]) -> Result<(Counts, Option<String>)> {
    let mut command = workspace::cargo();
    // Tests mostly wait, for the kernel or for an answer that must not come.
    let threads = thread::available_parallelism().map_or(1, NonZero::get) * TESTS_PER_CPU;
    command.args(["test", "--workspace", "--no-fail-fast"]);
    if selection == Selection::Quick {
        command.args(["--lib", "--bins"]).args(QUICK.iter().flat_map(|program| ["--test", program]));
        command.env("PORTMAP_SAMPLE", SAMPLE.to_string());
    }
    command.arg("--");
    command.arg(format!("--test-threads={threads}")).args(filter);
    let mut child = mark
        .on(&mut command)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{}`", process::shown(&command)))?;
    let mut counts = Counts::default();
    let output = child.stdout.take().context("cargo has a pipe for its output")?;
    for line in BufReader::new(output).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        counts.read_line(&line);
    }
    let status = child.wait()?;
    let explained = status.success() || counts.failed > 0;
    Ok((counts, (!explained).then(|| format!("`{}` failed: {status}", process::shown(&command)))))
}

/// The test programs that run on every kernel.
struct Programs {
    /// The working directory of `cargo test`.
    directory: PathBuf,
    files: Vec<PathBuf>,
    /// Cargo's target directory.
    target_directory: PathBuf,
}

/// Builds the test programs.
fn programs() -> Result<Programs> {
    let metadata = workspace::metadata()?;
    let package = metadata
        .packages
        .iter()
        .find(|package| package.name == TESTS)
        .with_context(|| format!("the workspace has no package {TESTS}"))?;
    let directory = package.manifest_path.parent().unwrap_or(Path::new("/")).to_owned();
    let files = workspace::integration_tests(package)?;
    Ok(Programs { directory, files, target_directory: metadata.target_directory })
}

/// Prepares the tests on a kernel. Fails if they cannot run.
fn prepare(kernel: Kernel, programs: &Programs, arguments: &Arguments) -> Result<(Image, Batch)> {
    if arguments.no_vm {
        anyhow::bail!("--no-vm");
    }
    setup::ensure(&[Group::Vm], Report::Changes)?;
    let left_out = left_out(kernel);
    println!("not run on {}: {} (see CONTRIBUTING.md)", kernel.line(), left_out.join(", "));
    let is_run = |program: &&PathBuf| !left_out.iter().any(|name| is_test(program, name));
    Ok((
        Image::find(kernel)?,
        Batch {
            directory: programs.directory.clone(),
            programs: programs.files.iter().filter(is_run).cloned().collect(),
            filter: arguments.filter.clone(),
            used: vec![workspace::root(), programs.target_directory.clone()],
            patience: Duration::from_secs(arguments.patience),
        },
    ))
}

/// Returns the test programs that do not run on a kernel.
fn left_out(kernel: Kernel) -> Vec<&'static str> {
    let more: &[&str] = if kernel == Kernel::V6_1 { &[] } else { &EARLIEST_AND_HERE };
    HERE_ONLY.iter().chain(more).copied().collect()
}

/// Returns whether a file is the test program with this name, to which cargo appends a hyphen and a hash.
fn is_test(program: &Path, name: &str) -> bool {
    let file = program.file_name().unwrap_or_default().to_string_lossy();
    file.rsplit_once('-').is_some_and(|(stem, _hash)| stem == name)
}

/// The tests of one virtual machine.
struct Batch {
    /// The working directory of `cargo test`.
    directory: PathBuf,
    programs: Vec<PathBuf>,
    filter: Vec<String>,
    used: Vec<PathBuf>,
    /// Time limit without output.
    patience: Duration,
}

/// Returns a shell script that runs the test programs like `cargo test`, one after the other.
fn script(directory: &Path, binaries: &[PathBuf], filter: &[String]) -> String {
    let filter: Vec<_> = filter.iter().map(|word| quoted(word)).collect();
    let filter = filter.join(" ");
    let mut script = format!(
        "cd {0} || exit\nexport CARGO_MANIFEST_DIR={0} PORTMAP_SAMPLE={SAMPLE}\nstatus=0\n",
        quoted_path(directory)
    );
    for binary in binaries {
        let file = quoted_path(binary);
        // Writing to a string does not fail.
        let _ = writeln!(
            script,
            "echo Running {file}\n{file} --test-threads={GUEST_THREADS} {filter} || \
             {{ echo {file} ended with status $?; status=1; }}"
        );
    }
    script.push_str("exit $status\n");
    script
}

fn run_in_vm(image: &Image, batch: &Batch, deadline: Instant) -> Run {
    println!(
        "\ntesting in a virtual machine, kernel {}; one in 24 or 96 of many similar cases",
        image.release
    );
    let mut counts = Counts::default();
    let mut restarts = 0;
    let trouble = loop {
        let left = batch.programs.get(ended(&counts)..).unwrap_or_default();
        let job = Job {
            script: script(&batch.directory, left, &batch.filter),
            used: batch.used.iter().collect(),
            limits: Limits {
                silence: Some(batch.patience),
                end: deadline.saturating_duration_since(Instant::now()),
            },
        };
        let outcome = vm::boot(image, &job, &mut |line| {
            println!("{line}");
            counts.read_line(line);
        });
        match outcome {
            Err(error) if restarts < RESTARTS && error.is::<StaleBreakpoint>() => {
                restarts += 1;
                println!("{error:#}\nanother machine runs the test programs that had no result");
            }
            outcome => break trouble(outcome, &counts, batch.programs.len()),
        }
    };
    Run { kernel: image.release.clone(), counts, trouble }
}

/// Returns the number of test programs with a result.
fn ended(counts: &Counts) -> usize {
    usize::try_from(counts.suites).unwrap_or(usize::MAX)
}

/// Returns a failure apart from failed tests.
fn trouble(outcome: Result<u8>, counts: &Counts, programs: usize) -> Option<String> {
    match outcome {
        Err(error) => Some(format!("{error:#}")),
        Ok(_) if ended(counts) < programs => {
            Some(format!("{} test programs ended without a result", programs - ended(counts)))
        }
        Ok(status) if status != 0 && counts.failed == 0 => {
            Some(format!("the guest failed with status {status}"))
        }
        Ok(_) => None,
    }
}

/// Prints a table, the tests that did not run, and the totals. Returns whether a test failed.
fn print_summary(runs: &[Run], fuzzed: &[fuzz::Outcome], not_run: &[String]) -> bool {
    let mut total = Counts::default();
    println!("\n{:<32} {:>6} {:>7} {:>7} {:>8}", "kernel", "suites", "passed", "failed", "ignored");
    for Run { kernel, counts, trouble } in runs {
        let Counts { suites, passed, failed, ignored, not_run: _ } = counts;
        println!("{kernel:<32} {suites:>6} {passed:>7} {failed:>7} {ignored:>8}");
        total += counts.clone();
        // A crash counts as a failed test, so that the total shows it.
        total.failed += u32::from(trouble.is_some());
    }
    for Run { kernel, counts, trouble } in runs {
        if let Some(trouble) = trouble {
            println!("failed on {kernel}: {trouble}");
        }
        for test in &counts.not_run {
            println!("not run on {kernel}: {test}");
        }
    }
    for outcome in fuzzed {
        println!("{outcome}");
        // Each target is a test.
        let failed = u32::from(outcome.result.is_err());
        total.failed += failed;
        total.passed += 1 - failed;
    }
    for reason in not_run {
        println!("not run: {reason}");
    }
    println!("\n{}", total.closing_line());
    total.failed > 0
}

fn quoted_path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

/// Quotes a word for a shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_programs_are_recognised_by_their_names() {
        assert!(is_test(Path::new("/deps/drops-0123abcd"), "drops"));
        for other in ["/deps/raindrops-0123abcd", "/deps/drops", "/deps/drops-and-more-0123abcd"] {
            assert!(!is_test(Path::new(other), "drops"), "{other}");
        }
    }

    #[test]
    fn script_runs_every_test_program_with_the_filter() {
        let programs = ["/target/a".into(), "/target/b".into()];
        let script = script(Path::new("/it's here/tests"), &programs, &["some test".to_owned()]);
        assert!(script.starts_with("cd '/it'\\''s here/tests' || exit\n"), "{script}");
        for file in ["'/target/a'", "'/target/b'"] {
            assert!(script.contains(&format!("\n{file} --test-threads=4 'some test' ||")), "{script}");
        }
        assert!(script.ends_with("exit $status\n"), "{script}");
    }
}
