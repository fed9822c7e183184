//! Virtual machines that boot a Debian kernel over a read-only view of the running system.
//!
//! The guest's root is the host's root under a writable layer in memory, so everything that is installed or built
//! here is there, too, at the same path, and nothing that the guest does to it lasts.

use std::{path::Path, process::ExitCode, time::Duration};

use anyhow::Result;
use clap::{Args, ValueEnum};

mod console;
mod image;
mod initramfs;
mod kernel_log;
mod qemu;

pub(crate) use image::Image;
pub(crate) use qemu::{Limits, StaleBreakpoint};

use crate::{
    setup::{self, Group, Report},
    workspace,
};

/// A line of kernels that the tests cover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kernel {
    /// Programs are attached by TCX links.
    #[value(name = "6.12")]
    V6_12,
    /// There is no TCX: programs are attached to a clsact qdisc.
    #[value(name = "6.1")]
    V6_1,
}

impl Kernel {
    /// The Debian package that depends on the newest kernel of the line.
    fn metapackage(self) -> &'static str {
        match self {
            Self::V6_12 => "linux-image-6.12-amd64",
            Self::V6_1 => "linux-image-amd64",
        }
    }

    /// How versions of the line begin.
    pub(crate) fn line(self) -> &'static str {
        match self {
            Self::V6_12 => "6.12",
            Self::V6_1 => "6.1",
        }
    }
}

/// What to run where.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Line of kernels.
    #[arg(long, value_enum, default_value = "6.12")]
    kernel: Kernel,
    /// Seconds after which the machine is stopped.
    #[arg(long, default_value_t = 900, value_name = "SECONDS")]
    timeout: u64,
    /// Shell command to run as root in the machine; its output and its exit status are passed on.
    #[arg(required = true, last = true)]
    command: Vec<String>,
}

/// Runs one command in a machine and passes on what it prints and how it ends.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::ensure(&[Group::Vm], Report::Changes)?;
    let image = Image::find(arguments.kernel)?;
    let job = Job {
        script: arguments.command.join(" "),
        used: vec![workspace::root()],
        limits: Limits { silence: None, end: Duration::from_secs(arguments.timeout) },
    };
    let status = boot(&image, &job, &mut |line| println!("{line}"))?;
    Ok(ExitCode::from(status))
}

/// What a machine is booted for.
pub(crate) struct Job<P> {
    /// Shell script, run as root.
    pub script: String,
    /// Directories that the script must find, even where the guest would rather have its own.
    pub used: Vec<P>,
    /// When the machine is stopped.
    pub limits: Limits,
}

/// Boots a machine, hands on each line that the job prints, and returns the job's exit status.
pub(crate) fn boot<P: AsRef<Path>>(
    image: &Image,
    job: &Job<P>,
    each_line: &mut dyn FnMut(&str),
) -> Result<u8> {
    let work = tempfile::Builder::new().prefix("portmap-vm-").tempdir()?;
    let initramfs = initramfs::build(image, job, work.path())?;
    qemu::Machine::start(image, &initramfs, work.path())?.watch(job.limits, each_line)
}
