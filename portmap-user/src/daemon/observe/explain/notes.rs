//! What else on the host may decide on a packet: programs of others that run before portmap's, and NAT rules.

use portmap_common::hook_point::HookPoint;

use super::{Explainer, Sender, hook_visit::HookVisit};
use crate::{
    api::Explanation,
    daemon::{
        container::attach::veth_hook,
        host::{
            attach::{loopback_hook, uplink_hooks},
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
    /// Names the programs that run before ours at one of the host's interfaces. Nothing tells what they decide.
    pub(super) fn program_notes(&self, visit: HookVisit) -> Vec<String> {
        let Some(hook) = self.attach_point(visit) else { return Vec::new() };
        let pins = &self.env.settings.pins;
        let ahead = match Netlink::open().and_then(|netlink| programs::before_ours(&netlink, pins, &hook)) {
            Ok(ahead) => ahead,
            Err(error) => return vec![error.to_string()],
        };
        let note = |other: String| {
            format!(
                "{other} runs before {} at {visit}: a packet that it accepts, drops or redirects does not get further",
                hook.program
            )
        };
        ahead.into_iter().map(note).collect()
    }

    /// The attach point of a hook at an interface of the host.
    fn attach_point(&self, visit: HookVisit) -> Option<AttachPoint> {
        let (mode, pins) = (self.env.attach_mode, &self.env.settings.pins);
        let state = self.host.state();
        match visit.point {
            HookPoint::UplinkIngress => Some(uplink_hooks(mode, pins, &state.uplink).into_iter().next()?),
            HookPoint::HostLoIngress => Some(loopback_hook(mode, pins)),
            HookPoint::VethIngress(slot) => {
                let containers = self.registry.snapshot();
                containers.records().find(|record| record.slot == slot).map(|record| veth_hook(pins, record))
            }
            HookPoint::UplinkEgress | HookPoint::ContainerLoEgress | HookPoint::ContainerEth0Ingress => None,
        }
    }

    /// Names the NAT rules that change the destination of a packet that is left to the host. The host's own packets
    /// are translated before they reach a hook.
    pub(super) fn nat_notes(&self, sender: &Sender, explanation: &Explanation) -> Result<Vec<String>> {
        let is_for_host = matches!(&*explanation.outcome.verdict, "continue" | "to_host");
        if matches!(sender, Sender::Host) || !is_for_host {
            return Ok(Vec::new());
        }
        let (state, managed) = (self.host.state(), self.env.managed_ports());
        Nat { state: &state, managed: &managed }.notes(&explanation.packet)
    }
}
