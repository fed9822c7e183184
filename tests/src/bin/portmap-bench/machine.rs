//! The machine: its description, and disturbances of a measurement.

use std::fs;

use anyhow::{Context as _, Result};
use nix::{
    libc,
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

/// The description of a machine, for comparing numbers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cpus: usize,
    pub(crate) kernel: String,
    pub(crate) spectre_v2: String,
    /// The CPU of the measurements; none if they use all CPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) measured_on: Option<usize>,
}

impl Machine {
    /// Reads the description.
    pub(crate) fn read() -> Result<Self> {
        let allowed = sched_getaffinity(Pid::from_raw(0)).context("cannot read the CPU affinity")?;
        Ok(Self {
            cpu: cpu_model()?,
            cpus: (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false)).count(),
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            spectre_v2: read("/sys/devices/system/cpu/vulnerabilities/spectre_v2")
                .unwrap_or_else(|_| "not reported".to_owned())
                .trim()
                .to_owned(),
            measured_on: None,
        })
    }

    /// Returns whether the machine is emulated in software: QEMU then names the processor after itself.
    pub(crate) fn is_emulated(&self) -> bool {
        self.cpu.contains("QEMU")
    }

    /// Reads the description and pins this process to its last CPU, because the first ones handle most
    /// interrupts.
    pub(crate) fn take_cpu() -> Result<Self> {
        let machine = Self::read()?;
        let allowed = sched_getaffinity(Pid::from_raw(0)).context("cannot read the CPU affinity")?;
        let cpu = (0..CpuSet::count())
            .rfind(|cpu| allowed.is_set(*cpu).unwrap_or(false))
            .context("this process may use no CPU")?;
        let mut one = CpuSet::new();
        one.set(cpu).with_context(|| format!("CPU {cpu} is out of range"))?;
        sched_setaffinity(Pid::from_raw(0), &one)
            .with_context(|| format!("cannot pin this process to CPU {cpu}"))?;
        ask_for_priority();
        Ok(Self { measured_on: Some(cpu), ..machine })
    }

    /// Returns the disturbances of this CPU and this thread so far.
    pub(crate) fn disturbance(&self) -> Result<Disturbance> {
        let stat = read("/proc/stat")?;
        let cpu = self.measured_on.context("this process is not pinned to a CPU")?;
        let name = format!("cpu{cpu}");
        let line = stat.lines().find(|line| line.split(' ').next() == Some(&name));
        // user nice system idle iowait irq softirq steal
        let steal = line.and_then(|line| line.split_whitespace().nth(8)?.parse().ok());
        let status = read("/proc/thread-self/status")?;
        let switches = status.lines().find_map(|line| line.strip_prefix("nonvoluntary_ctxt_switches:"));
        Ok(Disturbance {
            steal: steal.with_context(|| format!("/proc/stat has no steal time of {name}"))?,
            switches: switches
                .and_then(|number| number.trim().parse().ok())
                .context("/proc/thread-self/status has no nonvoluntary_ctxt_switches")?,
        })
    }
}

/// Raises the priority of this process, if possible: without it, more rounds are disturbed.
fn ask_for_priority() {
    // SAFETY: a system call that takes three integers.
    let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) };
}

/// Interruptions of a measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Disturbance {
    /// Steal time (the hypervisor ran another machine), in ticks.
    pub(crate) steal: u64,
    /// Context switches to other tasks.
    pub(crate) switches: u64,
}

impl Disturbance {
    pub(crate) const fn since(self, earlier: Self) -> Self {
        Self { steal: self.steal - earlier.steal, switches: self.switches - earlier.switches }
    }

    pub(crate) const fn is_none(self) -> bool {
        self.steal == 0 && self.switches == 0
    }
}

fn cpu_model() -> Result<String> {
    let info = read("/proc/cpuinfo")?;
    let field = |name: &str| {
        let line = info.lines().find(|line| line.split('\t').next() == Some(name))?;
        Some(line.split_once(": ")?.1.to_owned())
    };
    let family = field("cpu family").zip(field("model"));
    Ok(match (field("model name"), family) {
        (Some(name), Some((family, model))) => format!("{name} (family {family}, model {model})"),
        (Some(name), None) => name,
        (None, _) => std::env::consts::ARCH.to_owned(),
    })
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {path}"))
}
