//! Faults in the log of the guest's kernel.

use std::{fs, path::PathBuf};

use super::console;

/// Words at the beginning of a kernel's fault report.
const FAULTS: [&str; 6] =
    ["Kernel panic", "Oops: ", "BUG: ", "kernel BUG at", "self-detected stall", "detected stalls on CPUs"];

/// Lines of the log that are shown if the guest ended early without a fault.
const EXPLAINING_LINES: usize = 25;
/// Lines of a fault report that are shown: registers and call traces.
const FAULT_LINES: usize = 90;

/// A file that collects the kernel's messages.
pub(super) struct KernelLog {
    /// The file.
    pub file: PathBuf,
}

impl KernelLog {
    /// Returns whether the emulator caused the fault: it ran a stale `int3` of the kernel's `text_poke`.
    ///
    /// A kernel that patches its own code writes a breakpoint (`int3`, byte `cc`) and removes it when every
    /// CPU has seen the change. An emulator that translates the code on one CPU while another writes to it
    /// may keep the translation with the breakpoint. The kernel then reports a breakpoint that it does not
    /// have. The report shows the code in memory, with the byte after the breakpoint in angle brackets: for a
    /// breakpoint in memory, `cc` precedes it.
    pub(super) fn is_stale_breakpoint(&self) -> bool {
        let mut report = self.lines().into_iter().skip_while(|line| !line.contains("Oops: int3"));
        report.find_map(|line| byte_before_fault(&line)).is_some_and(|byte| byte != "cc")
    }

    /// Returns the first line of a fault report.
    pub(super) fn fault(&self) -> Option<String> {
        self.lines().into_iter().find(|line| is_fault(line))
    }

    /// Returns the lines that explain the end of the guest: the first fault report, or the last lines.
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

/// Returns the byte before the one in angle brackets, in a report's line of code.
fn byte_before_fault(line: &str) -> Option<String> {
    let (_, code) = line.split_once("Code: ")?;
    let (before, _) = code.split_once('<')?;
    before.split_whitespace().next_back().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_log_tells_a_stale_breakpoint_of_the_emulator() {
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
    fn kernel_log_tells_faults_from_other_messages() {
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
