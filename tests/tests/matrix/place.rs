//! Where everything is: the host's addresses in a world, and the machines outside with theirs.
//!
//! There are two machines: `outside`, which is the gateway of the uplink, and `other`, a second router in the network
//! of the interface under test, or the other end of a tunnel. Both have the addresses [`MOVED`], so that the answer
//! tells the way of a packet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use portmap_tests::sandbox::{FAR, FAR6, HOST, HOST6};

/// Last part of the address of the machine `outside`.
pub(crate) const GATEWAY: u8 = 2;
/// Last part of the address of the machine `other`, unless it is the end of a tunnel.
pub(crate) const OTHER: u8 = 3;
/// Last part of addresses that no machine has.
pub(crate) const UNUSED: [u8; 2] = [98, 99];

/// The port of the services outside, and of the host's.
pub(crate) const SERVICE: u16 = 8080;
/// A port outside on which no machine listens.
pub(crate) const CLOSED: u16 = 8081;
/// The container's port.
pub(crate) const PORT: u16 = 31000;

/// Addresses of both machines outside. The default route leads to those of `outside`.
pub(crate) const MOVED: [IpAddr; 2] =
    both(Ipv4Addr::new(198, 51, 100, 1), Ipv6Addr::new(0x2001, 0xdb8, 0xe, 0, 0, 0, 0, 1));
/// Addresses of `other` on the link, but in no network of the host.
pub(crate) const ON_LINK: [IpAddr; 2] =
    both(Ipv4Addr::new(203, 0, 113, 1), Ipv6Addr::new(0x2001, 0xdb8, 0xd, 0, 0, 0, 0, 1));
/// The same, for a gateway.
pub(crate) const FOREIGN_GATEWAY: [IpAddr; 2] =
    both(Ipv4Addr::new(192, 168, 77, 1), Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1));
/// Addresses of `outside` beyond the default route.
pub(crate) const BEYOND: [IpAddr; 2] = [IpAddr::V4(FAR), IpAddr::V6(FAR6)];
/// Addresses of the host on an interface that leads nowhere.
pub(crate) const VIRTUAL: [IpAddr; 2] =
    both(Ipv4Addr::new(10, 9, 0, 5), Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 5));
/// Link-local address of `outside` and of `other`, by its last part.
pub(crate) fn link_local(last: u8) -> String {
    format!("fe80::a:{last}")
}

/// An address of each IP version.
const fn both(v4: Ipv4Addr, v6: Ipv6Addr) -> [IpAddr; 2] {
    [IpAddr::V4(v4), IpAddr::V6(v6)]
}

/// The network of an interface.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Net {
    /// Its number, a part of every address; 0 is the sandbox's own network.
    pub(crate) number: u8,
    /// The host's interface.
    pub(crate) device: &'static str,
    /// Last part of the address of the machine `other`.
    pub(crate) other: u8,
    /// The interface of the host that leads nowhere: `lo`, or the one of the VRF.
    pub(crate) loopback: &'static str,
}

impl Net {
    /// The addresses of both IP versions with this last part.
    pub(crate) fn at(self, last: u8) -> [IpAddr; 2] {
        let third = u16::from(self.number.max(1));
        both(
            Ipv4Addr::new(10, self.number, 0, last),
            Ipv6Addr::new(
                0x2001,
                0xdb8,
                0,
                third,
                0,
                0,
                0,
                u16::from_str_radix(&last.to_string(), 16).expect("digits"),
            ),
        )
    }
}

/// How the host is addressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// One address of each IP version.
    One,
    /// A second one in the same network.
    Secondary,
    /// A virtual address (/32 and /128) on the loopback device.
    Virtual,
    /// The same on a dummy interface.
    Dummy,
    /// An IPv6 address that is deprecated, besides one that is not.
    Deprecated,
    /// IPv6 only on the interface, and an IPv4 address on the loopback device.
    Unnumbered,
    /// Point-to-point addresses (/32 and /128 with a peer).
    PointToPoint,
}

