//! Routing of packets that leave the machine: interface and next hop.
//!
//! The host's own packets go where the kernel's routing tables (FIB) say, and so do a container's. Where the
//! FIB's answer to every question is known, because the host has one network and one gateway, it is computed
//! from [`Config`], which costs nothing; else the kernel is asked for each packet.
//!
//! The kernel informs the sender of a packet that its neighbour does not answer, but only if it has chosen the
//! neighbour itself. So it does that ([`NextHop::KERNEL`]) for every packet to a neighbour that is not
//! resolved. Whether one is, only the FIB knows. On the direct way it is asked about a neighbour other than
//! the gateway when a connection opens and after [`NEIGHBOUR_CHECK_INTERVAL`]; the daemon ends the direct way
//! when the gateway does not answer.

use portmap_common::{
    flow_state::{NEIGHBOUR_CHECK_INTERVAL, Neighbour},
    reason::Reason,
    tables::{Address4, Config},
};

use crate::{
    fib::{FibAnswer, FibQuestion},
    packet::{IpHeader, IpVersion, ParsedL4, V4, V6, ipv6::Address, l4::L4Kind},
    tables::Tables,
    verdict::NextHop,
};

/// The way of a packet out of the machine.
#[derive(Clone, Copy, Debug)]
pub struct Exit {
    /// Index of the interface.
    pub ifindex: u32,
    /// The neighbour that receives the frame.
    pub next_hop: NextHop,
    /// Whether the FIB was asked for it.
    pub was_asked: bool,
    /// Whether the neighbour is the destination itself and must be resolved for this packet.
    pub is_new_neighbour: bool,
}

/// Routing of one IP version.
pub trait Route: IpVersion {
    /// Returns whether the FIB's answers are known from the configuration.
    fn is_direct(config: &Config) -> bool;

    /// Checks that a packet can leave the machine for this destination. The error is the reason to drop.
    fn check_unicast(destination: Self::Address, tables: &impl Tables) -> Result<(), Reason>;

    /// Returns whether a destination is in the uplink's network.
    fn is_on_link(destination: Self::Address, config: &Config) -> bool;

    /// Returns the gateway; zero if there is none.
    fn gateway(config: &Config) -> Self::Address;

    /// Returns an address as a next hop.
    fn next_hop(address: Self::Address) -> NextHop;
}

/// Returns the way of a container's packet to an outside destination. `known` is the neighbour's entry if the
/// destination is a neighbour on the direct way; `opens` says whether the packet opens a connection. The
/// error is the reason to drop.
#[inline(always)]
pub fn exit<V: Route>(
    tables: &impl Tables,
    ip: &IpHeader<V>,
    l4: &ParsedL4<V>,
    known: Option<Neighbour>,
    opens: impl FnOnce() -> bool,
) -> Result<Exit, Reason> {
    V::check_unicast(ip.destination, tables)?;
    let config = tables.config();
    if V::is_direct(config) {
        if !V::is_on_link(ip.destination, config) {
            let gateway = V::gateway(config);
            if gateway == V::Address::default() {
                return Err(Reason::NoRoute);
            }
            return Ok(Exit {
                ifindex: config.uplink_ifindex,
                next_hop: V::next_hop(gateway),
                was_asked: false,
                is_new_neighbour: false,
            });
        }
        let is_checked =
            known.is_some_and(|known| tables.now() <= known.checked.wrapping_add(NEIGHBOUR_CHECK_INTERVAL));
        if is_gateway::<V>(ip.destination, config) || (is_checked && !opens()) {
            return Ok(Exit {
                ifindex: config.uplink_ifindex,
                next_hop: V::next_hop(ip.destination),
                was_asked: false,
                is_new_neighbour: false,
            });
        }
    }
    // The ports of an error are those of the packet that it is about.
    let has_ports = l4.info.kind == L4Kind::Ports;
    let ports = l4.info.ports;
    let answer = tables.fib(&FibQuestion {
        source: V::to_mapped(ip.source),
        destination: V::to_mapped(ip.destination),
        version: V::NUMBER,
        protocol: l4.datagram_protocol,
        source_port: if has_ports { ports.source } else { 0 },
        destination_port: if has_ports { ports.destination } else { 0 },
    });
    if answer.outcome == FibAnswer::NO_ROUTE {
        return Err(Reason::NoRoute);
    }
    let is_resolved = answer.outcome == FibAnswer::RESOLVED;
    Ok(Exit {
        ifindex: answer.ifindex,
        next_hop: if is_resolved { answer.next_hop } else { NextHop::KERNEL },
        was_asked: true,
        is_new_neighbour: !is_resolved && answer.next_hop == V::next_hop(ip.destination),
    })
}

