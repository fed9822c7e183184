//! The guest kernel's own messages: what in them is a fault of the kernel.

use std::{fs, path::PathBuf};

use super::console;

/// Words by which a kernel begins the report of a fault.
const FAULTS: [&str; 6] =
    ["Kernel panic", "Oops: ", "BUG: ", "kernel BUG at", "self-detected stall", "detected stalls on CPUs"];

/// How many lines of the log explain a guest that ended too early.
const EXPLAINING_LINES: usize = 25;
/// Number of messages of a fault that are shown: registers, and calls with those of an interrupt.
const FAULT_LINES: usize = 90;

/// A file that collects the kernel's messages.
pub(super) struct KernelLog {
    /// The file.
    pub file: PathBuf,
}

impl KernelLog {
    /// Whether the fault is one of the emulator: it ran a breakpoint that the kernel had already taken out again.
    ///
    /// While a kernel changes its own code it puts a breakpoint (`int3`, byte `cc`) in the place, and takes it out when
    /// every CPU has seen the change. An emulator that translates the place on one CPU while another writes to it may
    /// keep the translation with the breakpoint, and the kernel then knows of none. The report has the code in memory,
    /// with the byte after the breakpoint in angle brackets: a breakpoint of the kernel's own would be before it.
    pub(super) fn is_stale_breakpoint(&self) -> bool {
        let mut report = self.lines().into_iter().skip_while(|line| !line.contains("Oops: int3"));
        report.find_map(|line| byte_before_fault(&line)).is_some_and(|byte| byte != "cc")
    }

    /// The first message of a fault.
    pub(super) fn fault(&self) -> Option<String> {
        self.lines().into_iter().find(|line| is_fault(line))
    }

    /// The messages that explain an end, one a line: those of the first fault, with the calls that led there, or the last.
    pub(super) fn end(&self) -> String {
        let lines = self.lines();
        let last = lines.len().saturating_sub(EXPLAINING_LINES);
        let first = lines.iter().position(|line| is_fault(line)).unwrap_or(last);
        lines[first..lines.len().min(first + FAULT_LINES)].join("\n")
    }

    fn lines(&self) -> Vec<String> {
        let content = fs::read(&self.file).unwrap_or_default();
        String::from_utf8_lossy(&content).lines().map(console::clean).collect()
    }
}

fn is_fault(line: &str) -> bool {
    FAULTS.iter().any(|fault| line.contains(fault))
}

/// The byte before the one in angle brackets, in a line with a fault's code.
fn byte_before_fault(line: &str) -> Option<String> {
    let (_, code) = line.split_once("Code: ")?;
    let (before, _) = code.split_once('<')?;
    before.split_whitespace().next_back().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_breakpoint_that_memory_does_not_have_is_the_emulators() {
        let directory = tempfile::tempdir().unwrap();
        let log = KernelLog { file: directory.path().join("log") };
        let report = |fault: &str, code: &str| {
            let text = format!(
                "[ 9.1] {fault}: 0000 [#1] PREEMPT SMP\n[ 9.1] RIP: 0010:f+0x2/0xa0\n[ 9.1] Code: {code}\n"
            );
            fs::write(&log.file, text).unwrap();
            log.is_stale_breakpoint()
        };
        assert!(report("Oops: int3", "90 83 e0 fc eb <5d> 48 c7"));
        assert!(!report("Oops: int3", "90 83 e0 fc cc <5d> 48 c7"));
        assert!(!report("Oops: int3", "Unable to access opcode bytes"));
        assert!(!report("Oops: general protection fault", "90 83 e0 fc eb <5d> 48 c7"));
    }

    #[test]
    fn faults_are_told_from_other_messages() {
        for fault in [
            "[    9.1] Kernel panic - not syncing: Attempted to kill init!",
            "[    9.1] Oops: 0002 [#1] PREEMPT SMP",
            "[    9.1] BUG: kernel NULL pointer dereference, address: 0",
            "[    9.1] watchdog: BUG: soft lockup - CPU#0 stuck for 60s!",
            "[    9.1] rcu: INFO: rcu_preempt self-detected stall on CPU",
            "[    9.1] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
        ] {
            assert!(is_fault(fault), "{fault}");
        }
        assert!(!is_fault("[    0.1] pci 0000:00:1f.0: quirk applied"));
    }
}
