//! What the logs and `doctor` say of the host's state, and which uplinks it has.

use std::net::IpAddr;

use netlink_packet_route::route::RouteType;
use portmap_common::tables::ADDRESSES;
use tracing::{info, warn};

use super::{HostState, interfaces::HostInterface, projection::source_of};
use crate::{
    kernel::{link::SMALLEST_IPV6_MTU, routes::HostRoute},
    settings::{Settings, UplinkChoice},
};

impl HostState {
    /// Warns of restrictions for the containers.
    pub(super) fn warn_of_limits(&self, settings: &Settings) {
        let uplink = &self.uplink;
        for choice in self.missing_uplinks(settings) {
            warn!("--uplink {choice}: no such interface is up; it becomes an uplink when one is");
        }
        for address in settings.addresses.only().iter().filter(|address| !self.shares(**address)) {
            warn!("--address {address}: the host has no such address; containers get it when the host does");
        }
        if !self.has_default(false) {
            warn!(
                "the host has no IPv4 default route: containers reach only the networks of its other routes"
            );
        }
        if self.v6.is_some() && !self.has_default(true) {
            warn!(
                "the host has no IPv6 default route: containers reach only the networks of its other routes"
            );
        }
        if self.v6.is_none() && settings.ipv6 {
            if self.mtu < SMALLEST_IPV6_MTU {
                warn!(
                    "the MTU of {uplink} is {}: IPv6 needs {SMALLEST_IPV6_MTU}, so containers have none",
                    self.mtu
                );
            } else {
                info!("the host has no global IPv6 address, so containers have none");
            }
        }
        // All of them, without the primary ones, must fit.
        if self.addresses.len() > ADDRESSES {
            warn!(
                "the host has {} addresses, but the maps of shared addresses have room for {ADDRESSES} only: \
                 containers are not reached by the others; restrict them with --address",
                self.addresses.len()
            );
        }
        if let Some(text) = self.too_many_routes() {
            warn!("{text}");
        }
    }

    /// The values of `--uplink` that name no present uplink.
    pub(in crate::daemon) fn missing_uplinks<'a>(
        &self,
        settings: &'a Settings,
    ) -> impl Iterator<Item = &'a UplinkChoice> {
        settings.uplinks.iter().filter(|choice| {
            **choice != UplinkChoice::Auto && !self.uplink_names().any(|name| choice.names(name))
        })
    }

    /// The further uplinks, with their indices.
    pub(in crate::daemon) fn further_uplinks(&self) -> impl Iterator<Item = (u32, &HostInterface)> {
        self.interfaces.iter().filter(|(_, found)| found.is_uplink).map(|(index, found)| (*index, found))
    }

    /// The indices of all uplinks, the main one first.
    pub(in crate::daemon) fn uplink_indices(&self) -> impl Iterator<Item = u32> {
        [self.uplink_index].into_iter().chain(self.further_uplinks().map(|(index, _)| index))
    }

    /// The names of all uplinks, the main one first.
    pub(in crate::daemon) fn uplink_names(&self) -> impl Iterator<Item = &str> {
        let further = self.further_uplinks().map(|(_, found)| found.name.as_str());
        [self.uplink.as_str()].into_iter().chain(further)
    }

    /// Names all uplinks, the main one first.
    pub(in crate::daemon) fn describe_uplinks(&self) -> String {
        self.uplink_names().collect::<Vec<_>>().join(", ")
    }

    /// Names the uplink that determines the link speed.
    pub(in crate::daemon) fn describe_fastest(&self) -> String {
        let uplinks = self.describe_uplinks();
        if self.further_uplinks().next().is_none() { uplinks } else { format!("the fastest of {uplinks}") }
    }

    /// Says which addresses are shared, and by which uplinks packets come.
    pub(in crate::daemon) fn describe_sharing(&self) -> String {
        let text = format!("sharing {} of {}", self.primary_addresses(), self.uplink);
        let further: Vec<&str> = self.further_uplinks().map(|(_, found)| found.name.as_str()).collect();
        if further.is_empty() { text } else { format!("{text}; further uplinks: {}", further.join(", ")) }
    }

    /// Whether the uplinks are those of an earlier state.
    pub(in crate::daemon) fn has_same_uplinks(&self, before: &Self) -> bool {
        self.uplink_indices().eq(before.uplink_indices()) && self.uplink_names().eq(before.uplink_names())
    }

    /// Whether the host has a default route of an IP version.
    pub(in crate::daemon) fn has_default(&self, is_v6: bool) -> bool {
        let is_one = |route: &&HostRoute| route.kind == RouteType::Unicast && route.is_default();
        self.routes.iter().filter(is_one).any(|route| route.destination.is_ipv6() == is_v6)
    }

    /// The warning that containers lack routes of the host, if they do.
    pub(in crate::daemon) fn too_many_routes(&self) -> Option<String> {
        (self.routes_left_out != 0).then(|| {
            format!(
                "the host has too many different routes: containers have its default routes only, and lack \
                 {} with sources, metrics or errors of their own",
                self.routes_left_out
            )
        })
    }

    /// Describes all shared addresses.
    pub(in crate::daemon) fn describe_addresses(&self) -> String {
        const MOST_NAMED: usize = 8;
        let more = self.more_addresses();
        let text = format!("{} on {}", self.primary_addresses(), self.uplink);
        if more.is_empty() {
            return text;
        }
        let named: Vec<String> = more.iter().take(MOST_NAMED).map(IpAddr::to_string).collect();
        let others = more.len() - named.len();
        let others = if others == 0 { String::new() } else { format!(" and {others} more") };
        format!("{text}; also {}{others}", named.join(", "))
    }

    /// The source address of a container's packets to a destination outside, if a route decides on it.
    pub(in crate::daemon) fn source_towards(&self, destination: IpAddr) -> Option<IpAddr> {
        source_of(&self.routes, destination)
    }

    /// Describes how packets of containers are routed.
    pub(in crate::daemon) fn describe_routing(&self) -> String {
        let v6 = self.v6.map(|_| ("IPv6", self.direct6));
        let each = [("IPv4", self.direct4)].into_iter().chain(v6).map(|(version, is_direct)| {
            if is_direct {
                format!("{version} by the uplink's network and gateway")
            } else {
                format!("{version} as the kernel routes the host's own packets")
            }
        });
        each.collect::<Vec<_>>().join(", ")
    }

    /// Renders the primary addresses with their prefixes.
    pub(in crate::daemon) fn primary_addresses(&self) -> String {
        let v4 = format!("{}/{}", self.v4.address, self.v4.prefix_length);
        match &self.v6 {
            Some(v6) => format!("{v4} and {}/{}", v6.address, v6.prefix_length),
            None => v4,
        }
    }
}
