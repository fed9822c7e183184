//! IPsec policies of the host. The programs send and deliver packets of containers below IPsec, so no policy applies to
//! them.

use crate::{
    api::{ExplainedPacket, Finding, Health},
    error::Result,
    kernel::ipsec::{self, Policy},
};

const SUBJECT: &str = "host IPsec";
/// Most policies that a finding names.
const MOST_NAMED: usize = 4;

/// Reports that the host has policies.
pub(in crate::daemon) fn finding() -> Finding {
    match ipsec::policies() {
        Ok(policies) if policies.is_empty() => Finding::new(SUBJECT, Health::Ok, "the host has no policies"),
        Ok(policies) => Finding::new(SUBJECT, Health::Notice, describe(&policies)),
        Err(error) => Finding::new(
            SUBJECT,
            Health::Notice,
            format!("{error}: it is not known whether containers miss one"),
        ),
    }
}

/// A line about the policies that a packet between containers and the outside would meet if the host sent or received
/// it.
///
/// # Errors
///
/// If they cannot be listed.
pub(in crate::daemon) fn notes(packet: &ExplainedPacket) -> Result<Vec<String>> {
    let mut policies = ipsec::policies()?;
    policies.retain(|policy| policy.concerns(packet.source, packet.destination));
    Ok(if policies.is_empty() { Vec::new() } else { vec![describe(&policies)] })
}

fn describe(policies: &[Policy]) -> String {
    let named: Vec<String> = policies.iter().take(MOST_NAMED).map(Policy::to_string).collect();
    let others = match policies.len() - named.len() {
        0 => String::new(),
        others => format!("; and {others} more"),
    };
    format!(
        "IPsec policies do not apply to containers, whose packets are neither encrypted nor refused by them: \
         {}{others} (`ip xfrm policy`); use a VPN with an interface of its own, such as WireGuard or an XFRM interface",
        named.join("; ")
    )
}
