//! What a hook decides, each decision with all that is needed to carry it out and to count it once.

use portmap_common::{reason::Reason, tables::PortEntry};

/// Where a packet for a container comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// From the uplink.
    Outside,
    /// From a process of the host.
    Host,
    /// From the container in this slot.
    Container(u16),
}

/// A neighbour on the uplink's network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextHop {
    /// By its IPv4 address.
    V4([u8; 4]),
    /// By its IPv6 address.
    V6([u8; 16]),
}

/// An echo message, in the packet or quoted by it, that gets another identifier on its way.
///
/// No `Option` goes with it: of one, the compiler makes code that computes with registers which nobody has set, and the
/// verifier refuses that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpIdRewrite {
    /// Where the message starts, in bytes from the start of the frame.
    pub message: usize,
    /// The identifier that it has.
    pub from: u16,
    /// The identifier that it gets.
    pub to: u16,
}

impl IcmpIdRewrite {
    /// No change.
    pub const NONE: Self = Self { message: 0, from: 0, to: 0 };

    /// The change from one identifier to another; none if they are the same.
    #[inline(always)]
    pub const fn new(message: usize, from: u16, to: u16) -> Self {
        if from == to { Self::NONE } else { Self { message, from, to } }
    }

    /// Whether nothing changes.
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        self.from == self.to
    }
}

/// The decision on one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not ours: other programs and the stack behind the hook see the packet as if portmap were not there.
    Continue(Reason),
    /// Not ours any more, or nothing to decide on: another hook counts the packet.
    Decided,
    /// From the host out of the uplink, in this flow of its queue.
    InFlow(u16),
    /// The packet stays inside the container in this slot.
    Own(u16),
    /// The packet goes no further. It counts for `slot`: the sender, or the host for a packet from outside.
    Drop {
        /// Whose packet it was.
        slot: u16,
        /// Why it is dropped.
        reason: Reason,
    },
    /// To the container that owns the destination port.
    ToContainer {
        /// Where it comes from.
        origin: Origin,
        /// The entry of the destination port.
        owner: PortEntry,
        /// Whether it is to or from `::1`, which Linux accepts on a loopback device only.
        by_loopback: bool,
        /// What is changed in it.
        renumber: IcmpIdRewrite,
    },
    /// From the container in `slot` out of the uplink.
    ToOutside {
        /// The sender.
        slot: u16,
        /// The neighbour that gets the frame.
        next_hop: NextHop,
        /// What is changed in it.
        renumber: IcmpIdRewrite,
    },
    /// From the container in this slot into the host's own stack, through its loopback device.
    ToHost(u16),
    /// Out of a container's loopback device to its `eth0`; the hook behind that one decides and counts.
    ToEth0(u32),
    /// From a container's `eth0` into its loopback device; it is counted already.
    ToLoopback,
}
