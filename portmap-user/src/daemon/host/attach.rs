//! Where programs are attached at the host's own interfaces.

use portmap_common::names::{PROG_LO_INGRESS, PROG_UPLINK_EGRESS, PROG_UPLINK_INGRESS};

use crate::{
    kernel::programs::{AttachMode, AttachPoint},
    paths::Pins,
};

/// The hooks at the uplink.
pub(in crate::daemon) fn uplink_hooks(
    attach_mode: AttachMode,
    pins: &Pins,
    uplink: &str,
) -> [AttachPoint; 2] {
    // An interface's name can have dots, a name in a bpffs cannot.
    [(true, PROG_UPLINK_INGRESS, "uplink"), (false, PROG_UPLINK_EGRESS, "uplink-out")].map(
        |(ingress, program, link)| AttachPoint {
            interface: uplink.to_owned(),
            ingress,
            program,
            attach_mode,
            link: pins.link(link),
        },
    )
}

/// All hooks at the host's own interfaces. That of the loopback device comes first, because a container's packet for the host
/// needs it as soon as such a packet can arrive.
pub(in crate::daemon) fn hooks(attach_mode: AttachMode, pins: &Pins, uplink: &str) -> [AttachPoint; 3] {
    let (interface, link) = ("lo".to_owned(), pins.link("lo"));
    let lo = AttachPoint { interface, ingress: true, program: PROG_LO_INGRESS, attach_mode, link };
    let [uplink_in, uplink_out] = uplink_hooks(attach_mode, pins, uplink);
    [lo, uplink_in, uplink_out]
}
