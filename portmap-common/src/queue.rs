//! Classes and flows of the qdiscs that limit rates and share the uplink, and how `skb->priority` selects
//! them.
//!
//! A qdisc whose handle is the priority's upper half takes the lower half as class or flow, so no filters are
//! needed.

use crate::slot::SLOTS;

/// Handle of a rate-limiting qdisc: `1:`.
pub const ROOT: u32 = 1 << 16;

/// Handle of the uplink's qdisc: `504d:`. Operators do not choose this handle by hand, so a qdisc of another
/// tool cannot mistake a flow for one of its classes.
pub const UPLINK: u32 = 0x504d << 16;

/// Default class: `1:1`.
pub const LIMITED: u32 = ROOT | 1;

/// Class of packets from a container to the host or to other containers, if those are not limited: `1:2`. If
/// the class does not exist, they are in [`LIMITED`].
pub const LOCAL: u32 = ROOT | 2;

/// Flow of the uplink's qdisc for the host's own packets.
pub const HOST_FLOW: u16 = 1;
/// Flow of the uplink's qdisc for the host's ARP, ICMP and neighbour discovery, because other traffic waits
/// for those.
pub const CONTROL_FLOW: u16 = 2;
/// Number of flows of the uplink's qdisc: those two, and one for each slot of a container.
pub const UPLINK_FLOWS: u32 = CONTROL_FLOW as u32 + SLOTS as u32 - 1;

/// Returns the flow of the container in `slot`.
#[inline(always)]
pub const fn flow_of(slot: u16) -> u16 {
    CONTROL_FLOW + slot
}

/// Returns the priority of packets in a flow.
#[inline(always)]
pub const fn priority_of(flow: u16) -> u32 {
    UPLINK | flow as u32
}

/// Returns whether a packet with this priority has a flow already.
#[inline(always)]
pub const fn is_in_flow(priority: u32) -> bool {
    priority & 0xffff_0000 == UPLINK
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_flows_are_distinct() {
        let mut flows: [bool; UPLINK_FLOWS as usize + 1] = [false; UPLINK_FLOWS as usize + 1];
        for flow in (1..SLOTS).map(flow_of).chain([HOST_FLOW, CONTROL_FLOW]) {
            assert!(!core::mem::replace(&mut flows[usize::from(flow)], true), "{flow} is taken twice");
            assert!(is_in_flow(priority_of(flow)));
        }
        assert_eq!(UPLINK_FLOWS, 4097, "the number that tc shows");
        assert!(!is_in_flow(0) && !is_in_flow(6) && !is_in_flow(0x2_0001));
    }
}