/// All forms of addresses.
pub(crate) const FORMS: [Form; 7] = [
    Form::One,
    Form::Secondary,
    Form::Virtual,
    Form::Deprecated,
    Form::Unnumbered,
    Form::PointToPoint,
    Form::Dummy,
];

/// Last part of the host's address and of its second one.
const OWN: u8 = 1;
const SECOND: u8 = 7;

impl Form {
    /// Gives an interface its addresses.
    pub(crate) fn script(self, net: Net) -> String {
        let Net { device, loopback, .. } = net;
        let [v4, v6] = net.at(OWN);
        let [second4, second6] = net.at(SECOND);
        let [peer4, peer6] = net.at(GATEWAY);
        let add = |v4: &str, v6: &str| {
            let v4 =
                if v4.is_empty() { String::new() } else { format!("ip address add {v4} dev {device}\n") };
            format!("{v4}ip -6 address add {v6} dev {device} nodad\n")
        };
        let one = || add(&format!("{v4}/24"), &format!("{v6}/64"));
        let virtual_at = |device: &str| {
            let [v4, v6] = VIRTUAL;
            format!("ip address add {v4}/32 dev {device}; ip -6 address add {v6}/128 dev {device} nodad\n")
        };
        match self {
            Self::One => one(),
            Self::Secondary => one() + &add(&format!("{second4}/24"), &format!("{second6}/64")),
            Self::Virtual => one() + &virtual_at(loopback),
            Self::Dummy => one() + "ip link add void type dummy; ip link set void up\n" + &virtual_at("void"),
            Self::Deprecated => {
                add(&format!("{v4}/24"), &format!("{second6}/64"))
                    + &format!("ip -6 address add {v6}/64 dev {device} nodad preferred_lft 0\n")
            }
            Self::Unnumbered => {
                add("", &format!("{v6}/64")) + &format!("ip address add {}/32 dev {loopback}\n", VIRTUAL[0])
            }
            // The kernel adds the route to an IPv6 peer a moment after the address.
            Self::PointToPoint => {
                add(&format!("{v4} peer {peer4}/32"), &format!("{v6} peer {peer6}/128"))
                    + &format!(
                        "n=0; until [ $n -eq 500 ] || ip -6 route show {peer6} dev {device} | grep -q .; do \
                         n=$((n + 1)); sleep 0.01; done\n"
                    )
            }
        }
    }

    /// The addresses by which the host sends by the interface, unless a route says otherwise.
    pub(crate) fn main(self, net: Net) -> [IpAddr; 2] {
        let [v4, v6] = net.at(OWN);
        match self {
            Self::Deprecated => [v4, net.at(SECOND)[1]],
            Self::Unnumbered => [VIRTUAL[0], v6],
            _ => [v4, v6],
        }
    }

    /// Further addresses, if it has some of both IP versions.
    pub(crate) fn further(self, net: Net) -> Option<[IpAddr; 2]> {
        match self {
            Self::Secondary => Some(net.at(SECOND)),
            Self::Virtual | Self::Dummy => Some(VIRTUAL),
            Self::One | Self::Deprecated | Self::Unnumbered | Self::PointToPoint => None,
        }
    }

    /// All addresses of the host, except those of a plain uplink beside the interface.
    pub(crate) fn of_interface(self, net: Net) -> Vec<IpAddr> {
        let mut all = self.main(net).to_vec();
        all.extend(self.further(net).into_iter().flatten());
        if self == Self::Deprecated {
            all.push(net.at(OWN)[1]);
        }
        all
    }

    /// All addresses of the host.
    pub(crate) fn all(self, net: Net) -> Vec<IpAddr> {
        let mut all = self.of_interface(net);
        if net.number != 0 {
            all.extend([IpAddr::V4(HOST), IpAddr::V6(HOST6)]);
        }
        all
    }

    /// Whether a gateway with this last part is in a network of the host's on the interface.
    pub(crate) fn is_in_network(self, is_v6: bool, last: u8) -> bool {
        match self {
            Self::PointToPoint => last == GATEWAY,
            Self::Unnumbered => is_v6,
            _ => true,
        }
    }
}
