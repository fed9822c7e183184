//! Forms of routes, each as commands that add it to the world's first routes, and that take it back.

use std::net::IpAddr;

use super::place::{FOREIGN_GATEWAY, Form, GATEWAY, MOVED, Net, ON_LINK, UNUSED, link_local};

/// A form of routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// The host's networks and one gateway.
    OneGateway,
    /// Another default gateway.
    OtherGateway,
    /// A network on the link that is not the network of an address.
    OnLink,
    /// A gateway outside of the host's networks, with a route to it (DHCP option 121, cloud providers).
    ForeignGateway,
    /// A default route with a device and no gateway.
    Device,
    /// A network behind two next hops.
    Multipath,
    /// A network by a next-hop object.
    Object,
    /// A network behind a link-local IPv6 gateway, also for IPv4.
    LinkLocalGateway,
    /// A network to which packets vanish.
    Blackhole,
    /// A network that is unreachable.
    Unreachable,
    /// A network that is prohibited.
    Prohibit,
    /// Another table for packets to a network.
    RuleTo,
    /// Another table for packets from the host's address.
    RuleFrom,
    /// A network behind another gateway.
    Behind,
    /// The same with an MTU.
    Mtu,
    /// The same with a source.
    Source,
    /// A network behind a gateway that does not answer, and a neighbour that does not.
    Silent,
}

/// All forms of routes.
pub(crate) const ROUTES: [Route; 17] = [
    Route::OneGateway,
    Route::OnLink,
    Route::ForeignGateway,
    Route::Device,
    Route::Multipath,
    Route::Object,
    Route::LinkLocalGateway,
    Route::Blackhole,
    Route::Unreachable,
    Route::Prohibit,
    Route::RuleTo,
    Route::RuleFrom,
    Route::Behind,
    Route::Mtu,
    Route::Source,
    Route::Silent,
    Route::OtherGateway,
];

/// Who answers by [`MOVED`], for a process of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// The machine `outside`.
    Outside,
    /// The machine `other`.
    Other,
    /// Either of them, by a hash of the flow.
    Either,
    /// Neither.
    NoAnswer,
    /// The machine that answers neighbour discovery for it, or that IPv6 finds behind a less specific route; perhaps
    /// none.
    Any,
}

impl Route {
    /// Who answers by [`MOVED`], for a process of the host.
    pub(crate) const fn effect(self) -> Effect {
        match self {
            Self::OneGateway | Self::OnLink => Effect::Outside,
            Self::Multipath => Effect::Either,
            Self::Device | Self::Silent => Effect::Any,
            Self::Blackhole | Self::Unreachable | Self::Prohibit => Effect::NoAnswer,
            _ => Effect::Other,
        }
    }

    /// The commands that add this form, and those that remove it.
    pub(crate) fn commands(self, net: Net, form: Form) -> [String; 2] {
        let mut commands = Commands { net, form, both: [Vec::new(), Vec::new()] };
        for version in 0..2 {
            commands.add(self, version);
        }
        let [up, mut down] = commands.both;
        down.reverse();
        [up, down].map(|commands| commands.join("\n"))
    }
}

/// The first default route by the interface, in the words of `ip route`.
pub(crate) fn first_default(net: Net, form: Form, version: usize) -> String {
    let Net { device, .. } = net;
    if form == Form::Unnumbered && version == 0 {
        return format!("default via inet6 {} dev {device}", link_local(GATEWAY));
    }
    format!("default {}", via(net, form, version, GATEWAY))
}

/// A next hop in the interface's network.
fn via(net: Net, form: Form, version: usize, last: u8) -> String {
    let onlink = if form.is_in_network(version == 1, last) { "" } else { " onlink" };
    format!("via {} dev {}{onlink}", net.at(last)[version], net.device)
}

/// Commands under construction: those that add, and those that remove.
struct Commands {
    net: Net,
    form: Form,
    both: [Vec<String>; 2],
}

