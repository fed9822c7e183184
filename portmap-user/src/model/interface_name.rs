//! Names of containers' interfaces.

use std::{fmt, str::FromStr};

use crate::error::{Error, Result};

/// Longest name of an interface in bytes (`IFNAMSIZ` less its terminating zero).
pub const LONGEST: usize = 15;

/// Names that stand for others: the loopback device, and the settings of all and of new interfaces below
/// `/proc/sys/net/ipv4/conf`.
const RESERVED: [&str; 3] = ["lo", "all", "default"];

/// Whether the kernel accepts a name for an interface (`dev_valid_name`).
pub fn is_of_kernel(name: &str) -> bool {
    let is_allowed = |char: char| !matches!(char, '/' | ':') && !char.is_whitespace();
    (1..=LONGEST).contains(&name.len()) && name.chars().all(is_allowed) && ![".", ".."].contains(&name)
}

/// Name of a container's end of its veth pair; `eth0` by default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceName(String);

impl InterfaceName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for InterfaceName {
    fn default() -> Self {
        Self("eth0".to_owned())
    }
}

impl FromStr for InterfaceName {
    type Err = Error;

    /// Accepts what the kernel accepts, apart from patterns such as `eth%d`, control characters, and reserved names.
    fn from_str(name: &str) -> Result<Self> {
        let is_printable = |byte: u8| byte.is_ascii_graphic() && byte != b'%';
        if is_of_kernel(name) && name.bytes().all(is_printable) && !RESERVED.contains(&name) {
            return Ok(Self(name.to_owned()));
        }
        let name: String = name.chars().take(LONGEST + 1).collect();
        Err(Error::usage(format!(
            "{name:?} cannot be the name of a container's interface: expected 1 to {LONGEST} printable ASCII \
             characters without '/', ':' and '%', other than `lo`, `all` and `default`"
        )))
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_interface_has_a_name_of_the_kernel() {
        for name in ["eth0", "enp0s31f6", "bond0.100", "a", "wan-1_x", &"x".repeat(15)] {
            assert_eq!(name.parse::<InterfaceName>().expect(name).as_str(), name);
        }
        for name in
            ["", ".", "..", "lo", "all", "default", "a/b", "a b", "a:1", "eth%d", "ä", "a\n", &"x".repeat(16)]
        {
            let error = name.parse::<InterfaceName>().expect_err(name);
            assert!(error.message.contains("expected 1 to 15"), "{error}");
        }
    }
}
