//! What `doctor` finds at the host's own interfaces: what is wrong with the uplink itself, and with what is attached there.

use netlink_packet_route::AddressFamily;

use super::{Daemon, HostFacts, doctor::REPAIR};
use crate::{
    api::{Finding, Health},
    error::{Error, Result},
    kernel::{
        address, clsact,
        link::{self, Interface},
        netlink::Netlink,
        programs::{self, AttachMode, AttachPoint},
    },
};

impl Daemon {
    /// Whether packets can get out by the uplink and in.
    pub(super) fn uplink_finding(&self) -> Finding {
        const SUBJECT: &str = "uplink";
        let (name, problem) = (&self.facts().uplink, |text| Finding::new(SUBJECT, Health::Problem, text));
        let netlink = match Netlink::open() {
            Ok(netlink) => netlink,
            Err(error) => return problem(error.to_string()),
        };
        match self.uplink(&netlink) {
            Err(error) => problem(error.message),
            Ok(uplink) if !uplink.is_up => problem(format!(
                "{name} is down, so containers reach nothing beyond the host: `ip link set {name} up`"
            )),
            Ok(uplink) if !uplink.has_carrier => problem(format!(
                "{name} has no carrier, so containers reach nothing beyond the host: look at its cable, or at the other end of \
                 the link"
            )),
            Ok(uplink) => match address::default_routes(&netlink, AddressFamily::Inet) {
                Err(error) => problem(error.to_string()),
                Ok(routes) => {
                    let mut routes = routes.iter().filter(|route| route.interface == uplink.index);
                    match routes.find_map(|route| route.gateway) {
                        Some(gateway) => {
                            Finding::new(SUBJECT, Health::Ok, format!("{name}, to elsewhere by {gateway}"))
                        }
                        None => Finding::new(
                            SUBJECT,
                            Health::Notice,
                            format!(
                                "no default route with a gateway leaves by {name}, so containers reach no further than its own \
                                 network: `ip route add default via GATEWAY dev {name}`"
                            ),
                        ),
                    }
                }
            },
        }
    }

    fn uplink(&self, netlink: &Netlink) -> Result<Interface> {
        let facts = self.facts();
        link::find_by_index(netlink, facts.uplink_index)?.ok_or_else(|| {
            Error::failure(format!("the uplink {} is gone: containers follow when it is back", facts.uplink))
        })
    }

    /// The host as it is now, against what programs and containers have been told.
    pub(super) fn check_facts(&self) -> Result<()> {
        let facts = self.facts();
        let uplink = self.uplink(&Netlink::open()?)?;
        // One that is down has lost its routes, and perhaps addresses; containers keep theirs until it is up.
        if uplink.is_up {
            // What cannot be shared now cannot be put back either: it is said as it is.
            let now = HostFacts::look(&self.settings, Some(facts.uplink_index))?;
            if (now.v4, now.v6, now.mac) != (facts.v4, facts.v6, facts.mac) {
                return Err(Error::failure(format!(
                    "the addresses of {} are not those that containers have: {REPAIR}",
                    facts.uplink
                )));
            }
        }
        if self.maps.config()? != self.config(&facts) {
            return Err(Error::failure(format!("the map pm_config is not what the daemon wrote: {REPAIR}")));
        }
        if self.maps.broadcasts()? != facts.broadcasts {
            return Err(Error::failure(format!(
                "the map pm_broadcasts is not what the daemon wrote: {REPAIR}"
            )));
        }
        if self.maps.lacks_host_ports(&self.settings.reach)? {
            return Err(Error::failure(format!(
                "the map pm_host_access is not what --host-access says: {REPAIR}"
            )));
        }
        Ok(())
    }

    /// Whether a program of ours is at an interface of the host, and sees packets before anybody else's.
    pub(super) fn check_host_hook(&self, hook: &AttachPoint) -> Result<()> {
        self.check_hook(hook)?;
        let ahead = programs::before_ours(&self.settings.pins, hook)?;
        if ahead.is_empty() {
            return Ok(());
        }
        let remedy = match self.attach_mode {
            AttachMode::Tcx => "`portmap doctor --repair` puts ours first".to_owned(),
            AttachMode::Clsact => format!("give it a preference above {}", clsact::PRIORITY),
        };
        let (ahead, program) = (ahead.join(", "), hook.program);
        Err(Error::failure(format!(
            "{ahead} is before {program}, which does not see what that one ends: {remedy}"
        )))
    }
}
