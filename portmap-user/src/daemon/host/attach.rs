//! The attach points of programs at the host's own interfaces.

use std::path::PathBuf;

use portmap_common::names::{
    PROG_L3_EGRESS, PROG_L3_INGRESS, PROG_LO_INGRESS, PROG_UPLINK_EGRESS, PROG_UPLINK_INGRESS,
};

use super::HostState;
use crate::{
    kernel::programs::{AttachMode, AttachPoint},
    paths::Pins,
};

/// Prefix of the pins of links at the host's interfaces. The interface's index follows, because its name can contain
/// dots, which a bpffs refuses, and because another interface can become the main uplink.
const PREFIX: &str = "if";

/// The hooks at an interface of the host, by its index.
pub(in crate::daemon) fn interface_hooks(
    attach_mode: AttachMode,
    pins: &Pins,
    index: u32,
    name: &str,
    is_ethernet: bool,
) -> [AttachPoint; 2] {
    let links = ["", "-out"].map(|suffix| pins.link(&format!("{PREFIX}{index}{suffix}")));
    both_ways(attach_mode, name, is_ethernet, links)
}

/// The hooks at the main uplink.
pub(in crate::daemon) fn uplink_hooks(
    attach_mode: AttachMode,
    pins: &Pins,
    state: &HostState,
) -> [AttachPoint; 2] {
    interface_hooks(attach_mode, pins, state.uplink_index, &state.uplink, state.is_ethernet)
}

/// The hooks of an earlier version at its uplink, whose pins do not have the index.
pub(super) fn former_hooks(attach_mode: AttachMode, pins: &Pins, uplink: &str) -> [AttachPoint; 2] {
    both_ways(attach_mode, uplink, true, ["uplink", "uplink-out"].map(|link| pins.link(link)))
}

fn both_ways(
    attach_mode: AttachMode,
    interface: &str,
    is_ethernet: bool,
    [link_in, link_out]: [PathBuf; 2],
) -> [AttachPoint; 2] {
    let [ingress, egress] = if is_ethernet {
        [PROG_UPLINK_INGRESS, PROG_UPLINK_EGRESS]
    } else {
        [PROG_L3_INGRESS, PROG_L3_EGRESS]
    };
    [(true, ingress, link_in), (false, egress, link_out)].map(|(ingress, program, link)| AttachPoint {
        interface: interface.to_owned(),
        ingress,
        program,
        attach_mode,
        link,
    })
}

/// The hook at the host's loopback device.
pub(in crate::daemon) fn loopback_hook(attach_mode: AttachMode, pins: &Pins) -> AttachPoint {
    let (interface, link) = ("lo".to_owned(), pins.link("lo"));
    AttachPoint { interface, ingress: true, program: PROG_LO_INGRESS, attach_mode, link }
}

/// The hooks without which no container is in service: at the loopback device and at the main uplink. The loopback
/// device is the first, because packets from containers to the host need its program from the start.
pub(in crate::daemon) fn main_hooks(
    attach_mode: AttachMode,
    pins: &Pins,
    state: &HostState,
) -> [AttachPoint; 3] {
    let [uplink_in, uplink_out] = uplink_hooks(attach_mode, pins, state);
    [loopback_hook(attach_mode, pins), uplink_in, uplink_out]
}

/// The hooks at the other interfaces of the host.
pub(in crate::daemon) fn other_hooks(
    attach_mode: AttachMode,
    pins: &Pins,
    state: &HostState,
) -> impl Iterator<Item = AttachPoint> {
    let others = state.interfaces.iter();
    others.flat_map(move |(index, found)| {
        interface_hooks(attach_mode, pins, *index, &found.name, found.is_ethernet)
    })
}
