//! Verdicts in words.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
};

use portmap_common::{reason::Reason, tables::PortEntry};
use portmap_ebpf::{
    Verdict,
    verdict::{IcmpIdRewrite, NextHop},
};

use super::place::Place;
use crate::api::Outcome;

/// A verdict that needs no details.
pub(super) struct Plain {
    verdict: &'static str,
    text: &'static str,
}

/// The verdict on packets that pass no program which decides.
pub(super) const NO_DECISION: Plain = Plain {
    verdict: "none",
    text: "no program decides: what the host sends to other addresses than its own is not portmap's",
};

/// The verdict of a program whose answer makes no sense.
pub(super) const UNKNOWN: Plain =
    Plain { verdict: "unknown", text: "the loaded program gives no answer that this portmapd understands" };

impl Plain {
    const fn new(verdict: &'static str, text: &'static str) -> Self {
        Self { verdict, text }
    }

    pub(super) fn to_outcome(&self) -> Outcome {
        outcome(self.verdict, self.text)
    }
}

fn outcome(verdict: &str, text: impl Into<String>) -> Outcome {
    Outcome { verdict: verdict.to_owned(), reason: None, target: None, text: text.into() }
}

/// The names of containers by slot.
pub(super) struct Names(pub(super) BTreeMap<u16, String>);

impl Names {
    /// What a verdict at a hook says.
    pub(super) fn outcome(&self, place: Place, verdict: Verdict) -> Outcome {
        match verdict {
            Verdict::Continue(reason) => with_reason("continue", "left to the host", reason),
            Verdict::Drop { reason, .. } => with_reason("drop", "dropped", reason),
            Verdict::Decided => {
                let text = match place {
                    Place::HostLoopback { .. } => "decided already: goes on to the host's stack",
                    _ => "goes on as if there were no program",
                };
                Plain::new("decided", text).to_outcome()
            }
            Verdict::InFlow(_) => {
                Plain::new("in_flow", "goes on in a flow of the uplink's queue").to_outcome()
            }
            Verdict::Own(_) => Plain::new("own", "stays inside").to_outcome(),
            Verdict::ToContainer { owner, renumber, .. } => self.to_container(owner, renumber),
            Verdict::ToOutside { next_hop, renumber, .. } => {
                let next_hop = match next_hop {
                    NextHop::V4(address) => Ipv4Addr::from(address).to_string(),
                    NextHop::V6(address) => Ipv6Addr::from(address).to_string(),
                };
                let text = format!("to the outside by {next_hop}{}", renumbered(renumber));
                Outcome { target: Some(next_hop), ..outcome("to_outside", text) }
            }
            Verdict::ToHost(_) => Plain::new("to_host", "to the host's stack").to_outcome(),
            Verdict::ToEth0(ifindex) => outcome("to_eth0", format!("out by eth0 (ifindex {ifindex})")),
            Verdict::ToLoopback => Plain::new("to_loopback", "into the container's lo").to_outcome(),
        }
    }

    fn to_container(&self, owner: PortEntry, renumber: IcmpIdRewrite) -> Outcome {
        let PortEntry { ifindex, slot, .. } = owner;
        let place = format!("slot {slot}, pm{slot}, ifindex {ifindex}");
        let target = self.0.get(&slot).cloned();
        let text = match &target {
            Some(name) => format!("to container {name} ({place})"),
            None => format!("to a container that is not known ({place})"),
        };
        Outcome { target, ..outcome("to_container", text + &renumbered(renumber)) }
    }
}

fn with_reason(verdict: &str, what: &str, reason: Reason) -> Outcome {
    let text = format!("{what}: {} - {}", reason.name(), reason.text());
    Outcome { reason: Some(reason.name().to_owned()), ..outcome(verdict, text) }
}

fn renumbered(IcmpIdRewrite { from, to, .. }: IcmpIdRewrite) -> String {
    if from == to { String::new() } else { format!(", with the identifier {to} instead of {from}") }
}

#[cfg(test)]
mod tests {
    use portmap_ebpf::verdict::Origin;

    use super::*;

    #[test]
    fn verdicts_have_words() {
        let names = Names(BTreeMap::from([(2, "b".to_owned())]));
        let text = |verdict| names.outcome(Place::Uplink, verdict).text;
        let to = |slot| Verdict::ToContainer {
            origin: Origin::Outside,
            owner: PortEntry { ifindex: 1_000_000 + u32::from(slot), slot, flags: 0 },
            by_loopback: false,
            renumber: IcmpIdRewrite::NONE,
        };
        assert_eq!(text(to(2)), "to container b (slot 2, pm2, ifindex 1000002)");
        assert_eq!(text(to(3)), "to a container that is not known (slot 3, pm3, ifindex 1000003)");
        assert_eq!(
            text(Verdict::Drop { slot: 2, reason: Reason::SourcePort }),
            "dropped: source_port - The source port is not owned by the sending container."
        );
        assert!(text(Verdict::Continue(Reason::HostPort)).starts_with("left to the host: host_port - "));
        let renumber = IcmpIdRewrite { message: 34, from: 1, to: 9 };
        let next_hop = NextHop::V4([10, 0, 0, 2]);
        assert_eq!(
            text(Verdict::ToOutside { slot: 2, next_hop, renumber }),
            "to the outside by 10.0.0.2, with the identifier 9 instead of 1"
        );
    }
}
