//! Routing of packets that leave the machine: the next hop of a destination.

use portmap_common::{
    reason::Reason,
    tables::{Address4, Config},
};

use crate::{
    packet::{IpVersion, V4, V6, ipv6::Address},
    tables::Tables,
    verdict::NextHop,
};

/// Routing of one IP version.
pub trait Route: IpVersion {
    /// Returns the neighbour through which the host reaches an outside destination. The error is the reason
    /// to drop.
    fn next_hop(destination: Self::Address, tables: &impl Tables) -> Result<NextHop, Reason>;

    /// Returns whether an address is on the uplink's network and is not the gateway's.
    fn is_on_link_host(address: Self::Address, config: &Config) -> bool;
}

impl Route for V4 {
    #[inline(always)]
    fn next_hop(destination: u32, tables: &impl Tables) -> Result<NextHop, Reason> {
        let config = tables.config();
        // 0.0.0.0/8 is no destination; 224.0.0.0/4 and above are multicast, reserved and the limited
        // broadcast.
        let first = destination >> 24;
        if first == 0 || first >= 224 {
            return Err(Reason::Destination);
        }
        // The kernel would send a broadcast frame for the broadcast address of a network inside the shared
        // one.
        if config.broadcasts != 0 && tables.is_broadcast(Address4 { bytes: destination.to_be_bytes() }) {
            return Err(Reason::Destination);
        }
        let mask = u32::from_be_bytes(config.netmask.bytes);
        if !is_on_link4(destination, config) {
            let gateway = u32::from_be_bytes(config.gateway.bytes);
            return if gateway == 0 { Err(Reason::NoRoute) } else { Ok(NextHop::V4(gateway.to_be_bytes())) };
        }
        // The lowest and the highest address of a network are broadcasts, except in networks of one or two
        // addresses.
        let host_bits = destination & !mask;
        if !mask > 1 && (host_bits == 0 || host_bits == !mask) {
            return Err(Reason::Destination);
        }
        Ok(NextHop::V4(destination.to_be_bytes()))
    }

    #[inline(always)]
    fn is_on_link_host(address: u32, config: &Config) -> bool {
        is_on_link4(address, config) && address != u32::from_be_bytes(config.gateway.bytes)
    }
}

impl Route for V6 {
    #[inline(always)]
    fn next_hop(destination: Address, tables: &impl Tables) -> Result<NextHop, Reason> {
        let config = tables.config();
        if !is_unicast6(destination) {
            return Err(Reason::Destination);
        }
        if is_on_link6(destination, config) {
            return Ok(NextHop::V6(destination.to_bytes().bytes));
        }
        let gateway = Address::from_bytes(config.gateway6);
        if gateway.is_zero() { Err(Reason::NoRoute) } else { Ok(NextHop::V6(gateway.to_bytes().bytes)) }
    }

    #[inline(always)]
    fn is_on_link_host(address: Address, config: &Config) -> bool {
        is_on_link6(address, config) && address != Address::from_bytes(config.gateway6)
    }
}

#[inline(always)]
fn is_on_link4(address: u32, config: &Config) -> bool {
    let mask = u32::from_be_bytes(config.netmask.bytes);
    (address ^ u32::from_be_bytes(config.host_ip.bytes)) & mask == 0
}

#[inline(always)]
fn is_on_link6(address: Address, config: &Config) -> bool {
    let (host, mask) = (Address::from_bytes(config.host_ip6), Address::from_bytes(config.netmask6));
    (address.high ^ host.high) & mask.high | (address.low ^ host.low) & mask.low == 0
}

/// Returns whether an address can be the destination of a packet that leaves the host: it is not unspecified,
/// multicast, link-local or a mapped IPv4 address.
#[inline(always)]
const fn is_unicast6(address: Address) -> bool {
    let is_multicast = address.high >> 56 == 0xff;
    let is_link_local = address.high >> 54 == 0xfe80 >> 6;
    !(address.is_zero() || is_multicast || is_link_local || address.is_mapped())
}
