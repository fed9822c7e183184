//! Rendering of verdicts as text.

use std::collections::BTreeMap;

use nix::net::if_::if_indextoname;
use portmap_common::{hook_point::HookPoint, reason::Reason, tables::PortEntry};
use portmap_ebpf::{Verdict, verdict::IcmpIdRewrite};

use crate::api::Outcome;

/// A verdict without details.
pub(in crate::daemon::observe) struct Fixed {
    verdict: &'static str,
    text: &'static str,
}

/// The verdict on a packet that no program decides on.
pub(in crate::daemon::observe) const NO_DECISION: Fixed =
    Fixed { verdict: "none", text: "not handled by portmap: host traffic to a remote address" };

/// The verdict of a program whose report cannot be decoded.
pub(in crate::daemon::observe) const UNKNOWN: Fixed =
    Fixed { verdict: "unknown", text: "the loaded program reports no verdict that this portmapd can decode" };

impl Fixed {
    const fn new(verdict: &'static str, text: &'static str) -> Self {
        Self { verdict, text }
    }

    pub(in crate::daemon::observe) fn to_outcome(&self) -> Outcome {
        outcome(self.verdict, self.text)
    }
}

fn outcome(verdict: &str, text: impl Into<String>) -> Outcome {
    Outcome { verdict: verdict.to_owned(), reason: None, target: None, text: text.into() }
}

/// The names of containers by slot.
pub(in crate::daemon::observe) struct Names(pub(in crate::daemon::observe) BTreeMap<u16, String>);

impl Names {
    /// Renders a verdict at a hook.
    pub(in crate::daemon::observe) fn outcome(&self, point: HookPoint, verdict: Verdict) -> Outcome {
        match verdict {
            Verdict::Continue(reason) => with_reason("continue", "left to the host", reason),
            Verdict::Drop { reason, .. } => with_reason("drop", "dropped", reason),
            Verdict::AlreadyHandled => {
                let text = match point {
                    HookPoint::HostLoIngress => "already handled: continues to the host's stack",
                    _ => "continues as if there were no program",
                };
                Fixed::new("decided", text).to_outcome()
            }
            Verdict::AssignFlow(_) => {
                Fixed::new("in_flow", "continues in a flow of the uplink's qdisc").to_outcome()
            }
            Verdict::DeliverLocal(_) => Fixed::new("own", "stays inside").to_outcome(),
            Verdict::ToContainer { owner, rewrite, .. } => self.to_container(owner, rewrite),
            Verdict::ToOutside { ifindex, next_hop, rewrite, .. } => {
                let interface = if_indextoname(ifindex).ok().and_then(|name| name.into_string().ok());
                // The kernel's error can be an empty name.
                let interface = interface.filter(|name| !name.is_empty());
                let interface = interface.unwrap_or_else(|| format!("interface {ifindex}"));
                let next_hop = next_hop.ip().map(|address| address.to_string());
                let by = next_hop.as_ref().map_or_else(
                    || format!("{interface}, to a neighbour that the kernel must resolve first"),
                    |address| format!("{address} on {interface}"),
                );
                let text = format!("to the outside by {by}{}", id_rewrite(rewrite));
                Outcome { target: next_hop, ..outcome("to_outside", text) }
            }
            Verdict::ToHost(_) => Fixed::new("to_host", "to the host's stack").to_outcome(),
            Verdict::ToEth0(ifindex) => {
                outcome("to_eth0", format!("out by its interface (ifindex {ifindex})"))
            }
            Verdict::ToLoopback => Fixed::new("to_loopback", "into the container's lo").to_outcome(),
        }
    }

    fn to_container(&self, owner: PortEntry, rewrite: IcmpIdRewrite) -> Outcome {
        let PortEntry { ifindex, slot, .. } = owner;
        let location = format!("slot {slot}, pm{slot}, ifindex {ifindex}");
        let target = self.0.get(&slot).cloned();
        let text = match &target {
            Some(name) => format!("to container {name} ({location})"),
            None => format!("to an unknown container ({location})"),
        };
        Outcome { target, ..outcome("to_container", text + &id_rewrite(rewrite)) }
    }
}

fn with_reason(verdict: &str, what: &str, reason: Reason) -> Outcome {
    let text = format!("{what}: {} - {}", reason.name(), reason.text());
    Outcome { reason: Some(reason.name().to_owned()), ..outcome(verdict, text) }
}

fn id_rewrite(IcmpIdRewrite { from, to, .. }: IcmpIdRewrite) -> String {
    if from == to { String::new() } else { format!(", with the identifier {to} instead of {from}") }
}

#[cfg(test)]
mod tests {
    use portmap_ebpf::verdict::{NextHop, Origin};

    use super::*;

    #[test]
    fn explain_renders_verdicts() {
        let names = Names(BTreeMap::from([(2, "b".to_owned())]));
        let text = |verdict| names.outcome(HookPoint::UplinkIngress, verdict).text;
        let to = |slot| Verdict::ToContainer {
            origin: Origin::Outside,
            owner: PortEntry { ifindex: 1_000_000 + u32::from(slot), slot, flags: 0 },
            by_loopback: false,
            rewrite: IcmpIdRewrite::NONE,
        };
        assert_eq!(text(to(2)), "to container b (slot 2, pm2, ifindex 1000002)");
        assert_eq!(text(to(3)), "to an unknown container (slot 3, pm3, ifindex 1000003)");
        assert_eq!(
            text(Verdict::Drop { slot: 2, reason: Reason::SourcePort }),
            "dropped: source_port - The source port is not owned by the sending container."
        );
        assert!(text(Verdict::Continue(Reason::HostPort)).starts_with("left to the host: host_port - "));
        let rewrite = IcmpIdRewrite { message: 34, from: 1, to: 9 };
        let next_hop = NextHop::v4([10, 0, 0, 2]);
        assert_eq!(
            text(Verdict::ToOutside { slot: 2, ifindex: 4_000_000_000, next_hop, rewrite }),
            "to the outside by 10.0.0.2 on interface 4000000000, with the identifier 9 instead of 1"
        );
    }
}
