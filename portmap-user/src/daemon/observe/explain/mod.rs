//! `portmap explain`: the verdicts of all hooks that a packet passes.
//!
//! Each verdict is computed twice, by a dry run of the loaded program and by the decision code in the daemon.

mod hook_visit;
mod live_tables;
mod notes;
mod packet;
pub(super) mod render;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use portmap_common::{hook_point::HookPoint, tables::Config};
use portmap_ebpf::Verdict;

use self::{
    hook_visit::HookVisit,
    live_tables::Live,
    render::{NO_DECISION, Names, UNKNOWN},
};
use crate::{
    api::{ContainerState, ExplainRequest, ExplainedPacket, Explanation, HOST, OUTSIDE, Outcome, Step},
    daemon::{env::Env, host::Host, registry::Registry},
    error::{Error, Result},
    model::{ContainerRecord, Protocol},
};

/// Source port of packets from outside, and the first candidate for the host's.
const USUAL_PORT: u16 = 40_000;
/// First candidate for the host's source port after those.
const LOWEST_PORT: u16 = 1024;
/// Attempts until program and decision code agree.
const ATTEMPTS: u32 = 3;
/// Addresses for documentation (RFC 5737, RFC 3849).
const OUTSIDE_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const OUTSIDE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// Sender of the packet.
enum Sender {
    Outside,
    Host,
    Container(Box<ContainerRecord>),
}

/// The parts of the daemon that explanations read.
pub(in crate::daemon) struct Explainer<'a> {
    pub(in crate::daemon) env: &'a Env,
    pub(in crate::daemon) registry: &'a Registry,
    pub(in crate::daemon) host: &'a Host,
}

impl Explainer<'_> {
    /// Returns the verdicts on a packet, without side effects.
    ///
    /// # Errors
    ///
    /// If the request is invalid, or its sender is not in service.
    pub(in crate::daemon) fn explain(&self, request: &ExplainRequest) -> Result<Explanation> {
        // Program and decision code read the maps one after the other. If a port's owner or the host's
        // address changes in between, they differ once.
        for _ in 1..ATTEMPTS {
            let explanation = self.explain_once(request)?;
            if explanation.agrees {
                return Ok(explanation);
            }
        }
        self.explain_once(request)
    }

    fn explain_once(&self, request: &ExplainRequest) -> Result<Explanation> {
        let sender = self.sender(&request.from)?;
        let packet = self.complete(request, &sender)?;
        let config = self.env.maps.config()?;
        let Some(first) = first_visit(&sender, self.is_local(packet.destination)) else {
            let outcome = NO_DECISION.to_outcome();
            return Ok(Explanation { packet, steps: Vec::new(), outcome, agrees: true, notes: Vec::new() });
        };
        let frame = packet::build(packet, first.source_mac(&config), first.mac(&config))?;
        let mut explanation = self.collect(packet, first, frame, &config)?;
        explanation.notes.extend(self.nat_notes(&sender, &explanation)?);
        explanation.notes.extend(Self::ipsec_notes(&sender, &explanation)?);
        Ok(explanation)
    }

    /// Collects the verdicts on a frame from hook to hook.
    fn collect(
        &self,
        packet: ExplainedPacket,
        first: HookVisit,
        mut frame: Vec<u8>,
        config: &Config,
    ) -> Result<Explanation> {
        let names = Names(self.registry.snapshot().names_by_slot());
        let mut steps = Vec::new();
        let mut decisive: Option<Outcome> = None;
        let mut next = Some(first);
        let mut agrees = true;
        let mut notes = Vec::new();
        while let Some(visit) = next.filter(|_| agrees) {
            notes.extend(self.program_notes(visit));
            let (expected, verdict) = self.decide_twice(visit, &frame, config)?;
            agrees = verdict == Some(expected);
            let render = |verdict| names.outcome(visit.point, verdict);
            let outcome = verdict.map_or_else(|| UNKNOWN.to_outcome(), render);
            // These two verdicts only carry out the decision of an earlier hook.
            if !agrees || !matches!(expected, Verdict::AlreadyHandled | Verdict::ToLoopback) {
                decisive = Some(outcome.clone());
            }
            steps.push(Step {
                hook: visit.to_string(),
                program: visit.point.program().to_owned(),
                outcome,
                agrees,
                decision_code: (!agrees).then(|| render(expected)),
            });
            next = self.next_visit(visit, expected);
            if let Some(visit) = next {
                visit.readdress(&mut frame, config);
            }
        }
        let outcome = decisive.unwrap_or_else(|| NO_DECISION.to_outcome());
        Ok(Explanation { packet, steps, outcome, agrees, notes })
    }

    /// Returns the verdicts of the decision code and of the loaded program.
    fn decide_twice(
        &self,
        visit: HookVisit,
        frame: &[u8],
        config: &Config,
    ) -> Result<(Verdict, Option<Verdict>)> {
        let verdict = visit.dry_run(&self.env.settings.pins, frame, config)?;
        let tables = Live::new(&self.env.maps, self.registry, config, verdict)?;
        let expected = visit.decide(frame, config, &tables);
        tables.into_result()?;
        Ok((expected, verdict))
    }

    /// Returns the hook to which a verdict sends a packet.
    fn next_visit(&self, visit: HookVisit, verdict: Verdict) -> Option<HookVisit> {
        match (verdict, visit.point) {
            (Verdict::ToEth0(_), HookPoint::ContainerLoEgress) => Some(HookVisit::host_veth(visit.slot)),
            (Verdict::ToHost(_), _) => Some(HookVisit::handled_host_lo()),
            // The program at `eth0` passes all other packets.
            (Verdict::ToContainer { owner, by_loopback: true, .. }, _) => {
                let has_program =
                    self.registry.snapshot().records().any(|record| record.slot == owner.slot && record.ipv6);
                has_program.then_some(HookVisit::container_eth0(owner.slot))
            }
            _ => None,
        }
    }

    fn sender(&self, name: &str) -> Result<Sender> {
        match name {
            OUTSIDE => return Ok(Sender::Outside),
            HOST => return Ok(Sender::Host),
            _ => {}
        }
        let containers = self.registry.snapshot();
        let entry = containers.entry(name)?;
        match entry.state() {
            ContainerState::Ready => Ok(Sender::Container(Box::new(entry.record.clone()))),
            state => Err(Error::conflict(format!(
                "container {name:?} is {}: expected one in service",
                state.name()
            ))),
        }
    }

    /// Fills in the fields that the request omits.
    fn complete(&self, request: &ExplainRequest, sender: &Sender) -> Result<ExplainedPacket> {
        let ExplainRequest { protocol, destination, .. } = *request;
        let source = request.source.unwrap_or_else(|| self.source(sender, destination));
        check_families(protocol, source, destination)?;
        let mut packet =
            ExplainedPacket { protocol, source, source_port: None, destination, destination_port: None };
        if !protocol.has_ports() {
            for (end, port) in [("source", request.source_port), ("destination", request.destination_port)] {
                if let Some(port) = port {
                    return Err(Error::usage(format!(
                        "the {end} port {port} is given, but {protocol} has no ports: expected none"
                    )));
                }
            }
            return Ok(packet);
        }
        packet.destination_port = request.destination_port;
        if packet.destination_port.is_none() {
            return Err(Error::usage(format!(
                "the destination {destination} has no port: expected one, because {protocol} has ports"
            )));
        }
        packet.source_port = Some(match (request.source_port, sender) {
            (Some(port), _) => port,
            (None, Sender::Outside) => USUAL_PORT,
            (None, Sender::Host) => port_of_host(self.registry)?,
            (None, Sender::Container(record)) => {
                record.ports.iter().next().unwrap_or(record.ephemeral_ports.first())
            }
        });
        Ok(packet)
    }

    /// Returns a source address that the sender would use.
    fn source(&self, sender: &Sender, destination: IpAddr) -> IpAddr {
        let (is_v4, state) = (destination.is_ipv4(), self.host.state());
        let foreign: IpAddr = if is_v4 { OUTSIDE_V4.into() } else { OUTSIDE_V6.into() };
        // Without a shared address no source address is valid.
        let primary = if is_v4 {
            state.v4.address.into()
        } else {
            state.v6.as_ref().map_or(foreign, |v6| v6.address.into())
        };
        match sender {
            Sender::Outside => foreign,
            _ if destination.is_loopback() && is_v4 => Ipv4Addr::LOCALHOST.into(),
            _ if destination.is_loopback() => Ipv6Addr::LOCALHOST.into(),
            Sender::Host => primary,
            // A container's kernel takes a local address itself, and otherwise what the route says.
            Sender::Container(_) if self.is_local(destination) => destination,
            Sender::Container(_) => state.source_towards(destination).unwrap_or(primary),
        }
    }

    /// Returns whether an address is a local one for the host and all containers.
    fn is_local(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.host.state().shares(address)
    }
}

