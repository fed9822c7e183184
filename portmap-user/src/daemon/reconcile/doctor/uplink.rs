//! The checks of `doctor` at the host's own interfaces: the uplinks' state, the host's addresses, and the
//! programs.

use super::remedy::REPAIR;
use crate::{
    api::{Finding, Health},
    daemon::{host::HostState, reconcile::reconciler::Reconciler},
    error::{Error, Result},
    kernel::{
        clsact,
        link::{self, Interface},
        netlink::Netlink,
        programs::{self, AttachMode, AttachPoint},
    },
    settings::Settings,
};

const SUBJECT: &str = "uplink";

/// Checks that packets can leave and arrive by the uplinks, and that all that the settings name exist.
pub(super) fn findings(netlink: &Netlink, settings: &Settings, state: &HostState) -> Vec<Finding> {
    let problem = |error: Error| Finding::new(SUBJECT, Health::Problem, error.message);
    let mut findings = vec![check(netlink, settings, state).unwrap_or_else(problem)];
    for (index, uplink) in state.further_uplinks() {
        let checked = find(netlink, index, &uplink.name).and_then(|found| check_link(&found));
        let well = || Finding::new(SUBJECT, Health::Ok, format!("{}, a further uplink", uplink.name));
        findings.push(checked.map_or_else(problem, |()| well()));
    }
    // A name or pattern that is missing may be the former one of an uplink that has been renamed.
    let has_uplinks = state.uplink_names().count() > 1 || settings.uplinks.len() > 1;
    findings.extend(state.missing_uplinks(settings).filter(|_| has_uplinks).map(|choice| {
        let text =
            format!("--uplink {choice} selects no interface: it becomes an uplink when it exists and is up");
        Finding::new(SUBJECT, Health::Notice, text)
    }));
    findings
}

fn check(netlink: &Netlink, settings: &Settings, state: &HostState) -> Result<Finding> {
    let name = &state.uplink;
    check_link(&find(netlink, state.uplink_index, name)?)?;
    let now = HostState::probe(netlink, settings, Some(state));
    let now = now.as_ref().unwrap_or(state);
    Ok(match now.v4.gateway {
        Some(gateway) => Finding::new(SUBJECT, Health::Ok, format!("{name}, default gateway {gateway}")),
        None if now.has_default(false) => Finding::new(
            SUBJECT,
            Health::Ok,
            format!(
                "{name}; the default route has no single IPv4 gateway there, so the kernel selects the next hop"
            ),
        ),
        None => Finding::new(
            SUBJECT,
            Health::Notice,
            format!(
                "there is no default route, so containers reach only the networks of other routes: run \
                 `ip route add default via GATEWAY dev {name}`"
            ),
        ),
    })
}

/// Checks that an uplink is up and has a carrier.
fn check_link(uplink: &Interface) -> Result<()> {
    let name = &uplink.name;
    if !uplink.is_up {
        return Err(Error::failure(format!(
            "{name} is down, so containers reach nothing by it: run `ip link set {name} up`"
        )));
    }
    if !uplink.has_carrier {
        return Err(Error::failure(format!(
            "{name} has no carrier, so containers reach nothing by it: check its cable and the other end of the link"
        )));
    }
    Ok(())
}

fn find(netlink: &Netlink, index: u32, name: &str) -> Result<Interface> {
    link::find_by_index(netlink, index)?.ok_or_else(|| {
        Error::failure(format!(
            "the uplink {name} does not exist: the daemon attaches to it again when it returns"
        ))
    })
}

impl Reconciler {
    /// Compares the host's present state with the state that the daemon has applied to the programs and the
    /// containers.
    pub(super) fn check_host_state(&self, netlink: &Netlink, state: &HostState) -> Result<()> {
        let env = &self.env;
        // An uplink that is down has no routes and may have lost addresses, but containers keep theirs until
        // it is up again.
        if find(netlink, state.uplink_index, &state.uplink)?.is_up {
            // An address that cannot be shared has no other remedy than the one that the error names.
            let now = HostState::probe(netlink, &env.settings, Some(state))?;
            if (now.v4, now.v6, now.mac, &now.addresses, &now.routes)
                != (state.v4, state.v6, state.mac, &state.addresses, &state.routes)
            {
                return Err(Error::failure(format!(
                    "the addresses or routes of the host differ from those of the containers: {REPAIR}"
                )));
            }
        }
        if env.maps.config()? != env.config(state) {
            return Err(Error::failure(format!("the map pm_config differs from the host: {REPAIR}")));
        }
        if !env.maps.has_broadcasts(&state.broadcasts)? {
            return Err(Error::failure(format!("the map pm_broadcasts differs from the host: {REPAIR}")));
        }
        if !env.maps.has_addresses(&state.more_addresses())? {
            return Err(Error::failure(format!(
                "the maps pm_addresses4, pm_addresses6 and pm_addr_filter differ from the host: {REPAIR}"
            )));
        }
        if env.maps.lacks_host_ports(&env.settings.reach)? {
            return Err(Error::failure(format!(
                "the map pm_host_access differs from --host-access: {REPAIR}"
            )));
        }
        Ok(())
    }

    /// Checks that a program is attached to an interface of the host, in front of all other programs.
    pub(super) fn check_first_hook(&self, netlink: &Netlink, hook: &AttachPoint) -> Result<()> {
        self.check_hook(netlink, hook)?;
        let ahead = programs::before_ours(netlink, &self.env.settings.pins, hook)?;
        if ahead.is_empty() {
            return Ok(());
        }
        let remedy = match hook.attach_mode {
            AttachMode::Tcx => "`portmap doctor --repair` moves it to the front".to_owned(),
            AttachMode::Clsact => {
                format!("detach it from {}, or set its preference above {}", hook.interface, clsact::PRIORITY)
            }
        };
        let (ahead, program) = (ahead.join(", "), hook.program);
        Err(Error::failure(format!(
            "{ahead} runs before {program}, which does not see packets that it accepts, drops or redirects: {remedy}"
        )))
    }
}
