//! Time to publish a container's ports: by stores into the mapped table, and by one system call for each
//! port.

use std::time::Instant;

use anyhow::{Context as _, Result};
use aya::maps::{Array, Map, MapData};
use portmap_common::{names, tables::PortEntry};
use serde::{Deserialize, Serialize};

use crate::classifier::{layout, statistics, world::World};

/// Numbers of ports to publish.
const PORTS: [u16; 2] = [1_024, 10_000];
const REPEAT: usize = 101;
const FIRST: u16 = 20_000;

/// Times to publish a number of ports, in microseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Published {
    pub(crate) ports: u16,
    pub(crate) mapped_median: f64,
    pub(crate) mapped_minimum: f64,
    pub(crate) syscalls_median: f64,
    pub(crate) syscalls_minimum: f64,
}

/// Measures both ways.
pub(crate) fn run(world: &World) -> Result<Vec<Published>> {
    let pin = world.pins.map(names::MAP_PORTS);
    let map = MapData::from_pin(&pin).with_context(|| format!("cannot open {}", pin.display()))?;
    let mut map: Array<MapData, PortEntry> = Array::try_from(Map::Array(map))?;
    PORTS
        .into_iter()
        .map(|ports| {
            let range = FIRST..FIRST + ports;
            let mapped = repeat(|owner| {
                range.clone().for_each(|port| world.ports.set(port, owner));
                Ok(())
            })?;
            let syscalls = repeat(|owner| {
                range.clone().try_for_each(|port| map.set(u32::from(port), owner, 0))?;
                Ok(())
            })?;
            Ok(Published {
                ports,
                mapped_median: statistics::median(&mapped),
                mapped_minimum: statistics::minimum(&mapped),
                syscalls_median: statistics::median(&syscalls),
                syscalls_minimum: statistics::minimum(&syscalls),
            })
        })
        .collect()
}

/// Measures several changes of owner, in microseconds.
fn repeat(mut publish: impl FnMut(PortEntry) -> Result<()>) -> Result<Vec<f64>> {
    let owners = [layout::entry(1), layout::entry(2)];
    owners
        .into_iter()
        .cycle()
        .take(REPEAT)
        .map(|owner| {
            let start = Instant::now();
            publish(owner)?;
            Ok(start.elapsed().as_secs_f64() * 1e6)
        })
        .collect()
}
