//! Section "Access to the host": packets of containers to the host's ports.

use portmap_common::{flow_state::HostFlowKey, tables::Config};
use portmap_ebpf::Tables as _;

use super::Decider;
use crate::{
    reader::{Content, Packet, Part, mapped},
    tcp::Segment,
};

/// Nanoseconds for which a container may reply to the host.
const FLOW_LIFETIME: u64 = 180_000_000_000;

impl Decider<'_> {
    /// Returns ports and protocol of a packet that contains its transport header.
    fn transport(packet: &Packet<'_>, content: Content) -> Option<(u16, u16, u8)> {
        let Content::Ports(from, to) = content else { return None };
        let behind = packet.behind()?;
        let is_there = !matches!(behind.part, Part::Subsequent(_));
        is_there.then_some((from, to, behind.protocol))
    }

    /// Returns whether a container must not send this packet to the host's port.
    pub(super) fn is_refused(&self, packet: &Packet<'_>, slot: u16, content: Content) -> bool {
        let Some((from, to, protocol)) = Self::transport(packet, content) else { return false };
        let Config { listener, reach, .. } = self.config;
        let leads_there = packet.is_v6 || packet.destination == mapped([127, 0, 0, 1]);
        if protocol == 6 && u32::from(to) == listener.port && leads_there && to != 0 {
            return true;
        }
        if reach == 0 || self.world.is_host_port_allowed(to) {
            return false;
        }
        if let Some(segment) = packet.behind().and_then(|behind| Segment::of(packet, behind)) {
            return segment.opens();
        }
        let seen = self.memory.host_flows.get(&flow(packet, slot, (from, to), protocol));
        seen.is_none_or(|seen| self.world.now - seen > FLOW_LIFETIME)
    }

    /// Records a packet of the host's to a container that may then reply.
    pub(super) fn allow_reply(&mut self, packet: &Packet<'_>, slot: u16, content: Content) {
        if let Some((from, to, protocol)) = Self::transport(packet, content)
            && protocol != 6
            && self.config.reach != 0
            && !self.world.is_host_port_allowed(from)
        {
            self.host_flow = Some(flow(packet, slot, (to, from), protocol));
        }
    }
}

/// Returns the key of a flow between a container's port and one of the host's.
fn flow(
    packet: &Packet<'_>,
    slot: u16,
    (container_port, host_port): (u16, u16),
    protocol: u8,
) -> HostFlowKey {
    let version = if packet.is_v6 { 6 } else { 4 };
    HostFlowKey { slot, container_port, host_port, protocol: protocol.into(), version }
}
