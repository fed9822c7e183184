//! IP protocol numbers and their names.

use std::{fmt, str::FromStr};

use crate::error::Error;

/// An IP protocol number. Its text form is a name, or the number if it has no name here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocol(pub u8);

const NAMES: [(u8, &str); 7] =
    [(1, "icmp"), (6, "tcp"), (17, "udp"), (33, "dccp"), (58, "icmp6"), (132, "sctp"), (136, "udplite")];

impl Protocol {
    /// ICMP for IPv4.
    pub const ICMP: Self = Self(1);
    /// TCP.
    pub const TCP: Self = Self(6);
    /// UDP.
    pub const UDP: Self = Self(17);
    /// DCCP.
    pub const DCCP: Self = Self(33);
    /// ICMP for IPv6.
    pub const ICMP6: Self = Self(58);
    /// SCTP.
    pub const SCTP: Self = Self(132);
    /// UDP-Lite.
    pub const UDPLITE: Self = Self(136);

    /// Whether its header starts with source and destination port.
    pub const fn has_ports(self) -> bool {
        matches!(self, Self::TCP | Self::UDP | Self::DCCP | Self::SCTP | Self::UDPLITE)
    }
}

impl Default for Protocol {
    fn default() -> Self {
        Self::TCP
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.iter().find(|(number, _)| *number == self.0) {
            Some((_, name)) => f.write_str(name),
            None => self.0.fmt(f),
        }
    }
}

impl FromStr for Protocol {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let number = NAMES.iter().find(|(_, name)| *name == text).map(|(number, _)| *number);
        number.or_else(|| text.parse().ok()).map(Self).ok_or_else(|| {
            let names: Vec<_> = NAMES.iter().map(|(_, name)| *name).collect();
            Error::usage(format!(
                "{text:?} is not a protocol: expected one of {} or a number up to 255",
                names.join(", ")
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocol_text_form_round_trips() {
        for number in 0..=u8::MAX {
            assert_eq!(Protocol(number).to_string().parse(), Ok(Protocol(number)));
        }
        assert_eq!(Protocol::TCP.to_string(), "tcp");
        assert_eq!("47".parse(), Ok(Protocol(47)));
        for text in ["", "256", "-1", "TCP", "ip"] {
            let error = text.parse::<Protocol>().expect_err(text);
            assert!(error.message.contains(&format!("{text:?}")), "{error}");
        }
    }
}
