//! `--address` and `--exclude-address`: which of the host's addresses containers share.

use std::net::IpAddr;

use crate::{
    error::{Error, Result},
    kernel::address::is_global_unicast,
};

/// The host's addresses that containers share.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressFilter {
    /// The only ones; empty: all.
    only: Vec<IpAddr>,
    /// Those that are not shared.
    except: Vec<IpAddr>,
}

impl AddressFilter {
    /// Whether an address is shared if the host has it.
    pub fn shares(&self, address: IpAddr) -> bool {
        (self.only.is_empty() || self.only.contains(&address)) && !self.except.contains(&address)
    }

    /// The addresses of `--address`.
    pub fn only(&self) -> &[IpAddr] {
        &self.only
    }

    /// Parses the values of both flags, each of which is one or several addresses.
    pub(super) fn new(only: Option<Vec<String>>, except: Option<Vec<String>>) -> Result<Self> {
        let filter = Self { only: parsed("--address", only)?, except: parsed("--exclude-address", except)? };
        match filter.only.iter().find(|address| filter.except.contains(address)) {
            None => Ok(filter),
            Some(both) => {
                Err(Error::usage(format!("{both} is in --address and in --exclude-address: expected in one")))
            }
        }
    }
}

fn parsed(flag: &str, values: Option<Vec<String>>) -> Result<Vec<IpAddr>> {
    let mut addresses = Vec::new();
    let values = values.unwrap_or_default();
    for text in values.iter().flat_map(|value| value.split(',')).map(str::trim) {
        let address = text.parse().ok().filter(|address| is_global_unicast(*address)).ok_or_else(|| {
            Error::usage(format!(
                "{flag} {text:?}: expected an IPv4 or IPv6 address of the host without a prefix length, and neither \
                 a loopback nor a link-local nor a multicast one"
            ))
        })?;
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}
