//! One module per hook, each with a [`Hook`] that contains the hook's whole decision.

pub mod container_eth0;
pub mod container_lo;
mod hook;
pub mod host_lo;
pub mod uplink;
pub mod uplink_egress;
pub mod veth;

use portmap_common::hook_point::HookPoint;

#[cfg(any(test, feature = "testing"))]
pub(crate) use self::hook::ReturnVerdict;
pub use self::{
    container_eth0::ContainerEth0,
    container_lo::ContainerLo,
    hook::{Hook, VerdictSink},
    host_lo::HostLo,
    uplink::Uplink,
    uplink_egress::UplinkEgress,
    veth::Veth,
};
use crate::{frame::Frame, tables::Tables, verdict::Verdict};

/// Returns the verdict on a frame at a hook point.
pub fn decide(point: HookPoint, frame: &impl Frame, tables: &impl Tables) -> Verdict {
    match point {
        HookPoint::UplinkIngress => Uplink::decide(frame, tables),
        HookPoint::UplinkEgress => UplinkEgress::decide(frame, tables),
        HookPoint::VethIngress(_) => Veth::decide(frame, tables),
        HookPoint::HostLoIngress => HostLo::decide(frame, tables),
        HookPoint::ContainerLoEgress => ContainerLo::decide(frame, tables),
        HookPoint::ContainerEth0Ingress => ContainerEth0::decide(frame, tables),
    }
}