impl Commands {
    fn add(&mut self, route: Route, version: usize) {
        let Net { device, other, number, .. } = self.net;
        let moved = network(MOVED[version]);
        let to_other = via(self.net, self.form, version, other);
        match route {
            Route::OneGateway => {}
            Route::OtherGateway => self.replace_default(version, &format!("default {to_other}")),
            Route::OnLink => self.route(version, &format!("{} dev {device}", network(ON_LINK[version]))),
            Route::ForeignGateway => {
                let gateway = FOREIGN_GATEWAY[version];
                self.route(version, &format!("{gateway} dev {device}"));
                self.route(version, &format!("{moved} via {gateway} dev {device} onlink"));
            }
            Route::Device => {
                self.replace_default(version, &format!("default dev {device}"));
            }
            Route::Multipath => {
                let first = via(self.net, self.form, version, GATEWAY);
                self.route(version, &format!("{moved} nexthop {first} nexthop {to_other}"));
            }
            Route::Object => {
                let id = 7 + version;
                let family = family(version);
                self.pair(
                    &format!("ip {family} nexthop"),
                    &format!("id {id} {to_other}"),
                    &format!("id {id}"),
                );
                self.route(version, &format!("{moved} nhid {id}"));
            }
            Route::LinkLocalGateway => {
                let inet6 = if version == 0 { "inet6 " } else { "" };
                self.route(version, &format!("{moved} via {inet6}{} dev {device}", link_local(other)));
            }
            Route::Blackhole => self.route(version, &format!("blackhole {moved}")),
            Route::Unreachable => self.route(version, &format!("unreachable {moved}")),
            Route::Prohibit => self.route(version, &format!("prohibit {moved}")),
            Route::RuleTo => {
                self.route(version, &format!("{moved} {to_other} table 100"));
                self.rule(version, &format!("to {moved}"));
            }
            Route::RuleFrom => {
                // The table also has the way to the gateway, as that of a network manager does.
                self.route(version, &format!("{} dev {device} table 100", self.net.at(GATEWAY)[version]));
                self.route(version, &format!("default {to_other} table 100"));
                for own in self.form.of_interface(self.net) {
                    if own.is_ipv6() == (version == 1) {
                        self.rule(version, &format!("from {own}"));
                    }
                }
                if number != 0 {
                    // The host sends by this address only if a route has led it to the interface.
                    self.route(version, &format!("{moved} {to_other}"));
                }
            }
            Route::Behind => self.route(version, &format!("{moved} {to_other}")),
            Route::Mtu => self.route(version, &format!("{moved} {to_other} mtu 1300")),
            Route::Source => {
                let source = self.form.further(self.net).expect("a valid combination")[version];
                self.route(version, &format!("{moved} {to_other} src {source}"));
            }
            Route::Silent => {
                let gateway = via(self.net, self.form, version, UNUSED[0]);
                self.route(version, &format!("{moved} {gateway}"));
            }
        }
    }

    fn route(&mut self, version: usize, route: &str) {
        self.pair(&format!("ip {} route", family(version)), route, route);
    }

    fn rule(&mut self, version: usize, rule: &str) {
        let rule = format!("{rule} table 100 priority 500");
        self.pair(&format!("ip {} rule", family(version)), &rule, &rule);
    }

    fn pair(&mut self, command: &str, add: &str, delete: &str) {
        self.both[0].push(format!("{command} add {add}"));
        self.both[1].push(format!("{command} del {delete}"));
    }

    fn replace_default(&mut self, version: usize, default: &str) {
        let before = if self.net.number == 0 {
            first_default(self.net, self.form, version)
        } else {
            first_default(Net { number: 0, device: "uplink", ..self.net }, Form::One, version)
        };
        let family = family(version);
        for (commands, [from, to]) in
            self.both.iter_mut().zip([[before.as_str(), default], [default, before.as_str()]])
        {
            // Taken back in reverse order.
            let mut change = [format!("ip {family} route del {from}"), format!("ip {family} route add {to}")];
            if to == before {
                change.reverse();
            }
            commands.extend(change);
        }
    }
}

/// The option of `ip` for an IP version.
pub(crate) const fn family(version: usize) -> &'static str {
    if version == 0 { "-4" } else { "-6" }
}

/// The network of an address that a route is for.
fn network(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            format!("{a}.{b}.{c}.0/24")
        }
        IpAddr::V6(v6) => {
            let [a, b, c, ..] = v6.segments();
            format!("{a:x}:{b:x}:{c:x}::/48")
        }
    }
}
