//! Kinds of uplinks: the interface by which a world's routes lead, and the machines at its other end.

use portmap_tests::{
    not_run,
    sandbox::{Netns, Sandbox},
    tunnel::Tunnel,
};

use super::place::{GATEWAY, Net, OTHER};

/// A kind of interface that leads outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An Ethernet card.
    Card,
    /// A second card besides the uplink.
    TwoCards,
    /// A bridge with the address, and the card as its port.
    Bridge,
    /// A macvlan interface of the card.
    Macvlan,
    /// A card with a macvlan interface, as virtual machines and containers of other tools have them.
    MacvlanParent,
    /// A device without Ethernet headers, as VPNs make them, besides the uplink.
    Tun,
    /// A bond with the card and a spare one without carrier.
    Bond,
    /// A VLAN interface of the card.
    Vlan,
    /// A card in a VRF, with routes to it in the table main.
    Vrf,
    /// A `WireGuard` tunnel besides the uplink.
    WireGuard,
}

/// All kinds. The order decides on samples only.
pub(crate) const KINDS: [Kind; 10] = [
    Kind::Card,
    Kind::TwoCards,
    Kind::Bridge,
    Kind::Macvlan,
    Kind::MacvlanParent,
    Kind::Tun,
    Kind::Bond,
    Kind::Vlan,
    Kind::Vrf,
    Kind::WireGuard,
];

impl Kind {
    /// The interface and its network.
    pub(crate) const fn net(self) -> Net {
        let (number, device) = match self {
            Self::Card | Self::MacvlanParent | Self::Vrf => (0, "uplink"),
            Self::Bridge => (0, "bridge"),
            Self::Macvlan => (0, "macvlan"),
            Self::Bond => (0, "bond"),
            Self::Vlan => (0, "vlan"),
            Self::TwoCards => (5, "second"),
            Self::Tun | Self::WireGuard => (5, "tunnel"),
        };
        let loopback = if matches!(self, Self::Vrf) { "blue" } else { "lo" };
        Net { number, device, other: if self.is_tunnel() { GATEWAY } else { OTHER }, loopback }
    }

    /// Whether it has one other end, which is no Ethernet neighbour.
    pub(crate) const fn is_tunnel(self) -> bool {
        matches!(self, Self::Tun | Self::WireGuard)
    }

    /// Whether the uplink of the daemon is the plain card, and this is a further interface.
    pub(crate) const fn is_further(self) -> bool {
        self.net().number != 0
    }

    /// Whether it is tried where every packet is slow: kernels for which this machine needs an emulator are there
    /// for the kinds that its own kernel lacks.
    pub(crate) const fn is_tried_on_emulated_machines(self) -> bool {
        matches!(self, Self::Bond | Self::Vlan | Self::Vrf | Self::WireGuard)
    }

    /// Reports that this machine lacks the kind, if it does.
    pub(crate) fn is_lacking(self, sandbox: &Sandbox) -> bool {
        let link = match self {
            Self::Card | Self::TwoCards => "veth",
            Self::Bridge => "bridge",
            Self::Macvlan | Self::MacvlanParent | Self::Tun => "macvlan",
            Self::Bond => "bond",
            Self::Vlan => "vlan",
            Self::Vrf => "vrf",
            Self::WireGuard => "wireguard",
        };
        if let Some(error) = lacks(sandbox, link) {
            not_run(format!("this kernel has no links of the type {link}: {error}"));
            return true;
        }
        let has_tool = || {
            sandbox
                .command(Netns::Host, "wg")
                .arg("--version")
                .output()
                .is_ok_and(|output| output.status.success())
        };
        if self == Self::WireGuard && !has_tool() {
            not_run("the program wg is missing: install wireguard-tools");
            return true;
        }
        false
    }

