//! QEMU: starting a machine, reading its output, and stopping it in time.

use std::{
    ffi::OsString,
    fmt::{self, Write as _},
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Stdio},
    sync::{
        OnceLock,
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};

use super::{Image, console, initramfs::Initramfs, kernel_log::KernelLog};
use crate::process;

const QEMU: &str = "qemu-system-x86_64";

/// The accelerator without hardware virtualisation.
const EMULATION: &str = "tcg,thread=multi";
/// The emulated CPU, without features that only cost time: a fifth level of page tables, SMAP and SMEP.
const EMULATED_CPU: &str = "max,la57=off,smap=off,smep=off";

/// Interval of reading the kernel's log while the job prints nothing.
const TICK: Duration = Duration::from_secs(1);

/// Time limit of the power-off after the job.
const SWITCH_OFF: Duration = Duration::from_secs(5);

/// Time limit of the trial of hardware virtualisation, with which a kernel boots in a second or two.
const TRIAL: Duration = Duration::from_secs(10);

/// A panic ends the machine, stall timeouts allow for emulation on a busy host, and mitigations are off
/// because they cost time.
const KERNEL_ARGUMENTS: &str = "console=ttyS1 loglevel=5 panic=-1 mitigations=off \
     rcupdate.rcu_cpu_stall_timeout=60 sysctl.kernel.watchdog_thresh=60";

/// The emulator, not the guest's kernel, caused the end of a machine.
#[derive(Debug)]
pub(crate) struct StaleBreakpoint(String);

impl fmt::Display for StaleBreakpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "the emulator ran a breakpoint that is not in the guest's memory; {}", self.0)
    }
}

impl std::error::Error for StaleBreakpoint {}

/// Time limits after which a machine is stopped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Time without output of the job; none for no limit.
    pub silence: Option<Duration>,
    /// Total time.
    pub end: Duration,
}

impl Limits {
    /// Returns the reason to stop a machine, by its total time and its time without output.
    fn exceeded(self, run: Duration, silent: Duration) -> Option<String> {
        match self.silence {
            _ if run >= self.end => Some(format!("after {} s, before the end of its job", run.as_secs())),
            Some(limit) if silent >= limit => {
                Some(format!("after {} s without output of its job", silent.as_secs()))
            }
            _ => None,
        }
    }
}

/// A running machine, which is stopped on drop.
pub(super) struct Machine {
    process: Child,
    lines: Receiver<String>,
    kernel_log: KernelLog,
    marker: String,
    release: String,
    emulated: bool,
}

