//! The interface of a hook: a decision in two steps, and the sink of its verdict.

use crate::{
    frame::Frame,
    packet::{ParsePath, SlowPath, V4, V6, ethernet::L3},
    route::Route,
    segments::WireSize,
    tables::Tables,
    verdict::Verdict,
};

/// Receives verdicts: applies them to a packet, or returns them.
pub trait VerdictSink {
    /// Result of applying a verdict.
    type Output;

    /// Applies a verdict that counts no traffic, or delivers a frame that is one packet on the wire. An
    /// implementation must be inlined, because the compiler then removes the code for other verdicts.
    fn apply(&self, verdict: Verdict) -> Self::Output;

    /// Applies a verdict that delivers a frame of this size on the wire.
    fn deliver(&self, verdict: Verdict, size: WireSize) -> Self::Output;
}

/// Returns the verdict without applying it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReturnVerdict;

impl VerdictSink for ReturnVerdict {
    type Output = Verdict;

    #[inline(always)]
    fn apply(&self, verdict: Verdict) -> Verdict {
        verdict
    }

    #[inline(always)]
    fn deliver(&self, verdict: Verdict, _size: WireSize) -> Verdict {
        verdict
    }
}

/// Result of applying a verdict. `Ok` and `Err` both end the decision; `Err` is an early end, for `?`. (A
/// `ControlFlow` would say so better, but `?` does not convert the `Result`s of the parsers to one.)
pub type Applied<S> = Result<<S as VerdictSink>::Output, <S as VerdictSink>::Output>;

/// A hook.
///
/// A decision has two steps, so that the programs can have a separate stack for each IP version.
pub trait Hook {
    /// Returns the L3 protocol of a frame, or the verdict on a frame that is not an IP packet.
    fn classify_frame(frame: &impl Frame, tables: &impl Tables) -> Result<L3, Verdict>;

    /// Decides on an IP packet and returns the result of applying the verdict.
    ///
    /// It applies each verdict where it reaches it. If verdicts were merged first, their fields would share
    /// registers that one arm left uninitialised, and the verifier rejects reads of those.
    fn decide_ip<V: Route, P: ParsePath, S: VerdictSink>(
        frame: &impl Frame,
        tables: &impl Tables,
        sink: &S,
    ) -> Applied<S>;

    /// Returns the verdict on a frame, from the slow path.
    #[inline(always)]
    fn decide(frame: &impl Frame, tables: &impl Tables) -> Verdict {
        let applied = match Self::classify_frame(frame, tables) {
            Ok(L3::V4) => Self::decide_ip::<V4, SlowPath, _>(frame, tables, &ReturnVerdict),
            Ok(L3::V6) => Self::decide_ip::<V6, SlowPath, _>(frame, tables, &ReturnVerdict),
            Err(verdict) => Err(verdict),
        };
        match applied {
            Ok(verdict) | Err(verdict) => verdict,
        }
    }
}