    /// Makes the interface, up and without addresses, and its other ends: in the namespace `outside`, and in
    /// another one, `other`.
    pub(crate) fn make(self, sandbox: &Sandbox) -> Option<Tunnel> {
        sandbox.sh(Netns::Host, "ip netns add other; ip -n other link set lo up");
        if self == Self::Tun {
            let tunnel = Tunnel::new(sandbox, [Netns::Host, Netns::Container("other")]);
            sandbox.sh(Netns::Host, "ip link set tunnel up; ip -n other link set tunnel up");
            return Some(tunnel);
        }
        let far = self.far_device();
        // Only the further kinds leave the card as it is.
        let bare = if self.is_further() {
            ""
        } else {
            "ip address flush dev uplink scope global; ip -n outside address flush dev eth0 scope global
             ip -6 route del default\n"
        };
        let other = if self.is_tunnel() {
            String::new()
        } else {
            format!(
                "ip -n outside link add near link {far} type macvlan mode bridge\n\
                 ip -n outside link set near netns other; ip -n other link set near up\n"
            )
        };
        sandbox.sh(Netns::Host, &format!("{bare}{}\n{other}", self.script()));
        None
    }

    const fn script(self) -> &'static str {
        match self {
            Self::Card | Self::Tun => "",
            Self::TwoCards => {
                "ip link add second type veth peer name far netns outside
                 ip link set second up; ip -n outside link set far up"
            }
            Self::Bridge => {
                "ip link add bridge type bridge; ip link set uplink master bridge; ip link set bridge up"
            }
            // The card has no address, but answers ARP for the host's, so packets arrive there, too.
            Self::Macvlan => {
                "ip link add macvlan link uplink type macvlan mode bridge; ip link set macvlan up"
            }
            Self::MacvlanParent => {
                "ip netns add guest; ip link add child link uplink type macvlan mode bridge
                 ip link set child netns guest; ip -n guest link set child up"
            }
            Self::Bond => {
                "ip link add bond type bond mode active-backup miimon 50
                 ip link add spare type veth peer name unplugged netns outside
                 ip link set uplink down; ip link set uplink master bond; ip link set spare master bond
                 ip link set bond up
                 until ip link show bond | grep -q LOWER_UP; do sleep 0.05; done"
            }
            Self::Vlan => {
                "ip link add link uplink name vlan type vlan id 100; ip link set vlan up
                 ip -n outside link add link eth0 name far type vlan id 100; ip -n outside link set far up"
            }
            Self::Vrf => {
                "ip link add blue type vrf table 10; ip link set blue up; ip link set uplink master blue
                 sysctl -qw net.ipv4.tcp_l3mdev_accept=1 net.ipv4.udp_l3mdev_accept=1"
            }
            Self::WireGuard => {
                "umask 077; wg genkey > /run/key1; wg genkey > /run/key2
                 ip link add tunnel type wireguard; ip -n outside link add tunnel type wireguard
                 ip -n outside link set tunnel netns other
                 wg set tunnel listen-port 51820 private-key /run/key1 peer $(wg pubkey < /run/key2) \
                    endpoint 10.0.0.2:51820 allowed-ips 0.0.0.0/0,::/0
                 ip netns exec other wg set tunnel listen-port 51820 private-key /run/key2 \
                    peer $(wg pubkey < /run/key1) endpoint 10.0.0.1:51820 allowed-ips 0.0.0.0/0,::/0
                 ip link set tunnel up; ip -n other link set tunnel up"
            }
        }
    }

    /// The interface of the namespace `outside` in the same network, unless that is the other one's.
    pub(crate) const fn far_device(self) -> &'static str {
        match self {
            Self::TwoCards | Self::Vlan => "far",
            _ => "eth0",
        }
    }

    /// The interface of the namespace `other`.
    pub(crate) const fn other_device(self) -> &'static str {
        if self.is_tunnel() { "tunnel" } else { "near" }
    }
}

/// The kernel's error if it has no links of a type.
pub(crate) fn lacks(sandbox: &Sandbox, link: &str) -> Option<String> {
    let made = sandbox.command(Netns::Host, "ip").args(["link", "add", "trial", "type", link]).output();
    let made = made.expect("ip runs");
    let error = String::from_utf8_lossy(&made.stderr).trim().to_owned();
    if made.status.success() {
        sandbox.sh(Netns::Host, "ip link del trial");
    }
    // Other errors are about missing parameters.
    let is_unknown = error.contains("Unknown device type") || error.contains("not supported");
    is_unknown.then_some(error)
}
