//! NAT rules of the host that cannot work together with containers. The programs see a packet before the host's
//! netfilter on its way in, so a packet whose destination netfilter changes reaches the host's stack, never a
//! container.

use std::net::IpAddr;

use super::HostState;
use crate::{
    api::{ExplainedPacket, Finding, Health},
    error::Result,
    kernel::nat::{self, NatRule, NatRules, NewAddress, Translation},
    model::{PortRange, PortSet, Protocol},
};

const SUBJECT: &str = "host NAT";
/// Most rules that a finding names.
const MOST_NAMED: usize = 8;

/// What a rule means for containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    /// It sends packets for a port of the host to a managed port of the host.
    InFront,
    /// It sends packets for a port of the host to another address, as Docker does for a published port.
    Publishes,
    /// It may choose managed ports as source ports, which the programs tell from those of containers.
    ChoosesPorts,
}

/// The host as rules concern it.
pub(in crate::daemon) struct Nat<'a> {
    pub(in crate::daemon) state: &'a HostState,
    /// The managed ports.
    pub(in crate::daemon) managed: &'a PortSet,
}

impl Nat<'_> {
    /// Reports the rules that concern containers, with one finding for each kind.
    pub(in crate::daemon) fn findings(&self) -> Vec<Finding> {
        let notice = |text| Finding::new(SUBJECT, Health::Notice, text);
        let found = match nat::read(|rule| self.effect(rule).is_some()) {
            Ok(found) => found,
            Err(error) => {
                return vec![notice(format!("{error}: rules that concern containers are not found"))];
            }
        };
        let mut findings: Vec<Finding> = self.texts(&found).into_iter().map(notice).collect();
        findings.extend(found.unread.iter().map(|file| notice(unread(file))));
        let choosing: Vec<String> = found
            .rules
            .iter()
            .filter(|rule| self.effect(rule) == Some(Effect::ChoosesPorts))
            .map(|rule| self.describe(rule, Effect::ChoosesPorts))
            .collect();
        if let Some(first) = choosing.first() {
            let others = choosing.len() - 1;
            let others = if others == 0 { String::new() } else { format!(", and {others} more rules") };
            let text = format!("{first}{others}: the replies go to the host (`pm_host_conns`)");
            findings.push(Finding::new(SUBJECT, Health::Ok, text));
        } else if findings.is_empty() {
            findings.push(Finding::new(SUBJECT, Health::Ok, "no rule concerns ports of containers"));
        }
        findings
    }

    fn texts(&self, found: &NatRules) -> Vec<String> {
        let kinds = [
            (
                Effect::InFront,
                "portmap's programs see the packet before that, so it reaches the host's stack and no container: \
                 remove the rule and give the container the port itself (`portmap update NAME --ports`), or use \
                 a proxy on the host"
                    .to_owned(),
            ),
            (
                Effect::Publishes,
                "containers do not reach it by the host's address: they must use the other address".to_owned(),
            ),
        ];
        let mut texts = Vec::new();
        for (effect, consequence) in kinds {
            let all: Vec<String> = found
                .rules
                .iter()
                .filter(|rule| self.effect(rule) == Some(effect))
                .map(|rule| self.describe(rule, effect))
                .collect();
            let Some(named) = all.get(..all.len().min(MOST_NAMED)).filter(|named| !named.is_empty()) else {
                continue;
            };
            let others = all.len() - named.len();
            let others = if others == 0 { String::new() } else { format!("; and {others} more rules") };
            texts.push(format!("{}{others}; {consequence}", named.join("; ")));
        }
        if found.more > 0 {
            texts.push(format!("{} more rules concern ports of containers", found.more));
        }
        texts
    }

    /// The rules that change a packet's destination before it is delivered, one line each.
    ///
    /// # Errors
    ///
    /// If the rules cannot be read.
    pub(in crate::daemon) fn notes(&self, packet: &ExplainedPacket) -> Result<Vec<String>> {
        let Some(port) = packet.destination_port else { return Ok(Vec::new()) };
        let is_v4 = packet.destination.is_ipv4();
        let applies = |rule: &NatRule| {
            matches!(self.effect(rule), Some(Effect::InFront | Effect::Publishes))
                && rule.protocol.is_none_or(|protocol| protocol == packet.protocol.0)
                && rule.ports.as_ref().is_some_and(|ports| ports.contains(port))
                && (rule.family == "inet" || (rule.family == "ip") == is_v4)
        };
        let found = nat::read(applies)?;
        let notes = self.texts(&found).into_iter().map(|text| format!("NAT may apply: {text}"));
        Ok(notes.chain(found.unread.iter().map(|file| unread(file))).collect())
    }

    fn effect(&self, rule: &NatRule) -> Option<Effect> {
        if rule.family == "ip6" && self.state.v6.is_none() {
            return None;
        }
        let is_managed = |ports: PortRange| !self.managed.intersection(&ports.into()).is_empty();
        match rule.translation {
            Translation::Redirect | Translation::Destination(NewAddress::Same) => {
                rule.to_ports.filter(|ports| is_managed(*ports)).map(|_| Effect::InFront)
            }
            Translation::Destination(NewAddress::Known(address)) if self.is_local(address) => {
                let ports = rule.to_ports.map(PortSet::from).or_else(|| rule.ports.clone());
                let is_managed = ports.is_some_and(|ports| !self.managed.intersection(&ports).is_empty());
                is_managed.then_some(Effect::InFront)
            }
            // Rules without ports of their own, such as those for the end points of a service, apply to packets
            // that others have selected.
            Translation::Destination(_) => rule.ports.is_some().then_some(Effect::Publishes),
            Translation::Source(NewAddress::Known(address)) if !self.state.shares(address) => None,
            Translation::Source(_) | Translation::Masquerade => {
                rule.to_ports.is_none_or(is_managed).then_some(Effect::ChoosesPorts)
            }
        }
    }

    fn is_local(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.state.shares(address)
    }

    /// Describes a rule: its place, its condition, and what it does.
    fn describe(&self, rule: &NatRule, effect: Effect) -> String {
        let protocol = rule.protocol.map(|protocol| format!("{} ", Protocol(protocol))).unwrap_or_default();
        let ports = match &rule.ports {
            None => "packets".to_owned(),
            Some(ports) => {
                let ranges: Vec<String> = ports.ranges().iter().map(PortRange::to_string).collect();
                format!("port {}", ranges.join(","))
            }
        };
        let to_port = rule.to_ports.map_or_else(String::new, |ports| format!("port {ports}"));
        let to = match rule.translation {
            Translation::Destination(NewAddress::Known(address)) if !self.is_local(address) => {
                match rule.to_ports {
                    None => address.to_string(),
                    Some(ports) if address.is_ipv4() => format!("{address}:{ports}"),
                    Some(ports) => format!("[{address}]:{ports}"),
                }
            }
            Translation::Destination(NewAddress::Unknown) => "an address of a map".to_owned(),
            _ if to_port.is_empty() => "the same port of this host".to_owned(),
            _ => format!("{to_port} of this host"),
        };
        match effect {
            Effect::InFront | Effect::Publishes => {
                format!("{rule}, translates {protocol}{ports} to {to}")
            }
            Effect::ChoosesPorts => format!("{rule}, may choose source ports of containers"),
        }
    }
}

fn unread(file: &str) -> String {
    format!(
        "{file} lists a NAT table of the older iptables, whose rules are not examined: `iptables-legacy -t nat -S` \
         shows them (ip6tables-legacy for IPv6)"
    )
}