/// Returns whether a destination is a neighbour on the direct way, other than the gateway.
#[inline(always)]
pub fn is_direct_neighbour<V: Route>(destination: V::Address, config: &Config) -> bool {
    V::is_direct(config) && V::is_on_link(destination, config) && !is_gateway::<V>(destination, config)
}

#[inline(always)]
fn is_gateway<V: Route>(address: V::Address, config: &Config) -> bool {
    address == V::gateway(config)
}

impl Route for V4 {
    #[inline(always)]
    fn is_direct(config: &Config) -> bool {
        config.direct4 != 0
    }

    #[inline(always)]
    fn check_unicast(destination: u32, tables: &impl Tables) -> Result<(), Reason> {
        let config = tables.config();
        // 0.0.0.0/8 is no destination; 224.0.0.0/4 and above are multicast, reserved and the limited
        // broadcast.
        let first = destination >> 24;
        if first == 0 || first >= 224 {
            return Err(Reason::Destination);
        }
        // The kernel would send a broadcast frame for the broadcast address of one of the host's networks.
        if config.broadcasts != 0 && tables.is_broadcast(Address4 { bytes: destination.to_be_bytes() }) {
            return Err(Reason::Destination);
        }
        // The lowest and the highest address of a network are broadcasts, except in networks of one or two
        // addresses.
        let mask = u32::from_be_bytes(config.netmask.bytes);
        let host_bits = destination & !mask;
        if Self::is_on_link(destination, config) && !mask > 1 && (host_bits == 0 || host_bits == !mask) {
            return Err(Reason::Destination);
        }
        Ok(())
    }

    #[inline(always)]
    fn is_on_link(destination: u32, config: &Config) -> bool {
        let mask = u32::from_be_bytes(config.netmask.bytes);
        (destination ^ u32::from_be_bytes(config.host_ip.bytes)) & mask == 0
    }

    #[inline(always)]
    fn gateway(config: &Config) -> u32 {
        u32::from_be_bytes(config.gateway.bytes)
    }

    #[inline(always)]
    fn next_hop(address: u32) -> NextHop {
        NextHop::v4(address.to_be_bytes())
    }
}

impl Route for V6 {
    #[inline(always)]
    fn is_direct(config: &Config) -> bool {
        config.direct6 != 0
    }

    #[inline(always)]
    fn check_unicast(destination: Address, _tables: &impl Tables) -> Result<(), Reason> {
        if is_unicast6(destination) { Ok(()) } else { Err(Reason::Destination) }
    }

    #[inline(always)]
    fn is_on_link(destination: Address, config: &Config) -> bool {
        let (host, mask) = (Address::from_bytes(config.host_ip6), Address::from_bytes(config.netmask6));
        (destination.high ^ host.high) & mask.high | (destination.low ^ host.low) & mask.low == 0
    }

    #[inline(always)]
    fn gateway(config: &Config) -> Address {
        Address::from_bytes(config.gateway6)
    }

    #[inline(always)]
    fn next_hop(address: Address) -> NextHop {
        NextHop::v6(address.to_bytes().bytes)
    }
}

/// Returns whether an address can be the destination of a packet that leaves the host: it is not unspecified,
/// multicast, link-local or a mapped IPv4 address.
#[inline(always)]
const fn is_unicast6(address: Address) -> bool {
    let is_multicast = address.high >> 56 == 0xff;
    let is_link_local = address.high >> 54 == 0xfe80 >> 6;
    !(address.is_zero() || is_multicast || is_link_local || address.is_mapped())
}
