//! Identities of processes.

/// A process: its number and start time, because the kernel reuses numbers, though not within the same tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its process id.
    pub pid: u32,
    /// Its start time, in clock ticks since boot.
    pub started: u64,
}
