//! Benchmarks. The benchmark of rate limits also runs in a virtual machine, whose kernel has `fq_codel`.

use std::{
    convert::Infallible,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    build::{self, DATAPATH_LOG, Forwarded},
    setup::{self, Group, Report},
    vm::{self, Image, Job, Kernel, Limits},
    workspace,
};

/// The kernel of the virtual machine.
const KERNEL: Kernel = Kernel::V6_12;
/// Precedes the findings in the output of the benchmark.
const FINDINGS: &str = "findings: ";
/// Time limit, long enough for a machine that is emulated in software.
const PATIENCE: Duration = Duration::from_mins(30);

/// Builds the benchmarks, runs that of rate limits in a virtual machine, and executes the program in place of
/// this process.
pub(crate) fn run(forwarded: &Forwarded) -> Result<Infallible> {
    let has_first = |name: &str| forwarded.arguments.first().is_some_and(|first| first == name);
    let program = if has_first(DATAPATH_LOG) {
        build::with_feature("bench", "portmap-bench", DATAPATH_LOG)?
    } else {
        build::with("bench", "portmap-bench")?
    };
    let mut command = Command::new(&program);
    command.args(&forwarded.arguments);
    let has = |name: &str| forwarded.arguments.iter().any(|argument| argument == name);
    let measures = !["--help", "-h", "--redraw"].into_iter().any(has);
    if has_first("shaping") && measures {
        setup::ensure(&[Group::Peers], Report::Changes)?;
        match in_vm(&program, has("--quick")) {
            Ok(file) => drop(command.arg("--with").arg(file)),
            Err(reason) => eprintln!("not measured on Linux {}: {reason:#}", KERNEL.line()),
        }
    }
    build::become_file(&mut command)
}

/// Measures rate limits on another kernel and returns the file with the output.
fn in_vm(program: &Path, is_quick: bool) -> Result<PathBuf> {
    setup::ensure(&[Group::Vm], Report::Changes)?;
    let target = workspace::metadata()?.target_directory;
    let quick = if is_quick { "--quick" } else { "" };
    let job = Job {
        script: format!("'{}' shaping --print {quick}", program.display()),
        used: vec![workspace::root(), target.clone()],
        limits: Limits { silence: None, end: PATIENCE },
    };
    let image = Image::find(KERNEL)?;
    eprintln!("measuring in a virtual machine, kernel {}", image.release);
    let mut output = String::new();
    let status = vm::boot(&image, &job, &mut |line| {
        if !line.starts_with(FINDINGS) {
            eprintln!("{line}");
        }
        output.push_str(line);
        output.push('\n');
    })?;
    if status != 0 {
        bail!("the benchmark in the virtual machine failed with status {status}");
    }
    let file = target.join("shaping-in-vm.txt");
    fs::write(&file, output).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}
