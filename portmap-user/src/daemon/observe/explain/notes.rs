//! What else on the host may decide on a packet: programs of others that run before portmap's, and NAT rules.

use portmap_common::hook_point::HookPoint;

use super::{Explainer, Sender, hook_visit::HookVisit};
use crate::{
    api::Explanation,
    daemon::{
        container::attach::veth_hook,
        host::{
            attach::{interface_hooks, loopback_hook, uplink_hooks},
            ipsec,
            nat::Nat,
        },
    },
    error::Result,
    kernel::{
        netlink::Netlink,
        programs::{self, AttachPoint},
    },
};

impl Explainer<'_> {
    /// Names the programs that run before ours at the host's interfaces of a hook. Nothing tells what they decide.
    pub(super) fn program_notes(&self, visit: HookVisit) -> Vec<String> {
        let hooks = self.attach_points(visit);
        let has_several = hooks.len() > 1;
        hooks.iter().flat_map(|hook| self.notes_on(hook, visit, has_several)).collect()
    }

    fn notes_on(&self, hook: &AttachPoint, visit: HookVisit, has_several: bool) -> Vec<String> {
        let pins = &self.env.settings.pins;
        let ahead = match Netlink::open().and_then(|netlink| programs::before_ours(&netlink, pins, hook)) {
            Ok(ahead) => ahead,
            Err(error) => return vec![error.to_string()],
        };
        let place = if has_several { format!("{visit} of {}", hook.interface) } else { visit.to_string() };
        let note = |other: String| {
            format!(
                "{other} runs before {} at {place}: a packet that it accepts, drops or redirects does not get further",
                hook.program
            )
        };
        ahead.into_iter().map(note).collect()
    }

    /// The attach points of a hook at interfaces of the host. A packet from outside comes by any of the uplinks.
    fn attach_points(&self, visit: HookVisit) -> Vec<AttachPoint> {
        let (mode, pins) = (self.env.attach_mode, &self.env.settings.pins);
        let state = self.host.state();
        match visit.point {
            HookPoint::UplinkIngress => {
                let further = state
                    .further_uplinks()
                    .map(|(index, found)| interface_hooks(mode, pins, index, &found.name, found.is_ethernet));
                let all = [uplink_hooks(mode, pins, &state)].into_iter().chain(further);
                all.flatten().filter(|hook| hook.ingress).collect()
            }
            HookPoint::HostLoIngress => vec![loopback_hook(mode, pins)],
            HookPoint::VethIngress(slot) => {
                let containers = self.registry.snapshot();
                let record = containers.records().find(|record| record.slot == slot);
                record.map(|record| veth_hook(pins, record)).into_iter().collect()
            }
            HookPoint::UplinkEgress | HookPoint::ContainerLoEgress | HookPoint::ContainerEth0Ingress => {
                Vec::new()
            }
        }
    }

    /// Names the NAT rules that change the destination of a packet that is left to the host. The host's own packets
    /// are translated before they reach a hook.
    pub(super) fn nat_notes(&self, sender: &Sender, explanation: &Explanation) -> Result<Vec<String>> {
        let is_for_host = matches!(&*explanation.outcome.verdict, "continue" | "to_host");
        if matches!(sender, Sender::Host) || !is_for_host {
            return Ok(Vec::new());
        }
        let (state, owned) = (self.host.state(), self.registry.snapshot().owned_ports());
        let managed = self.env.managed_ports().union(&owned);
        Nat { state: &state, managed: &managed }.notes(&explanation.packet)
    }

    /// Names the IPsec policies that a packet between a container and the outside would meet if the host sent or
    /// received it.
    pub(super) fn ipsec_notes(sender: &Sender, explanation: &Explanation) -> Result<Vec<String>> {
        let is_between = matches!(
            (sender, &*explanation.outcome.verdict),
            (Sender::Outside, "to_container") | (Sender::Container(_), "to_outside")
        );
        if is_between { ipsec::notes(&explanation.packet) } else { Ok(Vec::new()) }
    }
}
