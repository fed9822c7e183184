//! One module for each hook, each with a [`Hook`] that is the whole decision.

pub mod container_eth0;
pub mod container_lo;
pub mod host_lo;
pub mod uplink;
pub mod uplink_egress;
pub mod veth;

pub use self::{
    container_eth0::ContainerEth0, container_lo::ContainerLo, host_lo::HostLo, uplink::Uplink,
    uplink_egress::UplinkEgress, veth::Veth,
};
use crate::{
    frame::Frame,
    packet::{ParsePath, SlowPath, V4, V6, Version, ethernet::Kind},
    tables::Tables,
    verdict::Verdict,
};

/// Mark of a packet that a host veth's hook has put into the host's loopback device, so that the hook there leaves
/// it alone and takes the mark off. Only the host's own root could set it otherwise.
pub const HANDLED_MARK: u32 = 0x504d_4c4f;

/// Takes verdicts: applies them to a packet, or returns them.
pub trait VerdictSink {
    /// What applying a verdict returns.
    type Output;

    /// Applies a verdict. To be inlined: where the verdict is found, most
    /// of the code for other verdicts falls away.
    fn apply(&self, verdict: Verdict) -> Self::Output;
}

/// Returns the verdict without applying it.
#[derive(Clone, Copy, Debug)]
struct ReturnVerdict;

impl VerdictSink for ReturnVerdict {
    type Output = Verdict;

    #[inline(always)]
    fn apply(&self, verdict: Verdict) -> Verdict {
        verdict
    }
}

/// What applying a verdict returned. Either variant is the end; the second one only comes early, which `?` is for.
pub type Applied<F> = Result<<F as VerdictSink>::Output, <F as VerdictSink>::Output>;

/// A hook.
///
/// A decision comes in two steps, so that a program can give each version of IP a stack of its own.
pub trait Hook {
    /// Looks at a frame: the version of IP that it carries, or the verdict on a frame that carries none.
    fn open(frame: &impl Frame, tables: &impl Tables) -> Result<Kind, Verdict>;

    /// Decides on an IP packet and returns what `sink` makes of the verdict.
    ///
    /// A verdict is applied where it is found. Brought together first, its fields would share registers, some of
    /// them set by one verdict only, and the kernel refuses a program that computes with those.
    fn decide_ip<V: Version, D: ParsePath, F: VerdictSink>(
        frame: &impl Frame,
        tables: &impl Tables,
        sink: &F,
    ) -> Applied<F>;

    /// Decides on a frame.
    #[inline(always)]
    fn decide(frame: &impl Frame, tables: &impl Tables) -> Verdict {
        let applied = match Self::open(frame, tables) {
            Ok(Kind::V4) => Self::decide_ip::<V4, SlowPath, _>(frame, tables, &ReturnVerdict),
            Ok(Kind::V6) => Self::decide_ip::<V6, SlowPath, _>(frame, tables, &ReturnVerdict),
            Err(verdict) => Err(verdict),
        };
        match applied {
            Ok(verdict) | Err(verdict) => verdict,
        }
    }
}
