//! Network settings below `/proc/sys/net`, those of the calling thread's namespace.

use std::{fs, path::PathBuf};

use crate::{
    error::{Context as _, Result},
    fault,
    ports::{PortRange, PortSet},
};

fn path(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys/net").join(name)
}

/// The value of a setting, without white space around it.
pub fn read(name: &str) -> Result<String> {
    let path = path(name);
    let value = fault::step("read a setting").and_then(|()| fs::read_to_string(&path));
    let value = value.context(|| format!("cannot read {}", path.display()))?;
    Ok(value.trim().to_owned())
}

/// The value of a setting that not every kernel has.
pub fn read_if_present(name: &str) -> Result<Option<String>> {
    if path(name).exists() { read(name).map(Some) } else { Ok(None) }
}

/// Changes a setting.
pub fn write(name: &str, value: &str) -> Result<()> {
    let path = path(name);
    let written = fault::step("write a setting").and_then(|()| fs::write(&path, value));
    written.context(|| format!("cannot set {} to {value}", path.display()))
}

/// Changes a setting that not every kernel has.
pub fn write_if_present(name: &str, value: &str) -> Result<()> {
    if path(name).exists() { write(name, value) } else { Ok(()) }
}

/// Name of a setting of one interface, or of `all` of them.
pub fn of_interface(family: &str, interface: &str, setting: &str) -> String {
    format!("{family}/conf/{interface}/{setting}")
}

const RESERVED_PORTS: &str = "ipv4/ip_local_reserved_ports";

/// The ports that the namespace does not give out by itself although its range has them.
pub fn reserved_ports() -> Result<PortSet> {
    let value = read(RESERVED_PORTS)?;
    value.parse().map_err(|error| {
        crate::error::Error::failure(format!("/proc/sys/net/{RESERVED_PORTS} makes no sense: {error}"))
    })
}

/// Sets the ports that the namespace does not give out by itself.
pub fn set_reserved_ports(ports: &PortSet) -> Result<()> {
    // Without the end of the line, an empty list would not even be written.
    write(RESERVED_PORTS, &format!("{ports}\n"))
}

const LOCAL_PORT_RANGE: &str = "ipv4/ip_local_port_range";

/// The ports that the namespace gives out by itself.
pub fn local_port_range() -> Result<PortRange> {
    let value = read(LOCAL_PORT_RANGE)?;
    let mut bounds = value.split_whitespace().map(str::parse::<u16>);
    let range = match (bounds.next(), bounds.next(), bounds.next()) {
        (Some(Ok(first)), Some(Ok(last)), None) => PortRange::new(first, last),
        _ => None,
    };
    range.ok_or_else(|| {
        crate::error::Error::failure(format!(
            "/proc/sys/net/{LOCAL_PORT_RANGE} is {value:?}: expected two ports"
        ))
    })
}

/// Sets the ports that the namespace gives out by itself.
pub fn set_local_port_range(range: PortRange) -> Result<()> {
    write(LOCAL_PORT_RANGE, &format!("{} {}", range.first(), range.last()))
}
