//! What containers may reach of the host and of each other, as plain values and in the form that the programs
//! use.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use portmap_common::tables::{
    Address4, Address6, Config, HOST_ACCESS_LIMITED, HOST_ACCESS_WORDS, LOOPBACK_PRIVATE, Listener,
};

use super::ports::PortSet;
use crate::error::{Error, Result};

/// Scope of a container's loopback addresses, 127.0.0.0/8 and `::1`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Loopback {
    /// Shared with the host and all other containers: a packet reaches the owner of the destination port.
    #[default]
    Shared,
    /// Private: packets from or to these addresses neither leave nor enter the container.
    Private,
}

impl Loopback {
    /// The name that flags, commands and the API use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Private => "private",
        }
    }

    /// The flag in the container's port entries.
    pub const fn flag(self) -> u16 {
        match self {
            Self::Shared => 0,
            Self::Private => LOOPBACK_PRIVATE,
        }
    }
}

/// Which of the host's ports containers may reach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HostAccess {
    /// All ports.
    #[default]
    All,
    /// Only these ports.
    Ports(PortSet),
}

impl FromStr for Loopback {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        [Self::Shared, Self::Private].into_iter().find(|loopback| loopback.name() == text).ok_or_else(|| {
            Error::usage(format!("{text:?} is not a loopback scope: expected shared or private"))
        })
    }
}

impl FromStr for HostAccess {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let ranges = match text.trim() {
            "all" => return Ok(Self::All),
            "none" => return Ok(Self::Ports(PortSet::default())),
            text => text
                .strip_prefix("ports")
                .map_or(text, |rest| rest.trim_start_matches([' ', ':', '=']).trim()),
        };
        match ranges.parse::<PortSet>() {
            Ok(ports) if !ports.is_empty() && !ports.contains(0) => Ok(Self::Ports(ports)),
            _ => Err(Error::usage(format!(
                "--host-access {text:?}: expected all, none, or ports between 1 and 65535 such as 53,8080-8090"
            ))),
        }
    }
}

impl fmt::Display for HostAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Ports(ports) if ports.is_empty() => f.write_str("none"),
            Self::Ports(ports) => ports.fmt(f),
        }
    }
}

/// What the daemon's flags let containers reach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Loopback scope of containers that were added without one.
    pub loopback: Loopback,
    /// Which of the host's ports containers may reach.
    pub host: HostAccess,
    /// The daemon's HTTP listener, if containers may not reach it.
    pub listener: Option<SocketAddr>,
}

impl Reach {
    /// Returns `config` with these restrictions.
    pub fn apply_to(&self, config: Config) -> Config {
        let reach = if self.host == HostAccess::All { 0 } else { HOST_ACCESS_LIMITED };
        Config { reach, listener: self.listener.map_or(Listener::NONE, entry), ..config }
    }

    /// Bitmap of the host's ports that containers may reach, as in `pm_host_access`; `None` if all ports are
    /// open.
    pub fn host_ports(&self) -> Option<[u64; HOST_ACCESS_WORDS]> {
        let HostAccess::Ports(ports) = &self.host else { return None };
        let mut words = [0; HOST_ACCESS_WORDS];
        for port in ports.iter() {
            words[usize::from(port / 64)] |= 1 << (port % 64);
        }
        Some(words)
    }
}

/// Local destinations by which a listener is reachable.
fn entry(listener: SocketAddr) -> Listener {
    // Matches no address: a zero mask with a non-zero address.
    let nowhere = Listener {
        address4: Address4::new([0xff; 4]),
        address6: Address6::new([0xff; 16]),
        port: listener.port().into(),
        ..Listener::NONE
    };
    match listener.ip().to_canonical() {
        IpAddr::V4(address) if address.is_unspecified() => {
            Listener { address4: Address4::default(), ..nowhere }
        }
        IpAddr::V4(address) => {
            let (address4, mask4) = (Address4::new(address.octets()), Address4::new([0xff; 4]));
            Listener { address4, mask4, ..nowhere }
        }
        // A socket on `::` accepts IPv4, too.
        IpAddr::V6(address) if address.is_unspecified() => Listener { port: nowhere.port, ..Listener::NONE },
        IpAddr::V6(address) => {
            let (address6, mask6) = (Address6::new(address.octets()), Address6::new([0xff; 16]));
            Listener { address6, mask6, ..nowhere }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_access_parses_every_form() {
        for (text, shown) in [
            ("all", "all"),
            ("none", "none"),
            ("53", "53"),
            ("ports 53,8080-8090", "53,8080-8090"),
            ("ports:[53-54]", "53-54"),
            ("65535", "65535"),
        ] {
            assert_eq!(text.parse::<HostAccess>().expect(text).to_string(), shown);
        }
        for text in ["", "ports", "some", "0", "0-65535", "53-", "none,53"] {
            let error = text.parse::<HostAccess>().expect_err(text);
            assert!(error.message.contains(&format!("{text:?}: expected all, none, or ports")), "{error}");
        }
    }

    #[test]
    fn host_access_bitmap_has_one_bit_per_port() {
        let reach = Reach { host: "1,63,64,65535".parse().expect("ports"), ..Reach::default() };
        let words = reach.host_ports().expect("not all");
        assert_eq!((words[0], words[1], words[1023]), (1 << 63 | 2, 1, 1 << 63));
        assert_eq!(words.iter().map(|word| word.count_ones()).sum::<u32>(), 4);
        assert_eq!(Reach::default().host_ports(), None);
    }

    #[test]
    fn listener_matches_the_addresses_that_reach_it() {
        let leads = |listener: &str, to: &str| {
            let entry = entry(listener.parse().expect("a socket's address"));
            match to.parse::<IpAddr>().expect("an address") {
                IpAddr::V4(to) => {
                    let bits = |address: Address4| u32::from_be_bytes(address.bytes);
                    to.to_bits() & bits(entry.mask4) == bits(entry.address4)
                }
                IpAddr::V6(to) => {
                    let bits = |address: Address6| u128::from_be_bytes(address.bytes);
                    to.to_bits() & bits(entry.mask6) == bits(entry.address6)
                }
            }
        };
        for (listener, to, does) in [
            ("127.0.0.1:5051", "127.0.0.1", true),
            ("127.0.0.1:5051", "127.0.0.2", false),
            ("127.0.0.1:5051", "10.0.0.1", false),
            ("127.0.0.1:5051", "::1", false),
            ("0.0.0.0:5051", "127.9.9.9", true),
            ("0.0.0.0:5051", "10.0.0.1", true),
            ("0.0.0.0:5051", "::1", false),
            ("[::]:5051", "::1", true),
            ("[::]:5051", "fd77::2", true),
            ("[::]:5051", "10.0.0.1", true),
            ("[::1]:5051", "::1", true),
            ("[::1]:5051", "fd77::2", false),
            ("[::1]:5051", "127.0.0.1", false),
            ("[::ffff:127.0.0.1]:5051", "127.0.0.1", true),
        ] {
            assert_eq!(leads(listener, to), does, "{to} to {listener}");
        }
    }
}
