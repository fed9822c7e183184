//! The attach points of programs at the host's own interfaces.

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
    // The pin does not have the interface's name, because that can contain dots, which a bpffs refuses.
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

/// All hooks at the host's own interfaces. The loopback device is the first, because packets from containers
/// to the host need its program from the start.
pub(in crate::daemon) fn hooks(attach_mode: AttachMode, pins: &Pins, uplink: &str) -> [AttachPoint; 3] {
    let (interface, link) = ("lo".to_owned(), pins.link("lo"));
    let lo = AttachPoint { interface, ingress: true, program: PROG_LO_INGRESS, attach_mode, link };
    let [uplink_in, uplink_out] = uplink_hooks(attach_mode, pins, uplink);
    [lo, uplink_in, uplink_out]
}
