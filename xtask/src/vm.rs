//! Virtual machines that boot a Debian kernel over a read-only view of the running system.
//!
//! The guest's root is an overlay: the host's root below a writable layer in memory. The guest finds
//! everything that is installed or built on the host at the same path, and its changes are discarded.

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

/// A kernel series that the tests cover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kernel {
    /// The oldest tested series with TCX links.
    #[value(name = "6.12")]
    V6_12,
    /// A series without TCX, where filters of a clsact qdisc attach programs.
    #[value(name = "6.1")]
    V6_1,
}

impl Kernel {
    /// Returns the Debian package that depends on the newest kernel of the series.
    fn metapackage(self) -> &'static str {
        match self {
            Self::V6_12 => "linux-image-6.12-amd64",
            Self::V6_1 => "linux-image-amd64",
        }
    }

    /// Returns the prefix of the series' versions.
    pub(crate) fn line(self) -> &'static str {
        match self {
            Self::V6_12 => "6.12",
            Self::V6_1 => "6.1",
        }
    }
}

/// The kernel and the command.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Kernel series.
    #[arg(long, value_enum, default_value = "6.12")]
    kernel: Kernel,
    /// Seconds after which the machine is stopped.
    #[arg(long, default_value_t = 900, value_name = "SECONDS")]
    timeout: u64,
    /// Shell command to run as root in the machine; its output and its exit status become those of this task.
    #[arg(required = true, last = true)]
    command: Vec<String>,
}

/// Runs one command in a machine and passes on its output and exit status.
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

/// The job of a machine.
pub(crate) struct Job<P> {
    /// Shell script, run as root.
    pub script: String,
    /// Directories of the host that the guest must not cover with its own.
    pub used: Vec<P>,
    /// Time limits.
    pub limits: Limits,
}

/// Boots a machine, passes on each line of the job's output, and returns the job's exit status.
pub(crate) fn boot<P: AsRef<Path>>(
    image: &Image,
    job: &Job<P>,
    each_line: &mut dyn FnMut(&str),
) -> Result<u8> {
    let work = tempfile::Builder::new().prefix("portmap-vm-").tempdir()?;
    let initramfs = initramfs::build(image, job, work.path())?;
    qemu::Machine::start(image, &initramfs, work.path())?.watch(job.limits, each_line)
}
