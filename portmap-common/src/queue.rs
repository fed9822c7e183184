//! Where a packet goes in the queues that limit rates and share the uplink. All of them are told by `skb->priority`: a
//! qdisc that has its upper half as handle takes the lower half for a class or a flow. So no filters are needed.

use crate::slot::SLOTS;

/// Handle of the qdisc that limits a rate: `1:`.
pub const ROOT: u32 = 1 << 16;

/// Handle of the uplink's queue: `504d:`, which nobody gives by hand, so a foreign qdisc around it cannot mistake a flow for
/// a class of its own.
pub const UPLINK: u32 = 0x504d << 16;

/// Class of all packets for which nothing else is said: `1:1`.
pub const LIMITED: u32 = ROOT | 1;

/// Class of what a container sends to the host or another container, if that is not limited: `1:2`. Without such a class
/// it is in the other one.
pub const LOCAL: u32 = ROOT | 2;

/// Flow of the uplink's queue for what the host itself sends.
pub const HOST_FLOW: u16 = 1;
/// Flow of the uplink's queue for the host's ARP, ICMP and neighbour discovery, which others wait for.
pub const CONTROL_FLOW: u16 = 2;
/// Number of flows of the uplink's queue: those two, and one for each container that there can be.
pub const UPLINK_FLOWS: u32 = CONTROL_FLOW as u32 + SLOTS as u32 - 1;

/// The flow of the container in `slot`.
#[inline(always)]
pub const fn flow_of(slot: u16) -> u16 {
    CONTROL_FLOW + slot
}

/// The priority of packets in a flow.
#[inline(always)]
pub const fn priority_of(flow: u16) -> u32 {
    UPLINK | flow as u32
}

/// Whether a packet with this priority is in a flow already.
#[inline(always)]
pub const fn is_in_flow(priority: u32) -> bool {
    priority & 0xffff_0000 == UPLINK
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_has_a_flow() {
        let mut flows: [bool; UPLINK_FLOWS as usize + 1] = [false; UPLINK_FLOWS as usize + 1];
        for flow in (1..SLOTS).map(flow_of).chain([HOST_FLOW, CONTROL_FLOW]) {
            assert!(!core::mem::replace(&mut flows[usize::from(flow)], true), "{flow} is taken twice");
            assert!(is_in_flow(priority_of(flow)));
        }
        assert_eq!(UPLINK_FLOWS, 4097, "what tc shows of the queue");
        assert!(!is_in_flow(0) && !is_in_flow(6) && !is_in_flow(0x2_0001));
    }
}
