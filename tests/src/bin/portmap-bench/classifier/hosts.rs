//! Hosts that are not simple: with many addresses, or with routes that only the kernel's FIB knows.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr},
};

use anyhow::Result;
use portmap::kernel::sysctl::{self, Sysctls};
use portmap_common::tables::Config;

use crate::classifier::{
    iproute2,
    world::{Classifier, GATEWAY, HOST, World},
};

/// Number of addresses that the host has besides the primary one.
pub(crate) const ADDRESSES: u16 = 1_000;
/// Number of routes besides that of the host's network and the default route.
pub(crate) const ROUTES: u16 = 10_000;
/// Any unicast MAC address.
const GATEWAY_MAC: &str = "02:00:00:00:01:fe";

/// The host of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    /// One address and one gateway, which the programs know.
    Simple,
    /// [`ADDRESSES`] further addresses.
    Addresses,
    /// [`ROUTES`] further routes, so that the programs ask the kernel.
    Routes,
}

/// Returns a further address of the host.
pub(crate) fn further_address() -> Ipv4Addr {
    address(ADDRESSES / 2)
}

fn address(number: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 1, 0, 1).to_bits() + u32::from(number))
}

/// Gives the host the addresses in the maps, and the routes in the kernel. The receive path must not be measured any
/// more, as the kernel has the host's address from now on.
pub(crate) fn prepare(world: &World) -> Result<()> {
    let further: BTreeSet<IpAddr> = (0..ADDRESSES).map(|number| IpAddr::V4(address(number))).collect();
    world.maps.set_addresses(&further)?;
    Sysctls::open()?.write(&sysctl::of_interface("ipv4", "lo", "forwarding"), "1")?;
    let uplink = Classifier::Portmap.interface();
    let mut text = format!(
        "address add {HOST}/24 dev {uplink}\nroute add default via {GATEWAY} dev {uplink}\n\
         neighbour replace {GATEWAY} lladdr {GATEWAY_MAC} dev {uplink} nud permanent\n"
    );
    for number in 0..ROUTES {
        let [high, low] = number.to_be_bytes();
        let _ = writeln!(text, "route add 172.{}.{low}.0/25 via {GATEWAY} dev {uplink}", 16 + high);
    }
    iproute2::batch("ip", &text)
}

impl Host {
    /// Tells the programs about this host.
    pub(crate) fn publish(self, world: &World) -> Result<()> {
        let simple = world.config;
        let config = match self {
            Self::Simple => simple,
            Self::Addresses => Config { more_addresses4: u32::from(ADDRESSES), ..simple },
            Self::Routes => Config { direct4: 0, ..simple },
        };
        world.maps.set_config(&config)?;
        Ok(())
    }
}
