//! The guest kernel's own messages: what in them is a fault of the kernel.

use std::{fs, path::PathBuf};

use super::console;

/// Words by which a kernel begins the report of a fault.
const FAULTS: [&str; 6] =
    ["Kernel panic", "Oops: ", "BUG: ", "kernel BUG at", "self-detected stall", "detected stalls on CPUs"];

/// How many lines of the log explain a guest that ended too early.
const EXPLAINING_LINES: usize = 25;

/// A file that collects the kernel's messages.
pub(super) struct KernelLog {
    /// The file.
    pub file: PathBuf,
}

impl KernelLog {
    /// The first message of a fault.
    pub(super) fn fault(&self) -> Option<String> {
        self.lines().into_iter().find(|line| is_fault(line))
    }

    /// The last messages, one a line.
    pub(super) fn end(&self) -> String {
        let lines = self.lines();
        lines[lines.len().saturating_sub(EXPLAINING_LINES)..].join("\n")
    }

    fn lines(&self) -> Vec<String> {
        let content = fs::read(&self.file).unwrap_or_default();
        String::from_utf8_lossy(&content).lines().map(console::clean).collect()
    }
}

fn is_fault(line: &str) -> bool {
    FAULTS.iter().any(|fault| line.contains(fault))
}

#[cfg(test)]
mod tests {
    use super::*;

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
