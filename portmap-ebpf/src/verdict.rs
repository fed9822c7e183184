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

/// The decision on one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not ours: other programs and the stack behind the hook see the packet as if portmap were not there.
    Continue(Reason),
    /// Not ours any more: another hook has decided on this packet and counted it.
    Decided,
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
    },
    /// From the container in `slot` out of the uplink.
    ToOutside {
        /// The sender.
        slot: u16,
        /// The neighbour that gets the frame.
        next_hop: [u8; 4],
    },
    /// From the container in this slot into the host's own stack, through its loopback device.
    ToHost(u16),
    /// Out of a container's loopback device to its `eth0`; the hook behind that one decides and counts.
    ToEth0(u32),
}
