//! A world: a host with an uplink of one kind and addresses of one form, two machines outside, a daemon, and a
//! container.

use std::{fmt::Write as _, net::IpAddr};

use portmap_tests::{
    daemon::Daemon,
    sandbox::{DAEMON_FLAGS, Netns, OUTSIDE, OUTSIDE6, Sandbox},
    tunnel::Tunnel,
};

use super::{
    kinds::Kind,
    place::{
        BEYOND, FOREIGN_GATEWAY, Form, GATEWAY, MOVED, Net, ON_LINK, PORT, SERVICE, VIRTUAL, link_local,
    },
    routes::{family, first_default},
    server::Server,
};

/// The container.
pub(crate) const A: Netns<'_> = Netns::Container("a");
/// The second machine outside.
pub(crate) const OTHER_MACHINE: Netns<'_> = Netns::Container("other");
/// The name of the host's service and of the container's, which must look the same.
pub(crate) const OWN: &str = "own";

/// Routers answer for what they cannot reach, at once and each time, which the kernel's own errors of routing do not;
/// and for addresses of the interface that is asked only. Redirects would change the routes of those who send.
const ROUTER: &str =
    "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.icmp_ratelimit=0 \
    net.ipv6.icmp.ratelimit=0 net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.rp_filter=0
    nft 'add table inet router; \
        add chain inet router forward { type filter hook forward priority 0; }; \
        add rule inet router forward reject with icmpx type no-route; \
        add chain inet router output { type filter hook output priority 0; }; \
        add rule inet router output icmp type redirect drop; \
        add rule inet router output icmpv6 type nd-redirect drop'\n";

/// A world. The fields are dropped in this order.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) kind: Kind,
    pub(crate) form: Form,
    pub(crate) net: Net,
    _services: Vec<Server>,
    daemon: Daemon,
    pub(crate) sandbox: Sandbox,
    _tunnel: Option<Tunnel>,
}

impl World {
    /// Makes a world in a new sandbox.
    pub(crate) fn new(sandbox: Sandbox, kind: Kind, form: Form) -> Self {
        let net = kind.net();
        let tunnel = kind.make(&sandbox);
        machines(&sandbox, kind);
        let mut host = form.script(net);
        if kind == Kind::Vrf {
            // What leads into the VRF is in the table main, too.
            for version in 0..2 {
                let gateway = net.at(GATEWAY)[version];
                let network = match version {
                    _ if !form.is_in_network(version == 1, super::place::OTHER) => format!("{gateway}"),
                    0 => format!("10.{}.0.0/24", net.number),
                    _ => "2001:db8:0:1::/64".to_owned(),
                };
                if form != Form::Unnumbered || version == 1 {
                    let _ = writeln!(host, "ip {} route add {network} dev {}", family(version), net.device);
                }
            }
        }
        if !kind.is_further() {
            for version in 0..2 {
                let default = first_default(net, form, version);
                let _ = writeln!(host, "ip {} route add {default}", family(version));
            }
        }
        sandbox.sh(Netns::Host, &host);
        let flags = if kind.is_further() { &["--uplink", "uplink"][..] } else { &[] };
        let daemon = sandbox.daemon_with(&[&DAEMON_FLAGS[..], flags].concat());
        sandbox.ok(&["add", "a", "--ports", "31000-31009"]);
        Self { kind, form, net, _services: services(&sandbox, kind), daemon, sandbox, _tunnel: tunnel }
    }

    /// The daemon's log, for a failure.
    pub(crate) fn log(&self) -> String {
        self.daemon.log()
    }
}

/// Gives the machines outside their addresses and the ways back.
fn machines(sandbox: &Sandbox, kind: Kind) {
    let net = kind.net();
    let device = kind.far_device();
    let near = kind.other_device();
    let address = |device: &str, address: IpAddr| match address {
        IpAddr::V4(v4) => format!("ip address add {v4}/32 dev {device}\n"),
        IpAddr::V6(v6) => format!("ip -6 address add {v6}/128 dev {device} nodad\n"),
    };
    let in_network = |device: &str, last: u8| {
        let [v4, v6] = net.at(last);
        format!(
            "ip address add {v4}/24 dev {device}; ip -6 address add {v6}/64 dev {device} nodad\n\
             ip -6 address add {}/64 dev {device} nodad\n",
            link_local(last)
        )
    };
    // They never forward, so it does not matter where this leads.
    let default = |device: &str| {
        format!("ip route add default dev {device}; ip -6 route add default dev {device} metric 9999\n")
    };
    let back = |device: &str, own: [IpAddr; 2]| {
        let [v4, v6] = VIRTUAL;
        format!("ip route add {v4} dev {device}; ip -6 route add {v6} via {} dev {device}\n", own[1])
    };
    let mut outside = ROUTER.to_owned();
    if !kind.is_tunnel() {
        outside += &in_network(device, GATEWAY);
        outside.extend(BEYOND.map(|beyond| address(device, beyond)));
    }
    outside += &default("eth0");
    let (first, first_device) = if kind.is_further() { (Kind::Card.net(), "eth0") } else { (net, device) };
    outside += &back(first_device, first.at(1));
    outside.extend(MOVED.map(|moved| address("lo", moved)));
    sandbox.sh(Netns::Outside, &outside);

    let mut other = ROUTER.to_owned() + &in_network(near, net.other);
    if kind.is_tunnel() {
        // The host's other addresses.
        let [v4, v6] = VIRTUAL;
        let _ = writeln!(
            other,
            "ip route add 10.0.0.0/15 dev {near}; ip route add {v4} dev {near}\n\
             ip -6 route add 2001:db8::/48 dev {near}; ip -6 route add {v6} dev {near}"
        );
    } else {
        other += &back(near, net.at(1));
    }
    other += &default(near);
    other.extend(MOVED.map(|moved| address("lo", moved)));
    other.extend([ON_LINK, FOREIGN_GATEWAY].concat().into_iter().map(|own| address(near, own)));
    sandbox.sh(OTHER_MACHINE, &other);
}

fn services(sandbox: &Sandbox, kind: Kind) -> Vec<Server> {
    let net = kind.net();
    let mut outside = [BEYOND, MOVED, [OUTSIDE.into(), OUTSIDE6.into()]].concat();
    if !kind.is_tunnel() && kind.is_further() {
        outside.extend(net.at(GATEWAY));
    }
    let other = [MOVED, ON_LINK, FOREIGN_GATEWAY, net.at(net.other)].concat();
    vec![
        Server::start(sandbox, A, OWN, PORT, &[]),
        Server::start(sandbox, Netns::Host, OWN, SERVICE, &[]),
        Server::start(sandbox, Netns::Outside, "outside", SERVICE, &outside),
        Server::start(sandbox, OTHER_MACHINE, "other", SERVICE, &other),
    ]
}
