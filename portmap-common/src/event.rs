//! Samples of dropped packets, and the limit on their number.

use crate::tables::Address6;

/// Bytes of the ring buffer.
pub const RING_BYTES: usize = 256 * 1024;

/// Most samples per slot in one [`SAMPLE_WINDOW`].
pub const MAX_SAMPLES_PER_WINDOW: u32 = 32;

/// Length in nanoseconds of the window in which [`MAX_SAMPLES_PER_WINDOW`] applies.
pub const SAMPLE_WINDOW: u64 = 1_000_000_000;

/// One dropped packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DropEvent {
    /// When it was dropped, in nanoseconds of the monotonic clock.
    pub time: u64,
    /// Drops of this slot without a sample, from the slot's allocation to this event.
    pub suppressed: u64,
    /// Source address; an IPv4 address as `::ffff:a.b.c.d`. Zero if it could not be parsed.
    pub source: Address6,
    /// Destination address, in the same form.
    pub destination: Address6,
    /// Length of the frame in bytes.
    pub length: u32,
    /// Index of the interface at which it was dropped.
    pub ifindex: u32,
    /// Slot of the sender; 0 for a packet from outside.
    pub slot: u16,
    /// Source port; 0 if there is none.
    pub source_port: u16,
    /// Destination port; 0 if there is none.
    pub destination_port: u16,
    /// Ethertype of the frame; 0 if the frame is too short.
    pub ether_type: u16,
    /// IP protocol; 0 if there is none.
    pub protocol: u8,
    /// Number of the [`Reason`](crate::reason::Reason).
    pub reason: u8,
    /// Reserved, 0.
    pub reserved: [u8; 6],
}

/// The limit on the samples of one slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SampleLimiter {
    /// Start of the current window, in nanoseconds of the monotonic clock.
    pub start: u64,
    /// Drops without a sample since the slot's allocation.
    pub suppressed: u64,
    /// Samples taken in the current window.
    pub taken: u32,
    /// Reserved, 0.
    pub reserved: u32,
}

const _: () = assert!(size_of::<DropEvent>() == 72);
const _: () = assert!(size_of::<SampleLimiter>() == 24);
