//! Which port mappings the daemon can serve.
//!
//! [`Mapping`] holds whatever a runtime asks for. [`ports`] is the one place that refuses what the daemon has no means
//! for. A refusal is better than ports that are open to more clients than was asked for, or lead nowhere.

use std::net::IpAddr;

use portmap::model::{PortRange, PortSet};

use crate::error::{CniError, Result};

/// One port that a container publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    /// The port of the host's address.
    pub(crate) host_port: u16,
    /// The port on which the container listens; `None`: the same.
    pub(crate) container_port: Option<u16>,
    /// The host's address; `None`: any.
    pub(crate) host_ip: Option<IpAddr>,
}

/// What the daemon gets for a container's mappings.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Granted {
    /// Static ports. A port has one owner for all protocols, so one that is mapped for several counts once.
    pub(crate) ports: PortSet,
    /// The addresses of the host that mappings name. The daemon refuses those that it does not share.
    pub(crate) addresses: Vec<IpAddr>,
}

/// The ports and addresses of mappings.
///
/// # Errors
///
/// The first mapping that the daemon cannot serve, with what it could.
pub(crate) fn ports(mappings: &[Mapping]) -> Result<Granted> {
    let (mut ranges, mut addresses) = (Vec::new(), Vec::new());
    for &Mapping { host_port, container_port, host_ip } in mappings {
        if let Some(container_port) = container_port.filter(|port| *port != host_port) {
            return Err(CniError::config(format!(
                "host port {host_port} cannot lead to container port {container_port}: portmap gives a container the \
                 host's own ports and rewrites none; publish {host_port}:{host_port}, and have the program listen on \
                 {host_port}"
            )));
        }
        if let Some(address) = host_ip {
            if address.to_canonical().is_loopback() {
                return Err(CniError::config(format!(
                    "host port {host_port} cannot be published on {address} only: a port of a container is open to \
                     clients outside as well; publish it without a host IP, or give the container no port"
                )));
            }
            if !address.to_canonical().is_unspecified() && !addresses.contains(&address.to_canonical()) {
                addresses.push(address.to_canonical());
            }
        }
        ranges.extend(PortRange::new(host_port, host_port));
    }
    Ok(Granted { ports: ranges.into(), addresses })
}
