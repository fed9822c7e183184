//! The interfaces of a container, and the programs that are attached to them.

use portmap_common::names::{PROG_CONTAINER_ETH0, PROG_CONTAINER_LO, PROG_VETH_INGRESS};

use crate::{
    error::Result,
    kernel::{
        netlink::Netlink,
        programs::{self, AttachMode, AttachPoint},
    },
    model::ContainerRecord,
    paths::Pins,
};

/// Prefix of the alias of a host veth.
pub(in crate::daemon) const ALIAS: &str = "portmap:";

/// The alias of a host veth. It names the container in the output of `ip link` and for `doctor`.
pub(in crate::daemon) fn alias(name: &str) -> String {
    format!("{ALIAS}{name}")
}

/// The hook at a container's host veth.
pub(in crate::daemon) fn veth_hook(pins: &Pins, record: &ContainerRecord) -> AttachPoint {
    let interface = record.host_veth();
    let (attach_mode, link) = (AttachMode::Clsact, pins.link(&interface));
    AttachPoint { link, interface, ingress: true, program: PROG_VETH_INGRESS, attach_mode }
}

/// The attach mode inside a container's namespace; `best` is the kernel's best mode. A link can be updated
/// without entering the namespace. That matters for an existing namespace, because the daemon may lose access
/// to it.
const fn mode_inside(best: AttachMode, record: &ContainerRecord) -> AttachMode {
    if record.owns_netns { AttachMode::Clsact } else { best }
}

/// The hook at a container's loopback device, for a session in its namespace.
pub(super) fn loopback_hook(best: AttachMode, pins: &Pins, record: &ContainerRecord) -> AttachPoint {
    AttachPoint {
        link: pins.link(&format!("{}-lo", record.host_veth())),
        interface: "lo".to_owned(),
        ingress: false,
        program: PROG_CONTAINER_LO,
        attach_mode: mode_inside(best, record),
    }
}

/// The hook at a container's interface, `eth0` by default, for a session in its namespace. Only IPv6 needs it.
fn eth0_hook(best: AttachMode, pins: &Pins, record: &ContainerRecord) -> AttachPoint {
    AttachPoint {
        link: pins.link(&format!("{}-eth0", record.host_veth())),
        interface: record.interface.to_string(),
        ingress: true,
        program: PROG_CONTAINER_ETH0,
        attach_mode: mode_inside(best, record),
    }
}

/// All hooks inside a container's namespace.
pub(in crate::daemon) fn hooks_inside(
    best: AttachMode,
    pins: &Pins,
    record: &ContainerRecord,
) -> Vec<AttachPoint> {
    let mut hooks = vec![loopback_hook(best, pins, record)];
    if record.ipv6 {
        hooks.push(eth0_hook(best, pins, record));
    }
    hooks
}

/// Attaches the programs inside a container's namespace. `inside` must be a socket of that namespace.
///
/// # Errors
///
/// If the kernel refuses a program; the following ones are not attached.
pub(super) fn attach_inside(
    inside: &Netlink,
    best: AttachMode,
    pins: &Pins,
    record: &ContainerRecord,
) -> Result<()> {
    for hook in hooks_inside(best, pins, record) {
        programs::attach(inside, pins, &hook)?;
    }
    Ok(())
}