impl Machine {
    /// Starts a machine that keeps its files in the working directory.
    pub(super) fn start(image: &Image, initramfs: &Initramfs, work: &Path) -> Result<Self> {
        let kernel_log = KernelLog { file: work.join("kernel.log") };
        let accelerator = accelerator(image);
        // The machine must not outlive this process, even if that is killed.
        let mut command = process::command("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(process::command(QEMU).get_program());
        let cpu = if accelerator == EMULATION { EMULATED_CPU } else { "max" };
        command.args(["-M", "q35", "-cpu", cpu, "-smp", "2", "-m", "2048"]);
        command.args(["-accel", accelerator]);
        command.args(["-display", "none", "-vga", "none", "-nic", "none", "-monitor", "none", "-no-reboot"]);
        // The job has a serial line of its own, so that kernel messages do not interrupt its lines.
        command.args(["-serial", "stdio", "-serial"]).arg(option("file:", &kernel_log.file, ""));
        command.arg("-kernel").arg(image.kernel()).arg("-initrd").arg(&initramfs.file);
        command.args(["-append", KERNEL_ARGUMENTS]);
        for (tag, directory) in [("host", Path::new("/")), ("kernel", &image.root)] {
            let rest = format!(",mount_tag={tag},security_model=none,readonly=on,multidevs=remap");
            command.arg("-virtfs").arg(option("local,path=", directory, &rest));
        }
        let mut process = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run `{}`", process::shown(&command)))?;
        let output = process.stdout.take().context("the machine has a pipe for its output")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                if sender.send(console::clean(&String::from_utf8_lossy(&line))).is_err() {
                    break;
                }
            }
        });
        Ok(Self {
            process,
            lines,
            kernel_log,
            marker: initramfs.marker.clone(),
            release: image.release.clone(),
            emulated: accelerator == EMULATION,
        })
    }

    /// Waits for the end of the job, passing on its output, and returns its exit status.
    pub(super) fn watch(mut self, limits: Limits, each_line: &mut dyn FnMut(&str)) -> Result<u8> {
        let start = Instant::now();
        let mut last_word = start;
        let status = loop {
            match self.lines.recv_timeout(TICK) {
                Ok(line) => {
                    last_word = Instant::now();
                    match line.split_once(&self.marker) {
                        Some((before, status)) => {
                            if !before.is_empty() {
                                each_line(before);
                            }
                            break status.trim().parse::<u8>().with_context(|| {
                                format!("the guest's job ended with `{status}`: expected an exit status")
                            })?;
                        }
                        None => each_line(&line),
                    }
                }
                Err(RecvTimeoutError::Timeout) => self.check_fault()?,
                Err(RecvTimeoutError::Disconnected) => return Err(self.early_end()),
            }
            if let Some(why) = limits.exceeded(start.elapsed(), last_word.elapsed()) {
                bail!("the guest with kernel {} was stopped {why}", self.release);
            }
        };
        self.wait_for_end();
        self.check_fault()?;
        Ok(status)
    }

    /// Fails if the kernel has reported a fault.
    fn check_fault(&mut self) -> Result<()> {
        match self.kernel_log.fault() {
            Some(_) => Err(self.early_end()),
            None => Ok(()),
        }
    }

    /// Returns the reason why the machine ended, or must end, before its job.
    fn early_end(&mut self) -> anyhow::Error {
        // Wait for the complete report.
        self.wait_for_end();
        let mut text = match self.kernel_log.fault() {
            Some(fault) => format!("kernel {} reported a fault: {fault}", self.release),
            None => format!("the guest with kernel {} ended before its job", self.release),
        };
        // Writing to a string does not fail.
        let _ = write!(text, "\nits messages:\n{}", self.kernel_log.end());
        if self.emulated && self.kernel_log.is_stale_breakpoint() {
            return StaleBreakpoint(text).into();
        }
        anyhow!(text)
    }

    fn wait_for_end(&mut self) {
        let deadline = Instant::now() + SWITCH_OFF;
        while Instant::now() < deadline && matches!(self.process.try_wait(), Ok(None)) {
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Both fail only if the process has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Returns an option with a path, in which commas must be doubled.
fn option(before: &str, path: &Path, after: &str) -> OsString {
    format!("{before}{}{after}", path.display().to_string().replace(',', ",,")).into()
}

/// Returns hardware virtualisation if the kernel boots with it, else emulation.
fn accelerator(image: &Image) -> &'static str {
    static CHOICE: OnceLock<bool> = OnceLock::new();
    // The device may exist and not work, so only a trial is conclusive.
    if *CHOICE.get_or_init(|| Path::new("/dev/kvm").exists() && kvm_works(image).unwrap_or(false)) {
        "kvm"
    } else {
        EMULATION
    }
}

/// Boots the kernel without a root file system: it panics, which ends the machine. If virtualisation does not
/// work, QEMU prints an error or the machine does not end.
fn kvm_works(image: &Image) -> Result<bool> {
    let errors = tempfile::NamedTempFile::new()?;
    let mut command = process::command("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(process::command(QEMU).get_program());
    command.args([
        "-M",
        "q35",
        "-cpu",
        "max",
        "-accel",
        "kvm",
        "-m",
        "512",
        "-no-reboot",
        "-display",
        "none",
    ]);
    command.args(["-vga", "none", "-nic", "none", "-serial", "none", "-monitor", "none"]);
    command.arg("-kernel").arg(image.kernel()).args(["-append", KERNEL_ARGUMENTS]);
    let mut trial = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors.reopen()?).spawn()?;
    let deadline = Instant::now() + TRIAL;
    let status = loop {
        let status = trial.try_wait()?;
        if status.is_some() || errors.as_file().metadata()?.len() > 0 || Instant::now() >= deadline {
            break status;
        }
        thread::sleep(Duration::from_millis(20));
    };
    // This fails if the machine has ended.
    let _ = trial.kill();
    trial.wait()?;
    Ok(status.is_some_and(|status| status.success()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_stop_a_machine_that_is_silent_or_late() {
        let limits = Limits { silence: Some(Duration::from_mins(1)), end: Duration::from_mins(10) };
        let is_stopped =
            |run, silent| limits.exceeded(Duration::from_secs(run), Duration::from_secs(silent)).is_some();
        assert!(!is_stopped(599, 59));
        assert!(is_stopped(60, 60), "silent");
        assert!(is_stopped(600, 0), "too late");
        let limits = Limits { silence: None, ..limits };
        assert!(limits.exceeded(Duration::from_secs(599), Duration::from_secs(599)).is_none());
    }
}
