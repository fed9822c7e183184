//! This process' use of resources.

use procfs::{ProcError, process::Process};

use crate::kernel::error::{Context as _, Result};

/// This process' use of resources.
#[derive(Clone, Copy, Debug)]
pub struct OwnProcess {
    /// CPU time in user and kernel mode, in seconds.
    pub cpu_seconds: f64,
    /// Resident memory in bytes.
    pub resident: u64,
    /// Virtual memory in bytes.
    pub virtual_memory: u64,
    /// Number of open file descriptors.
    pub open_files: u64,
    /// Limit on open file descriptors.
    pub max_files: u64,
    /// Number of threads.
    pub threads: u64,
    /// When it started, in seconds since the epoch.
    pub started: f64,
}

impl OwnProcess {
    /// Reads `/proc/self`.
    pub fn read() -> Result<Self> {
        read().context(|| "cannot read /proc/self")
    }
}

#[expect(clippy::cast_precision_loss, reason = "numbers of clock ticks are far below 2^52")]
fn read() -> std::result::Result<OwnProcess, ProcError> {
    let process = Process::myself()?;
    let (stat, limits) = (process.stat()?, process.limits()?);
    let seconds = |ticks: u64| ticks as f64 / procfs::ticks_per_second() as f64;
    let max_files = match limits.max_open_files.soft_limit {
        procfs::process::LimitValue::Value(files) => files,
        procfs::process::LimitValue::Unlimited => u64::MAX,
    };
    Ok(OwnProcess {
        cpu_seconds: seconds(stat.utime + stat.stime),
        resident: stat.rss * procfs::page_size(),
        virtual_memory: stat.vsize,
        open_files: u64::try_from(process.fd_count()?).unwrap_or(u64::MAX),
        max_files,
        threads: u64::try_from(stat.num_threads).unwrap_or_default(),
        started: procfs::boot_time_secs()? as f64 + seconds(stat.starttime),
    })
}
