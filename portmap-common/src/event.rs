//! Samples of dropped packets, for people who want to see them happen.

use crate::tables::Address6;

/// Bytes of the ring buffer.
pub const RING_BYTES: usize = 256 * 1024;

/// Samples of one slot that are taken in one [`WINDOW`] at most.
pub const SAMPLES: u32 = 32;

/// Nanoseconds after which a slot's budget is whole again.
pub const WINDOW: u64 = 1_000_000_000;

/// High half of the mark that a packet carries when a program drops it; the low half is the reason's number.
/// Tracers of the kernel's drops (`skb:kfree_skb` and the like) tell portmap's drops from others by it.
pub const DROP_MARK: u32 = 0x504d_0000;

/// One dropped packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DropEvent {
    /// When, in nanoseconds of the monotonic clock.
    pub time: u64,
    /// Samples of this slot that were left out before this one, since the slot was taken.
    pub suppressed: u64,
    /// Source address; an IPv4 address as `::ffff:a.b.c.d`. Zero if the packet has none that could be read.
    pub source: Address6,
    /// Destination address, likewise.
    pub destination: Address6,
    /// Length of the frame in bytes.
    pub length: u32,
    /// Interface at which it was dropped.
    pub ifindex: u32,
    /// Whose packet it was; 0 for one from outside.
    pub slot: u16,
    /// Source port; 0 if there is none.
    pub source_port: u16,
    /// Destination port; 0 if there is none.
    pub destination_port: u16,
    /// Ethertype of the frame; 0 if it is too short to have one.
    pub ether_type: u16,
    /// IP protocol; 0 if there is none.
    pub protocol: u8,
    /// Number of the [`Reason`](crate::reason::Reason).
    pub reason: u8,
    /// Reserved, 0.
    pub reserved: [u8; 6],
}

/// How many samples of a slot may still be taken.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventBudget {
    /// Start of the running window, in nanoseconds of the monotonic clock.
    pub start: u64,
    /// Samples left out since the slot was taken.
    pub suppressed: u64,
    /// Samples taken in the running window.
    pub taken: u32,
    /// Reserved, 0.
    pub reserved: u32,
}

const _: () = assert!(size_of::<DropEvent>() == 72);
const _: () = assert!(size_of::<EventBudget>() == 24);
