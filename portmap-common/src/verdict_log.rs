//! The log of verdicts, which programs with the feature `datapath-log` write.

use crate::event::DropEvent;

/// Most log records in one [`LOG_WINDOW`], on all CPUs together. It is below the limit of journald.
pub const MAX_RECORDS_PER_WINDOW: u32 = 100;

/// Length in nanoseconds of the window in which [`MAX_RECORDS_PER_WINDOW`] applies.
pub const LOG_WINDOW: u64 = 1_000_000_000;

/// Selects the verdicts that are logged. Each part that is not 0 must match.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogFilter {
    /// Slot of the sender, the receiver, or the owner of the destination port; 0: any.
    pub slot: u32,
    /// Source or destination port; 0: any.
    pub port: u32,
}

impl LogFilter {
    /// Returns whether no verdict is logged.
    #[inline(always)]
    pub const fn is_off(self) -> bool {
        self.slot == 0 && self.port == 0
    }
}

/// The limit on log records.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogLimiter {
    /// Start of the current window, in nanoseconds of the monotonic clock.
    pub start: u64,
    /// Verdicts that the filter has selected, with and without a record.
    pub selected: u64,
    /// Records in the current window.
    pub taken: u32,
    /// Reserved, 0.
    pub reserved: u32,
}

/// One log record.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerdictRecord {
    /// The packet. Its time, slot and reason are 0.
    pub packet: DropEvent,
    /// The verdict, as the verdict codec of `portmap-ebpf` encodes it.
    pub verdict: [u32; 7],
    /// Position of the hook's program in [`PROGRAMS`](crate::names::PROGRAMS).
    pub program: u32,
}

const _: () = assert!(size_of::<LogFilter>() == 8);
const _: () = assert!(size_of::<LogLimiter>() == 24);
const _: () = assert!(size_of::<VerdictRecord>() == size_of::<DropEvent>() + 28 + 4);