/// Returns the first hook that a packet passes; `None` if no program decides on it.
const fn first_visit(sender: &Sender, is_local: bool) -> Option<HookVisit> {
    match sender {
        Sender::Outside => Some(HookVisit::uplink()),
        Sender::Host if is_local => Some(HookVisit::host_lo()),
        Sender::Host => None,
        Sender::Container(record) if is_local => Some(HookVisit::container_lo(record.slot)),
        Sender::Container(record) => Some(HookVisit::host_veth(record.slot)),
    }
}

fn check_families(protocol: Protocol, source: IpAddr, destination: IpAddr) -> Result<()> {
    let version = |address: IpAddr| if address.is_ipv4() { "IPv4" } else { "IPv6" };
    if source.is_ipv4() != destination.is_ipv4() {
        return Err(Error::usage(format!(
            "the source {source} is {} and the destination {destination} is {}: expected the same",
            version(source),
            version(destination)
        )));
    }
    let wrong = if destination.is_ipv4() { Protocol::ICMP6 } else { Protocol::ICMP };
    if protocol == wrong {
        return Err(Error::usage(format!(
            "the protocol {protocol} does not go with {destination}, which is {}: expected {}",
            version(destination),
            if destination.is_ipv4() { Protocol::ICMP } else { Protocol::ICMP6 },
        )));
    }
    Ok(())
}

/// Returns a port that no container owns.
fn port_of_host(registry: &Registry) -> Result<u16> {
    let mut candidates = (USUAL_PORT..=u16::MAX).chain(LOWEST_PORT..USUAL_PORT);
    candidates.find(|port| registry.owner_of(*port).is_host()).ok_or_else(|| {
        Error::conflict("containers own every port that the host could send from: expected a source port")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn explain_address_families_must_match() {
        let (four, six) = (IpAddr::from(OUTSIDE_V4), IpAddr::from(OUTSIDE_V6));
        assert!(check_families(Protocol::TCP, four, four).is_ok());
        assert!(check_families(Protocol::ICMP6, six, six).is_ok());
        for (protocol, source, destination) in [
            (Protocol::TCP, four, six),
            (Protocol::TCP, six, four),
            (Protocol::ICMP, six, six),
            (Protocol::ICMP6, four, four),
        ] {
            let error = check_families(protocol, source, destination).expect_err("they do not match");
            assert!(error.message.contains(&destination.to_string()), "{error}");
            assert!(error.message.contains("expected"), "{error}");
        }
    }
}
